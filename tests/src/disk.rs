//! A small disk of a test's own, to be filled.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use stack::launch::Program;
use stack::run_dir::RunDir;
use stack::user::User;
use stack::{Child, Machine, stats, wait};

use crate::backend::Backend;
use crate::binaries::machine;
use crate::wait::{blocking, must};

/// A few small programs one after the other.
const MADE_WITHIN: Duration = Duration::from_secs(20);
/// Mounts it where nobody else sees it, and stays: others reach it as `/proc/PID/root/…`, those who run
/// as the same user or as root.
const HOLD: &str = r#"
    mount -t tmpfs -o size="$1m",mode=777 small "$2"
    exec setpriv --reuid "$3" --regid "$4" --clear-groups --pdeathsig KILL sleep infinity"#;
/// What lies in the way.
const BALLAST: &str = "ballast";
const BLOCK: [u8; 4_096] = [1; 4_096];

/// A file system of a few mebibytes in memory. Nothing is left of it, also after a `kill -9`: it ends with
/// the last process that uses it.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    _holder: Child,
    _home: RunDir,
}

impl Disk {
    /// Makes one. `None`, and a line that says so, where the system does not let us mount anything.
    pub async fn make(mebibytes: u32) -> Option<Self> {
        let local = Backend::chosen() == Backend::Local;
        let make = move || local.then(|| Self::mount(&machine(), mebibytes)).transpose();
        let disk = blocking("making a small disk", make).await.flatten();
        if disk.is_none() {
            eprintln!(
                "NOT CHECKED: only root may mount a small disk, and only where mounts are allowed"
            );
        }
        disk
    }

    fn mount(machine: &Machine, mebibytes: u32) -> Result<Option<Self>> {
        let Some(User { uid, gid }) = machine.postgres_user() else { return Ok(None) };
        let home = RunDir::create(machine)?;
        let at = home.path().join("disk");
        machine.make_folder(&at)?;
        let numbers = [mebibytes.to_string(), uid.to_string(), gid.to_string()];
        let [size, uid, gid] = numbers;
        let place = at.to_string_lossy().into_owned();
        let args = ["--mount", "sh", "-euc", HOLD, "hold", &size, &place, &uid, &gid];
        let holder = Program::new("disk", "unshare").args(args).start(machine)?;
        let path = Path::new("/proc").join(holder.id().to_string()).join("root");
        let path = path.join(at.strip_prefix("/")?);
        let device = fs::metadata(&at)?.dev();
        let held = wait::until(MADE_WITHIN, "a small disk", || {
            let sleeps =
                stats::command_line(holder.id()).is_some_and(|line| line.starts_with("sleep"));
            let mounted = sleeps && fs::metadata(&path).is_ok_and(|disk| disk.dev() != device);
            Ok((mounted || !holder.is_running()).then_some(mounted))
        })?;
        Ok(held.then_some(Self { path, _holder: holder, _home: home }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it to the last block.
    ///
    /// # Panics
    /// If writing fails for another reason.
    pub fn fill(&self) {
        let mut file = must(File::create(self.path.join(BALLAST)), "filling a disk");
        let full = loop {
            if let Err(error) = file.write_all(&BLOCK) {
                break error.kind();
            }
        };
        assert_eq!(full, ErrorKind::StorageFull);
    }

    /// Takes away what filled it.
    pub fn make_room(&self) {
        must(fs::remove_file(self.path.join(BALLAST)), "making room");
    }
}
