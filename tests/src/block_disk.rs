//! A disk that loses its power: ext4 on a loop device.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use stack::Machine;
use stack::run_dir::RunDir;
use stack::tool;

use crate::backend::Backend;
use crate::binaries::machine;
use crate::mount::Mount;
use crate::wait::blocking;

const MEBIBYTE: u64 = 1024 * 1024;
/// Takes only what is written.
const SIZE: u64 = 2_048 * MEBIBYTE;
const FORMATS_WITHIN: Duration = Duration::from_mins(1);
const WRITES_WITHIN: Duration = Duration::from_mins(1);
/// What nobody can write after a cut.
const PROBE: &str = "probe";

/// After a cut it holds what had been written through to it, by whoever asked for that or by the system when it was
/// time; all else is gone, as it is from the memory of a machine.
#[derive(Debug)]
pub struct BlockDisk {
    mount: Mount,
    image: PathBuf,
}

/// Takes the power away within a millisecond: the program that does it waits already.
#[derive(Debug)]
pub struct Switch {
    program: process::Child,
    path: PathBuf,
}

impl BlockDisk {
    /// Makes one. `None`, and a line that says so, where that needs more than the machine allows.
    pub async fn make() -> Option<Self> {
        let make = || match Self::create() {
            Ok(disk) => Ok(Some(disk)),
            Err(error) => {
                eprintln!(
                    "NOT CHECKED: a power cut, without a disk that can be cut off: {error:#}"
                );
                Ok(None)
            }
        };
        blocking("making a disk", make).await
    }

    fn create() -> Result<Self> {
        ensure!(Backend::chosen() == Backend::Local, "the servers are containers");
        let machine = machine();
        ensure!(machine.postgres_user().is_some(), "only root may mount one");
        for program in ["xfs_io", "mkfs.ext4"] {
            let version = tool::output(program, ["-V"]);
            version.with_context(|| format!("no {program} (Debian: xfsprogs, e2fsprogs)"))?;
        }
        Self::format(&machine)
    }

    fn format(machine: &Machine) -> Result<Self> {
        let home = RunDir::create(machine)?;
        let image = home.path().join("image");
        File::create(&image)?.set_len(SIZE)?;
        let mut format = Command::new("mkfs.ext4");
        format.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image);
        tool::run(format, FORMATS_WITHIN)?;
        let mount = Mount::hold(machine, home, &what(&image.to_string_lossy()))?;
        Ok(Self { mount: mount.context("it cannot be mounted as a loop device")?, image })
    }

    /// Everything on it is written through, as on a machine that has run for long.
    pub async fn settle(&self) {
        let path = self.as_ref().to_path_buf();
        blocking("writing a disk through", move || settle(&path)).await;
    }

    /// Its switch, to be used once.
    pub fn switch(&self) -> Result<Switch> {
        let path = self.as_ref().to_path_buf();
        let mut program = Command::new("xfs_io");
        program.arg("-x").arg(&path).stdin(Stdio::piped()).stdout(Stdio::null());
        Ok(Switch { program: program.spawn()?, path })
    }

    /// Mounts it again, once nobody uses it any more.
    pub fn power_on(&self) -> Result<()> {
        self.mount.again(&what(&self.image.to_string_lossy()))
    }
}

impl Switch {
    /// From now on nothing reaches the disk.
    pub fn off(mut self) -> Result<()> {
        let mut orders = self.program.stdin.take().context("no way to tell xfs_io")?;
        orders.write_all(b"shutdown\n")?;
        drop(orders);
        ensure!(self.program.wait()?.success(), "xfs_io failed");
        let written = fs::write(self.path.join(PROBE), PROBE);
        ensure!(written.is_err(), "the disk takes what is written after its power was cut");
        Ok(())
    }
}

/// Where it is.
impl AsRef<Path> for BlockDisk {
    fn as_ref(&self) -> &Path {
        self.mount.path()
    }
}

/// Writes everything through that lies on the disk of this folder.
pub(crate) fn settle(folder: &Path) -> Result<()> {
    let mut sync = Command::new("sync");
    sync.arg("--file-system").arg(folder);
    tool::run(sync, WRITES_WITHIN).map(drop)
}

/// The loop device ends with the mount.
fn what(image: &str) -> [&str; 3] {
    ["-o", "loop", image]
}
