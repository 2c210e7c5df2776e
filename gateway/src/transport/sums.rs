//! Bytes that the clients of one address have together, and those that all clients have.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Fewer addresses than these are not worth sweeping.
const SWEPT_MIN: usize = 1_024;

/// Most bytes.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    pub address: u64,
    pub all: u64,
}

/// What all clients have.
#[derive(Default)]
pub struct Sums {
    all: Arc<AtomicU64>,
    /// What those of each address have, while there are any.
    networks: Mutex<Networks>,
}

#[derive(Default)]
struct Networks {
    known: HashMap<IpAddr, Weak<AtomicU64>>,
    /// At how many of them those without a client are swept next.
    swept_at: usize,
}

/// Where what one client has is counted.
#[derive(Clone, Default)]
pub struct Sum {
    pub network: Option<Arc<AtomicU64>>,
    pub all: Arc<AtomicU64>,
}

impl Sums {
    /// For a client of this address.
    pub fn of(&self, network: Option<IpAddr>) -> Sum {
        let network = network.map(|network| {
            let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
            networks.sweep();
            let known = networks.known.entry(network).or_default();
            known.upgrade().unwrap_or_else(|| {
                let sum = Arc::default();
                *known = Arc::downgrade(&sum);
                sum
            })
        });
        Sum { network, all: Arc::clone(&self.all) }
    }

    /// What all have.
    pub fn all(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }
}

impl Networks {
    fn sweep(&mut self) {
        if self.known.len() >= self.swept_at.max(SWEPT_MIN) {
            self.known.retain(|_, sum| sum.strong_count() > 0);
            self.swept_at = 2 * self.known.len();
        }
    }
}

impl Sum {
    /// The client has so much more.
    pub fn add(&self, bytes: u64) {
        for sum in self.both() {
            sum.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// It has so much less.
    pub fn take_off(&self, bytes: u64) {
        for sum in self.both() {
            sum.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Whether those of its address, or all, have more than they may.
    pub fn is_beyond(&self, most: Most) -> bool {
        let beyond = |sum: &AtomicU64, most: u64| sum.load(Ordering::Relaxed) > most;
        let of_network = self.network.as_ref().is_some_and(|sum| beyond(sum, most.address));
        of_network || beyond(&self.all, most.all)
    }

    fn both(&self) -> impl Iterator<Item = &Arc<AtomicU64>> {
        self.network.iter().chain([&self.all])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Most = Most { address: 100, all: 150 };

    fn address(host: u32) -> IpAddr {
        IpAddr::V4((host + (10 << 24)).into())
    }

    #[test]
    fn clients_of_an_address_share_its_sum_and_all_share_one() {
        let sums = Sums::default();
        let (one, same, other) =
            (sums.of(Some(address(1))), sums.of(Some(address(1))), sums.of(Some(address(2))));
        one.add(60);
        same.add(40);
        assert!(!one.is_beyond(MOST) && !other.is_beyond(MOST));
        same.add(1);
        assert!(one.is_beyond(MOST) && !other.is_beyond(MOST));
        same.take_off(1);
        other.add(51);
        assert!(one.is_beyond(MOST) && sums.of(None).is_beyond(MOST));
        assert_eq!(sums.all(), 151);
    }

    #[test]
    fn addresses_without_a_client_are_forgotten() {
        let sums = Sums::default();
        let stays = sums.of(Some(address(0)));
        stays.add(1);
        for host in 1..u32::try_from(4 * SWEPT_MIN).unwrap() {
            drop(sums.of(Some(address(host))));
        }
        assert!(sums.networks.lock().unwrap().known.len() <= SWEPT_MIN);
        assert_eq!(sums.of(Some(address(0))).network.unwrap().load(Ordering::Relaxed), 1);
    }
}
