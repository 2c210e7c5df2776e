//! A mounted file system that nobody else sees.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use stack::launch::Program;
use stack::run_dir::RunDir;
use stack::user::User;
use stack::{Child, Machine, stats, tool, wait};

/// A few small programs one after the other.
const MOUNTS_WITHIN: Duration = Duration::from_secs(20);
/// Mounts it in a namespace of its own, and stays: others reach it as `/proc/PID/root/…`, those who run as the same
/// user or as root.
const HOLD: &str = r#"
    user="$1" group="$2"
    shift 2
    mount "$@"
    exec setpriv --reuid "$user" --regid "$group" --clear-groups --pdeathsig KILL sleep infinity"#;

/// Nothing is left of it, also after a `kill -9`: it ends with the last process that uses it.
#[derive(Debug)]
pub(crate) struct Mount {
    path: PathBuf,
    /// Where it is in its own namespace.
    at: PathBuf,
    holder: Child,
    _home: RunDir,
}

impl Mount {
    /// Calls `mount` with these arguments and a folder of `home`. `None` where the system does not let us.
    pub(crate) fn hold(machine: &Machine, home: RunDir, what: &[&str]) -> Result<Option<Self>> {
        let Some(User { uid, gid }) = machine.postgres_user() else { return Ok(None) };
        let at = home.path().join("disk");
        machine.make_folder(&at)?;
        let (uid, gid, place) = (uid.to_string(), gid.to_string(), at.to_string_lossy());
        let args = ["--mount", "sh", "-euc", HOLD, "hold", &uid, &gid];
        let holder = Program::new("disk", "unshare").args(args).args(what).args([&*place]);
        let holder = holder.start(machine)?;
        let path = Path::new("/proc").join(holder.id().to_string()).join("root");
        let path = path.join(at.strip_prefix("/")?);
        let device = fs::metadata(&at)?.dev();
        let held = wait::until(MOUNTS_WITHIN, "a disk to be mounted", || {
            let sleeps =
                stats::command_line(holder.id()).is_some_and(|line| line.starts_with("sleep"));
            let mounted = sleeps && fs::metadata(&path).is_ok_and(|disk| disk.dev() != device);
            Ok((mounted || !holder.is_running()).then_some(mounted))
        })?;
        Ok(held.then_some(Self { path, at, holder, _home: home }))
    }

    /// Where everybody finds it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts it, once nobody uses it any more, and mounts it again.
    pub(crate) fn again(&self, what: &[&str]) -> Result<()> {
        let mut refused = None;
        let unmounted = wait::until(MOUNTS_WITHIN, "a disk that nobody uses", || {
            refused = self.inside("umount", &[]).err();
            Ok(refused.is_none().then_some(()))
        });
        unmounted.map_err(|error| error.context(format!("{refused:?}")))?;
        self.inside("mount", what)
    }

    fn inside(&self, program: &str, args: &[&str]) -> Result<()> {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.holder.id().to_string(), "--mount", program]);
        nsenter.args(args).arg(&self.at);
        tool::run(nsenter, MOUNTS_WITHIN).map(drop)
    }
}
