//! How many bytes wait for each socket, and the end of those for which too many do.
//!
//! The socket library has a queue for each socket and tells no length of it. What is emitted is therefore added
//! here, and what the socket's connection writes, or an answer to its polling, is taken off. Pings and the headers
//! of frames are written too: where more was written than emitted, nothing waits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::lifecycle::{Stop, pause};
use shared::settings::Settings;
use socketioxide::extract::SocketRef;
use socketioxide::socket::Sid;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::{METRICS, Overfull};

/// Pause between two looks at what waits for all.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A socket for which something waits takes some of it within this time. That it answers pings does not count: who
/// polls may answer them and never poll.
const UNTAKEN_MAX: Duration = Duration::from_secs(30);
/// What may wait while the next read begins: an answer of ordinary size, and what is said meanwhile.
const NEXT_READ_BYTES: u64 = 256 * 1024;
/// A socket must be able to take a few messages.
const WAITING_BYTES_MIN: u64 = 65_536;
const WAITING_BYTES_MAX: u64 = 1 << 40;

/// Most bytes that wait.
#[derive(Debug, Clone, Copy)]
pub struct WaitingLimits {
    /// For one socket, before something more is emitted: one answer of any size comes on top.
    pub socket: u64,
    /// For all sockets of one client address.
    pub address: u64,
    pub all: u64,
}

impl WaitingLimits {
    pub fn read(settings: &mut Settings) -> Self {
        let mut bytes = |name| settings.number(name, WAITING_BYTES_MIN..=WAITING_BYTES_MAX);
        Self {
            socket: bytes("WAITING_BYTES_PER_SOCKET"),
            address: bytes("WAITING_BYTES_PER_ADDRESS"),
            all: bytes("WAITING_BYTES"),
        }
    }
}

/// What waits for one socket.
pub struct Backlog {
    most: u64,
    emitted: AtomicU64,
    written: AtomicU64,
    is_over: AtomicBool,
    /// Told of whatever is written, and of the end.
    moved: Notify,
}

impl Backlog {
    fn new(most: u64) -> Arc<Self> {
        Arc::new(Self {
            most,
            emitted: AtomicU64::new(0),
            written: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            moved: Notify::new(),
        })
    }

    /// So many bytes wait.
    fn waiting(&self) -> u64 {
        let written = self.written.load(Ordering::Relaxed);
        self.emitted.load(Ordering::Relaxed).saturating_sub(written)
    }

    /// Adds what is about to be emitted; `false` if so much waits already that it must not be.
    fn add(&self, bytes: usize) -> bool {
        let written = self.written.load(Ordering::Relaxed);
        let emitted = self.emitted.fetch_max(written, Ordering::Relaxed).max(written);
        if emitted - written > self.most || self.is_over.load(Ordering::Relaxed) {
            return false;
        }
        self.emitted.fetch_add(bytes as u64, Ordering::Relaxed);
        true
    }

    /// Takes off what was written.
    pub fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        self.moved.notify_waiters();
    }

    /// Waits until the client has taken so much of what waits that something more may be read for it; `false` if it
    /// is gone.
    pub async fn room(&self) -> bool {
        loop {
            let moved = self.moved.notified();
            if self.is_over.load(Ordering::Relaxed) {
                return false;
            }
            if self.has_room() {
                return true;
            }
            moved.await;
        }
    }

    /// Whether nothing much waits.
    pub fn has_room(&self) -> bool {
        self.waiting() <= NEXT_READ_BYTES
    }

    /// Nothing more is emitted; `false` if nothing was before.
    fn end(&self) -> bool {
        let is_first = !self.is_over.swap(true, Ordering::Relaxed);
        self.moved.notify_waiters();
        is_first
    }
}

/// What waits for a socket, unless it is not connected yet.
pub fn of(socket: &SocketRef) -> Option<Arc<Backlog>> {
    socket.extensions.get()
}

