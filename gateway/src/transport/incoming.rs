//! How many bytes of what clients send are kept because more of it is to come: of bodies, of messages over websockets,
//! and of the buffers that these leave behind.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::PacketExcess;
use crate::transport::sums::{Most, Sum, Sums};

/// A connection may keep so much, whatever others keep: no honest client sends more at a time.
const FREE_BYTES: u64 = 64 * 1024;

/// What is kept of all connections.
#[derive(Clone)]
pub struct Incoming {
    most: Most,
    sums: Arc<Sums>,
}

/// What is kept of one connection, until it is dropped.
pub struct Kept {
    most: Most,
    sum: Sum,
    bytes: AtomicU64,
}

impl Incoming {
    /// Nothing is kept.
    pub fn new(most: Most) -> Self {
        Self { most, sums: Arc::default() }
    }

    /// For a connection of a client of this address.
    pub fn of(&self, network: Option<IpAddr>) -> Kept {
        Kept { most: self.most, sum: self.sums.of(network), bytes: AtomicU64::new(0) }
    }
}

impl Kept {
    /// So much is kept now; an error if it must not be, as others of its address, or all, keep too much.
    pub fn set(&self, bytes: u64) -> Result<(), PacketExcess> {
        let bytes = if bytes > FREE_BYTES { bytes } else { 0 };
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        if bytes <= before {
            self.sum.take_off(before - bytes);
            return Ok(());
        }
        self.sum.add(bytes - before);
        if self.sum.is_beyond(self.most) { Err(PacketExcess::Unfinished) } else { Ok(()) }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.sum.take_off(self.bytes.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_connections_of_an_address_keep_is_bounded_and_little_is_free() {
        let incoming = Incoming::new(Most { address: 300_000, all: 1_000_000 });
        let address = |host| Some(IpAddr::from([192, 0, 2, host]));
        let [one, two, three, other] = [1, 1, 1, 2].map(|host| incoming.of(address(host)));
        assert_eq!((one.set(150_000), two.set(150_000)), (Ok(()), Ok(())));
        assert_eq!(three.set(FREE_BYTES), Ok(()), "what any may keep");
        assert_eq!(three.set(FREE_BYTES + 1), Err(PacketExcess::Unfinished));
        assert_eq!(other.set(250_000), Ok(()));
        drop(three);
        assert_eq!((one.set(0), two.set(300_000)), (Ok(()), Ok(())));
        assert_eq!(two.set(300_001), Err(PacketExcess::Unfinished));
        assert_eq!(two.set(200_000), Ok(()), "less is no excess");
        drop((one, two, other));
        assert_eq!(incoming.sums.all(), 0);
    }

    #[test]
    fn all_together_are_bounded_too() {
        let incoming = Incoming::new(Most { address: 200_000, all: 350_000 });
        let kept: Vec<_> =
            (1..=3).map(|host| incoming.of(Some([192, 0, 2, host].into()))).collect();
        let set: Vec<_> = kept.iter().map(|kept| kept.set(150_000).is_ok()).collect();
        assert_eq!(set, [true, true, false]);
    }
}
