//! Locks between processes: `flock`, which the kernel releases when the holder dies in any way.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// A lock that is held until this value is dropped or its process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits at most `within` to be the only holder.
    pub fn exclusive(path: &Path, within: Duration) -> Result<Self> {
        let file = open(path)?;
        wait::until(within, &waiting_for(path), || taken(file.try_lock()))?;
        Ok(Self { _file: file })
    }

    /// Waits at most `within` to be one of several holders.
    pub fn shared(path: &Path, within: Duration) -> Result<Self> {
        let file = open(path)?;
        wait::until(within, &waiting_for(path), || taken(file.try_lock_shared()))?;
        Ok(Self { _file: file })
    }

    /// The lock, or nothing if somebody holds it.
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>> {
        let file = open(path)?;
        Ok(taken(file.try_lock())?.map(|()| Self { _file: file }))
    }

    /// Waits until nobody else holds the lock, however long they hold it: only for a process whose
    /// whole life is that wait.
    pub fn once_everybody_left(path: &Path) -> Result<Self> {
        let file = open(path)?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

fn waiting_for(path: &Path) -> String {
    format!("the lock on {}", path.display())
}

/// Opens for reading where the file exists, which is all that `flock` needs: another user's lock
/// file may not be writable, and Linux refuses `O_CREAT` on it in a sticky folder.
fn open(path: &Path) -> Result<File> {
    File::open(path)
        .or_else(|_| OpenOptions::new().create(true).append(true).open(path))
        .with_context(|| format!("cannot open the lock file {}", path.display()))
}

fn taken(answer: Result<(), TryLockError>) -> Result<Option<()>> {
    match answer {
        Ok(()) => Ok(Some(())),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).context("cannot take a file lock"),
    }
}
