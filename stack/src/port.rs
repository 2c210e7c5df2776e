//! Ports that no other process of ours takes.

use std::collections::hash_map::RandomState;
use std::env;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::lock::Lock;

/// Below the range that systems hand out by themselves, so that no outgoing connection sits on one.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// Everybody may make lock files there, nobody may remove somebody else's.
const SHARED_FOLDER: u32 = 0o1777;

/// A port that is ours until this value is dropped, also while nothing listens on it: a server that
/// is down in a test comes back on the same port.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: Lock,
}

impl Port {
    /// Reserves some free port.
    pub fn reserve() -> Result<Self> {
        let start = anywhere();
        let numbers = (0..COUNT).map(|step| FIRST + (start + step) % COUNT);
        numbers
            .into_iter()
            .find_map(Self::try_reserve)
            .context("no free port between 20000 and 29999")
    }

    /// Reserves the port of last time if it is still free, else some other.
    pub fn reserve_preferring(number: Option<u16>) -> Result<Self> {
        number.and_then(Self::try_reserve).map_or_else(Self::reserve, Ok)
    }

    /// Reserves this one, if nobody has it.
    pub fn try_reserve(number: u16) -> Option<Self> {
        let lock = Lock::try_exclusive(&folder().ok()?.join(number.to_string())).ok()??;
        is_free(number).then_some(Self { number, _lock: lock })
    }

    /// The number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// Whether something could listen on this port of 127.0.0.1 now.
pub fn is_free(number: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok()
}

/// One folder for all users of the machine.
fn folder() -> Result<PathBuf> {
    let folder = env::temp_dir().join("chat-stack-ports");
    if !folder.exists() {
        fs::create_dir_all(&folder)?;
        open_to_all(&folder)?;
    }
    Ok(folder)
}

fn open_to_all(folder: &Path) -> Result<()> {
    Ok(fs::set_permissions(folder, fs::Permissions::from_mode(SHARED_FOLDER))?)
}

/// A random start, so that processes that start together do not try the same ports.
fn anywhere() -> u16 {
    let random = RandomState::new().build_hasher().finish();
    u16::try_from(random % u64::from(COUNT)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_gets_a_reserved_port() {
        let port = Port::reserve().unwrap();
        assert!(Port::try_reserve(port.number()).is_none());
        let number = port.number();
        drop(port);
        assert!(Port::try_reserve(number).is_some());
    }

    #[test]
    fn a_port_in_use_is_not_reserved() {
        let (number, _listener) = (FIRST..FIRST + COUNT)
            .find_map(|number| Some((number, TcpListener::bind(("127.0.0.1", number)).ok()?)))
            .unwrap();
        assert!(Port::try_reserve(number).is_none());
    }

    #[test]
    fn the_port_of_last_time_is_preferred() {
        let number = Port::reserve().unwrap().number();
        assert_eq!(Port::reserve_preferring(Some(number)).unwrap().number(), number);
        let held = Port::try_reserve(number).unwrap();
        assert_ne!(Port::reserve_preferring(Some(number)).unwrap().number(), held.number());
    }
}
