//! Folders that a test puts aside and puts back.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// Copies a folder with its owners and modes to where nothing is yet.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(copied.success(), "copying {} to {}: {copied}", from.display(), to.display());
    Ok(())
}