/// Adds what is about to be emitted to a socket; `false` if it must not be: too much waits for it.
pub fn takes(socket: &SocketRef, bytes: usize) -> bool {
    let Some(backlog) = of(socket) else { return true };
    let takes = backlog.add(bytes);
    if !takes && backlog.end() {
        METRICS.overfull(Overfull::Socket);
    }
    takes
}

/// What waits for all sockets.
pub struct Backlogs {
    limits: WaitingLimits,
    known: Mutex<HashMap<Sid, Known>>,
}

struct Known {
    socket: SocketRef,
    /// Whose address it shares.
    network: Option<IpAddr>,
    backlog: Arc<Backlog>,
    /// What was written up to when.
    written: (u64, Instant),
}

impl Backlogs {
    /// No socket is there yet.
    pub fn new(limits: WaitingLimits) -> Arc<Self> {
        Arc::new(Self { limits, known: Mutex::default() })
    }

    /// A socket is connected.
    pub fn add(&self, socket: &SocketRef, network: Option<IpAddr>) -> Arc<Backlog> {
        let backlog = Backlog::new(self.limits.socket);
        socket.extensions.insert(Arc::clone(&backlog));
        let known = Known {
            socket: socket.clone(),
            network,
            backlog: Arc::clone(&backlog),
            written: (0, Instant::now()),
        };
        self.lock().insert(socket.id, known);
        backlog
    }

    /// A socket is gone.
    pub fn remove(&self, socket: &SocketRef) {
        if let Some(known) = self.lock().remove(&socket.id) {
            known.backlog.end();
        }
    }

    /// Looks after all of them until the stop; `disconnect` ends a socket.
    pub async fn run(
        self: Arc<Self>,
        disconnect: fn(&SocketRef),
        stop: Stop,
    ) -> anyhow::Result<()> {
        while pause(&stop, LOOK_INTERVAL).await {
            // Not under the lock: a socket that ends is removed from here.
            for (socket, why) in self.look() {
                tracing::warn!(socket = %socket.id, why = why.as_str(), "too much waits for a socket, cutting it off");
                METRICS.overfull(why);
                disconnect(&socket);
            }
        }
        Ok(())
    }

