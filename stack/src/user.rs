//! The user who runs Postgres, which refuses to run as root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::tool;

/// Who may own a cluster when root starts it, best first.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];

const OTHERS_MAY_PASS: u32 = 0o001;
const GROUP_MAY_PASS: u32 = 0o010;
const OWNER_MAY_PASS: u32 = 0o100;

/// A user other than the one who runs this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The numeric user id.
    pub uid: u32,
    /// The numeric id of the main group.
    pub gid: u32,
}

impl User {
    /// The user to run Postgres as; nothing if that is simply the present one.
    pub fn for_postgres() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        match CANDIDATES.into_iter().find_map(Self::named) {
            Some(user) => Ok(Some(user)),
            None => bail!(
                "Postgres does not run as root: make a user `postgres`, or run this as an ordinary user"
            ),
        }
    }

    fn named(name: &str) -> Option<Self> {
        let id = |flag: &str| tool::output("id", [flag, name]).ok()?.trim().parse().ok();
        Some(Self { uid: id("-u")?, gid: id("-g")? })
    }

    /// Whether this user can go into `folder`, which must exist.
    pub fn can_reach(&self, folder: &Path) -> bool {
        let Ok(folder) = fs::canonicalize(folder) else { return false };
        folder.ancestors().all(|step| self.may_pass(step))
    }

    fn may_pass(&self, folder: &Path) -> bool {
        let Ok(meta) = fs::metadata(folder) else { return false };
        let needed = if meta.uid() == self.uid {
            OWNER_MAY_PASS
        } else if meta.gid() == self.gid {
            GROUP_MAY_PASS
        } else {
            OTHERS_MAY_PASS
        };
        meta.permissions().mode() & needed != 0
    }

    /// Gives a file or folder to this user.
    pub fn take(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("cannot give {} away", path.display()))
    }
}
