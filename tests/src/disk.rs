//! A small disk of a test's own, to be filled.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::Result;
use stack::Machine;
use stack::run_dir::RunDir;

use crate::backend::Backend;
use crate::binaries::machine;
use crate::mount::Mount;
use crate::wait::{blocking, must};

/// What lies in the way.
const BALLAST: &str = "ballast";
const BLOCK: [u8; 4_096] = [1; 4_096];

/// A file system of a few mebibytes in memory.
#[derive(Debug)]
pub struct Disk(Mount);

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
        let size = format!("size={mebibytes}m,mode=777");
        let what = ["-t", "tmpfs", "-o", &size, "small"];
        Ok(Mount::hold(machine, RunDir::create(machine)?, &what)?.map(Self))
    }

    /// Fills it to the last block.
    ///
    /// # Panics
    /// If writing fails for another reason.
    pub fn fill(&self) {
        let mut file = must(File::create(self.as_ref().join(BALLAST)), "filling a disk");
        let full = loop {
            if let Err(error) = file.write_all(&BLOCK) {
                break error.kind();
            }
        };
        assert_eq!(full, ErrorKind::StorageFull);
    }

    /// Takes away what filled it.
    pub fn make_room(&self) {
        must(fs::remove_file(self.as_ref().join(BALLAST)), "making room");
    }
}

/// Where it is.
impl AsRef<Path> for Disk {
    fn as_ref(&self) -> &Path {
        self.0.path()
    }
}
