//! Passwords of servers that other users of the machine could reach, too.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

const OWNER_ONLY: u32 = 0o600;

/// A new password: letters and digits only, so that it can stand in a URL as it is.
pub(crate) fn generate() -> Result<String> {
    let mut bytes = [0; size_of::<u128>()];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// The password in `file`; made there if there is none.
pub(crate) fn kept_in(file: &Path) -> Result<String> {
    if let Ok(text) = fs::read_to_string(file) {
        return Ok(text.trim().to_owned());
    }
    let secret = generate()?;
    write(file, &secret)?;
    Ok(secret)
}

/// Writes a file that only its owner can read.
pub fn write(file: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(OWNER_ONLY);
    let mut open =
        options.open(file).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(open.write_all(text.as_bytes())?)
}