    /// Whom to disconnect: those that take nothing, then the largest of each address and of all that have too much.
    fn look(&self) -> Vec<(SocketRef, Overfull)> {
        let now = Instant::now();
        let mut known = self.lock();
        let all: u64 = known.values().map(|one| one.backlog.waiting()).sum();
        METRICS.waiting_bytes.set(all.cast_signed());
        // One that polls is there for a while after its end, until the library misses its pings.
        let there = known.values_mut().filter(|one| !one.backlog.is_over.load(Ordering::Relaxed));
        let mut waiting: Vec<_> = there
            .filter_map(|one| {
                let bytes = one.backlog.waiting();
                let untaken = one.untaken_for(bytes, now) >= UNTAKEN_MAX;
                (bytes > 0).then_some(Waiting { bytes, network: one.network, untaken, of: one })
            })
            .collect();
        let ended = overfull(&mut waiting, self.limits);
        let ended = ended.into_iter().map(|(at, why)| (&waiting[at].of, why));
        ended
            .map(|(one, why)| {
                one.backlog.end();
                (one.socket.clone(), why)
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Sid, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// For how long something has waited of which nothing was taken.
    fn untaken_for(&mut self, waiting: u64, now: Instant) -> Duration {
        let written = self.backlog.written.load(Ordering::Relaxed);
        if waiting == 0 || written != self.written.0 {
            self.written = (written, now);
        }
        now - self.written.1
    }
}

/// A socket for which something waits.
struct Waiting<T> {
    bytes: u64,
    network: Option<IpAddr>,
    untaken: bool,
    of: T,
}

/// Sorts them, the largest first, and gives the places of those that are too much.
fn overfull<T>(waiting: &mut [Waiting<T>], limits: WaitingLimits) -> Vec<(usize, Overfull)> {
    waiting.sort_by_key(|one| std::cmp::Reverse(one.bytes));
    let mut all = 0;
    let mut by_network: HashMap<_, u64> = HashMap::new();
    for one in waiting.iter().filter(|one| !one.untaken) {
        all += one.bytes;
        *by_network.entry(one.network).or_default() += one.bytes;
    }
    let mut ended = Vec::new();
    for (at, one) in waiting.iter().enumerate() {
        let of_network = by_network.entry(one.network).or_default();
        let why = if one.untaken {
            Overfull::Untaken
        } else if one.network.is_some() && *of_network > limits.address {
            Overfull::Address
        } else if all > limits.all {
            Overfull::All
        } else {
            continue;
        };
        if !one.untaken {
            *of_network -= one.bytes;
            all -= one.bytes;
        }
        ended.push((at, why));
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: WaitingLimits = WaitingLimits { socket: 100, address: 200, all: 300 };

    #[test]
    fn an_empty_queue_takes_an_answer_of_any_size_and_a_full_one_nothing() {
        let backlog = Backlog::new(100);
        assert!(backlog.add(1_000_000));
        assert!(!backlog.add(1), "what waits is above its share");
        backlog.wrote(999_900);
        assert!(backlog.add(1), "it is down to its share");
        assert_eq!(backlog.waiting(), 101);
        assert!(!backlog.add(1));
    }

    #[test]
    fn what_is_written_beside_what_was_emitted_makes_no_room() {
        let backlog = Backlog::new(100);
        backlog.wrote(5_000);
        assert!(backlog.add(90));
        assert_eq!(backlog.waiting(), 90);
        assert!(backlog.add(90));
        assert!(!backlog.add(90));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_read_begins_when_the_last_answer_left_or_nobody_is_there() {
        let backlog = Backlog::new(u64::MAX);
        assert!(backlog.add(1_000_000));
        let wait = Duration::from_hours(1);
        assert!(tokio::time::timeout(wait, backlog.room()).await.is_err());
        let (is_there, ()) = tokio::join!(backlog.room(), async {
            tokio::task::yield_now().await;
            backlog.wrote(900_000);
        });
        assert!(is_there && backlog.add(1_000_000));
        let (is_there, ()) = tokio::join!(backlog.room(), async {
            tokio::task::yield_now().await;
            assert!(backlog.end());
        });
        assert!(!is_there && !backlog.end(), "it ends once");
        assert!(!backlog.add(1), "nothing more after the end");
    }

    fn waiting(all: &[(u64, u8, bool)]) -> Vec<Waiting<u64>> {
        let one = |&(bytes, host, untaken): &(u64, u8, bool)| {
            let network = (host > 0).then(|| IpAddr::from([192, 0, 2, host]));
            Waiting { bytes, network, untaken, of: bytes }
        };
        all.iter().map(one).collect()
    }

    fn ended(all: &[(u64, u8, bool)]) -> Vec<(u64, &'static str)> {
        let mut all = waiting(all);
        let ended = overfull(&mut all, LIMITS);
        ended.into_iter().map(|(at, why)| (all[at].of, why.as_str())).collect()
    }

    #[test]
    fn the_largest_of_an_address_goes_first_and_no_more_than_must() {
        assert_eq!(ended(&[(90, 1, false), (100, 1, false)]), []);
        let address = [(90, 1, false), (95, 1, false), (99, 1, false), (10, 2, false)];
        assert_eq!(ended(&address), [(99, "address")]);
    }

    #[test]
    fn the_largest_of_all_goes_first_where_each_address_keeps_to_its_share() {
        let all = [(120, 1, false), (110, 2, false), (100, 3, false), (5, 4, false)];
        assert_eq!(ended(&all), [(120, "all")]);
        let nameless = [(201, 0, false), (50, 0, false), (49, 1, false)];
        assert_eq!(ended(&nameless), [], "sockets without an address share none");
    }

    #[test]
    fn who_takes_nothing_goes_and_counts_among_nobody_else() {
        assert_eq!(
            ended(&[(1, 1, true), (150, 1, false), (299, 2, true)]),
            [(299, "untaken"), (1, "untaken"),]
        );
    }
}
