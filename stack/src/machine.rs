//! What this machine allows: where our files may lie, and as whom Postgres runs.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::user::User;

/// The name of our folder in whatever cache folder is used.
const FOLDER: &str = "chat-stack";

const PASSABLE: u32 = 0o755;

/// Facts about the machine that everything else in this crate builds on.
#[derive(Clone, Debug)]
pub struct Machine {
    base: PathBuf,
    postgres_user: Option<User>,
    stack_binary: PathBuf,
}

impl Machine {
    /// Looks around. `stack_binary` is this crate's program, which starts the others on Linux.
    pub fn detect(stack_binary: impl Into<PathBuf>) -> Result<Self> {
        let postgres_user = User::for_postgres()?;
        let base = base(postgres_user.as_ref())?;
        Ok(Self { base, postgres_user, stack_binary: stack_binary.into() })
    }

    /// The folder of this user's fetched programs, caches and running servers.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Who runs Postgres; nothing if that is the present user.
    pub fn postgres_user(&self) -> Option<&User> {
        self.postgres_user.as_ref()
    }

    /// The `stack` program.
    pub fn stack_binary(&self) -> &Path {
        &self.stack_binary
    }

    /// Whether Postgres could work in `folder`, or below it once it exists.
    pub fn postgres_can_reach(&self, folder: &Path) -> bool {
        let existing = folder.ancestors().find(|step| step.exists());
        match (&self.postgres_user, existing) {
            (None, _) => true,
            (Some(user), Some(existing)) => user.can_reach(existing),
            (Some(_), None) => false,
        }
    }

    /// A folder below the base, made if need be, that Postgres can go through.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.base.join(name);
        self.make_folder(&path)?;
        Ok(path)
    }

    /// Makes a folder that Postgres can go through, if it does not exist.
    pub fn make_folder(&self, path: &Path) -> Result<()> {
        make_folder(path, self.postgres_user.is_some())
            .with_context(|| format!("cannot make {}", path.display()))
    }
}

/// Root's umask may keep others out; what secrets there are protect themselves.
fn make_folder(path: &Path, for_others: bool) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    if for_others {
        fs::set_permissions(path, fs::Permissions::from_mode(PASSABLE))?;
    }
    Ok(())
}

/// The first cache folder that can be made and that the user of Postgres can reach.
fn base(postgres_user: Option<&User>) -> Result<PathBuf> {
    let usable = |folder: &PathBuf| {
        let reachable = || postgres_user.is_none_or(|user| user.can_reach(folder));
        make_folder(folder, postgres_user.is_some()).is_ok() && is_ours(folder) && reachable()
    };
    match candidates().into_iter().find(usable) {
        Some(folder) => Ok(folder),
        None => bail!("no folder for caches: set XDG_CACHE_HOME to one that you can write to"),
    }
}

fn candidates() -> Vec<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let uid = rustix::process::geteuid();
    let system = uid.is_root().then(|| PathBuf::from("/var/cache"));
    let homes = [set("XDG_CACHE_HOME"), set("HOME").map(|home| home.join(".cache")), system];
    let last = env::temp_dir().join(format!("{FOLDER}-{}", uid.as_raw()));
    homes.into_iter().flatten().map(|home| home.join(FOLDER)).chain([last]).collect()
}

/// In a shared place like `/tmp` somebody else may have made the folder before us, and a home folder
/// kept by `sudo` is not root's.
fn is_ours(folder: &Path) -> bool {
    let writable = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
    writable
        && fs::metadata(folder).is_ok_and(|meta| meta.uid() == rustix::process::geteuid().as_raw())
}
