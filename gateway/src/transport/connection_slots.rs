//! How many TCP connections may be open: of one peer, and in all, below the limit of open files.
//!
//! A peer's address is all that is known of a connection before its first request. A proxy that is trusted
//! stands for many clients, who have limits of their own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, getrlimit};

use crate::access::client_address::TrustedProxies;
use crate::access::limits;
use crate::metrics::{Full, METRICS};

/// Files that the gateway itself has open: its connections to Postgres and NATS, its listeners, the
/// connections of operators.
const OWN_FILES: usize = 64;

/// The connections that are open.
pub struct ConnectionSlots {
    /// Most of one peer, unless rates are not limited.
    per_peer: Option<usize>,
    trusted: Arc<TrustedProxies>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// The place of one connection; given back when it is dropped.
pub struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    /// Whose connections it counts among; none for a proxy.
    peer: Option<IpAddr>,
}

impl ConnectionSlots {
    /// Nobody is connected yet. `per_peer` is none where rates are not limited.
    pub fn new(per_peer: Option<usize>, trusted: Arc<TrustedProxies>) -> Arc<Self> {
        Arc::new(Self { per_peer, trusted, held: Mutex::default() })
    }

    /// A place for a connection of this peer.
    pub fn open(self: &Arc<Self>, peer: IpAddr) -> Result<ConnectionSlot, Full> {
        self.open_of(peer, room())
    }

    fn open_of(self: &Arc<Self>, peer: IpAddr, room: usize) -> Result<ConnectionSlot, Full> {
        let counted = self.per_peer.filter(|_| !self.trusted.trust(peer.to_canonical()));
        let peer = counted.map(|_| limits::network(peer));
        let mut held = self.lock();
        if held.all >= room {
            return Err(Full::Files);
        }
        if let (Some(most), Some(peer)) = (counted, peer) {
            let of_peer = held.by_peer.entry(peer).or_default();
            // One peer never has more than half of the room: the other half is kept for others.
            if *of_peer >= most.min(room / 2) {
                return Err(Full::Peer);
            }
            *of_peer += 1;
        }
        held.all += 1;
        METRICS.client_connections.inc();
        Ok(ConnectionSlot { slots: Arc::clone(self), peer })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        METRICS.client_connections.dec();
        let mut held = self.slots.lock();
        held.all = held.all.saturating_sub(1);
        if let Some(peer) = self.peer
            && let Entry::Occupied(mut of_peer) = held.by_peer.entry(peer)
        {
            *of_peer.get_mut() -= 1;
            if *of_peer.get() == 0 {
                of_peer.remove();
            }
        }
    }
}

/// How many connections the limit of open files leaves room for. An operator may change it at any time
/// (`prlimit`); asking costs a system call for each connection.
fn room() -> usize {
    let files = getrlimit(Resource::Nofile).current;
    files.map_or(usize::MAX, |files| beside_own(usize::try_from(files).unwrap_or(usize::MAX)))
}

/// What is left of so many files; of few, three quarters.
fn beside_own(files: usize) -> usize {
    files - OWN_FILES.min(files / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: usize = 1_000;

    fn slots(per_peer: Option<usize>) -> Arc<ConnectionSlots> {
        ConnectionSlots::new(per_peer, Arc::new("10.0.0.0/8".parse().unwrap()))
    }

    fn peer(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn taken(slots: &Arc<ConnectionSlots>, from: &str, room: usize) -> Vec<ConnectionSlot> {
        std::iter::from_fn(|| slots.open_of(peer(from), room).ok()).take(MANY).collect()
    }

    #[test]
    fn a_peer_has_so_many_and_again_when_they_end_and_others_have_theirs() {
        let slots = slots(Some(3));
        let first = taken(&slots, "192.0.2.1", MANY);
        assert_eq!(first.len(), 3);
        assert_eq!(slots.open_of(peer("192.0.2.1"), MANY).err(), Some(Full::Peer));
        assert_eq!(slots.open_of(peer("::ffff:192.0.2.1"), MANY).err(), Some(Full::Peer));
        assert!(slots.open_of(peer("192.0.2.2"), MANY).is_ok());
        drop(first);
        assert_eq!(taken(&slots, "192.0.2.1", MANY).len(), 3);
    }

    #[test]
    fn nothing_is_kept_of_peers_that_are_gone() {
        let slots = slots(Some(3));
        drop((taken(&slots, "192.0.2.1", MANY), taken(&slots, "10.0.0.1", MANY)));
        let held = slots.lock();
        assert_eq!((held.all, held.by_peer.len()), (0, 0));
    }

    #[test]
    fn an_ipv6_peer_is_its_network() {
        let slots = slots(Some(1));
        let _one = slots.open_of(peer("2001:db8:1:2::1"), MANY).ok().unwrap();
        assert_eq!(slots.open_of(peer("2001:db8:1:2::2"), MANY).err(), Some(Full::Peer));
        assert!(slots.open_of(peer("2001:db8:1:3::1"), MANY).is_ok());
    }

    #[test]
    fn room_for_others_is_kept_of_few_files() {
        let slots = slots(Some(MANY));
        let of_one = taken(&slots, "192.0.2.1", 40);
        assert_eq!(of_one.len(), 20);
        let of_others = taken(&slots, "192.0.2.2", 40);
        assert_eq!(of_others.len(), 20);
        assert_eq!(slots.open_of(peer("192.0.2.3"), 40).err(), Some(Full::Files));
    }

    #[test]
    fn a_trusted_proxy_and_everybody_without_rates_have_all_the_room() {
        assert_eq!(taken(&slots(Some(3)), "10.0.0.1", 40).len(), 40);
        assert_eq!(taken(&slots(Some(3)), "::ffff:10.0.0.1", 40).len(), 40);
        assert_eq!(taken(&slots(None), "192.0.2.1", 40).len(), 40);
    }

    #[test]
    fn what_the_gateway_opens_itself_is_left_of_the_files() {
        assert_eq!([1_024, 400, 100, 0].map(beside_own), [960, 336, 75, 0]);
    }
}
