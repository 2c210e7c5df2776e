//! How many bytes wait for each socket, and the end of those for which too many do.
//!
//! The socket library has a queue for each socket and tells no length of it. What is emitted is therefore added
//! here, and what the socket's connection writes, or an answer to its polling, is taken off.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use shared::lifecycle::{Stop, pause};
use shared::settings::Settings;
use socketioxide::extract::SocketRef;
use socketioxide::socket::Sid;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::{METRICS, Overfull};
use crate::transport::sums::{Most, Sum, Sums};

/// Pause between two looks at what waits for all.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A socket for which something waits takes some of it within this time. That it answers pings does not count: who
/// polls may answer them and never poll.
const UNTAKEN_MAX: Duration = Duration::from_secs(30);
/// What may wait while the next read begins: an answer of ordinary size, and what is said meanwhile.
const NEXT_READ_BYTES: u64 = 256 * 1024;
/// Pause after a look in which nobody was found that could be ended.
const VAIN_PAUSE: Duration = Duration::from_millis(50);
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

    /// Those of many sockets.
    pub fn shared(self) -> Most {
        Most { address: self.address, all: self.all }
    }
}

/// What waits for one socket.
pub struct Backlog {
    most: u64,
    /// Bytes of large answers that wait: what follows them is measured beside them.
    answers: AtomicU64,
    waiting: AtomicU64,
    /// Bytes of answers to its polling that are on their way.
    leaving: AtomicU64,
    /// Bytes of what is held back while something is read for it: it is not emitted yet.
    held: AtomicU64,
    written: AtomicU64,
    is_over: AtomicBool,
    /// Told of whatever is written, and of the end.
    moved: Notify,
    shared: Shared,
}

/// What the sockets of one client address, and all sockets, have together.
#[derive(Default)]
struct Shared {
    sum: Sum,
    /// Who looks after them.
    backlogs: Weak<Backlogs>,
}

impl Backlog {
    fn new(most: u64, shared: Shared) -> Arc<Self> {
        Arc::new(Self {
            most,
            answers: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            leaving: AtomicU64::new(0),
            held: AtomicU64::new(0),
            written: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            moved: Notify::new(),
            shared,
        })
    }

    /// So many bytes wait, answers that are on their way included.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed) + self.leaving.load(Ordering::Relaxed)
    }

    /// Adds what is about to be emitted; `false` if so much waits already that it must not be.
    ///
    /// A large answer is read only once there is room, and may be of any size. Whoever asked for it is not ended for
    /// what is said while it is on its way.
    fn add(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        if self.has_room() {
            self.answers.store(0, Ordering::Relaxed);
        }
        if self.is_full() {
            return false;
        }
        if bytes > NEXT_READ_BYTES {
            self.answers.fetch_add(bytes, Ordering::Relaxed);
        }
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        self.shared.sum.add(bytes);
        true
    }

    fn is_full(&self) -> bool {
        let most = self.most.saturating_add(self.answers.load(Ordering::Relaxed));
        self.waiting() + self.held() > most || self.is_over()
    }

    fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Adds what is held back; `false` if so much waits already that it must not be.
    fn hold(&self, bytes: usize) -> bool {
        if self.is_full() {
            return false;
        }
        self.held.fetch_add(bytes as u64, Ordering::Relaxed);
        self.shared.sum.add(bytes as u64);
        true
    }

    /// Takes off what was held back: it is emitted now, or never.
    pub fn let_go(&self, bytes: u64) {
        self.shared.sum.take_off(less(&self.held, bytes));
    }

    /// Takes off what was written. Pings and headers of frames are written too: nothing waits where more was written
    /// than emitted.
    pub fn wrote(&self, bytes: usize) {
        self.take_off(bytes as u64);
        self.note_written(bytes);
        self.moved.notify_waiters();
    }

    fn note_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn take_off(&self, bytes: u64) {
        self.shared.sum.take_off(less(&self.waiting, bytes));
    }

    /// What waited leaves in an answer of so many bytes.
    pub fn leaves(self: &Arc<Self>, bytes: usize) -> Leaving {
        let bytes = bytes as u64;
        self.leaving.fetch_add(bytes, Ordering::Relaxed);
        self.shared.sum.add(bytes);
        self.take_off(bytes);
        Leaving { backlog: Arc::clone(self), bytes }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Whether its address, or all, have more than they may; who looks after them is told at once then, or one
    /// message to a full room would be that of hundreds.
    fn look_at_shared(&self) {
        let Some(backlogs) = self.shared.backlogs.upgrade() else { return };
        if self.shared.sum.is_beyond(backlogs.limits.shared()) {
            backlogs.relieve();
        }
    }

    /// Waits until the client has taken so much of what waits that something more may be read for it; `false` if it
    /// is gone.
    pub async fn room(&self) -> bool {
        loop {
            let moved = self.moved.notified();
            if self.is_over() {
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
        self.take_off(u64::MAX);
        self.let_go(u64::MAX);
        self.moved.notify_waiters();
        is_first
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.take_off(u64::MAX);
        self.let_go(u64::MAX);
    }
}

/// Makes a number smaller by so much, or nothing; by how much it did.
fn less(number: &AtomicU64, by: u64) -> u64 {
    let smaller = |number: u64| Some(number.saturating_sub(by));
    let before = number.fetch_update(Ordering::Relaxed, Ordering::Relaxed, smaller);
    before.unwrap_or_default().min(by)
}

/// An answer on its way: it waits for its socket, and among what waits for others, until it is dropped. That may be
/// later than the end of the socket.
pub struct Leaving {
    backlog: Arc<Backlog>,
    bytes: u64,
}

impl Leaving {
    /// So many bytes of it were taken; its memory is held all the same.
    pub fn took(&self, bytes: usize) {
        self.backlog.note_written(bytes);
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.backlog.shared.sum.take_off(less(&self.backlog.leaving, self.bytes));
        self.backlog.moved.notify_waiters();
    }
}

/// What waits for a socket, unless it is not connected yet.
pub fn of(socket: &SocketRef) -> Option<Arc<Backlog>> {
    socket.extensions.get()
}

/// Whether nothing more is emitted to a socket: too much waited for it.
pub fn is_over(socket: &SocketRef) -> bool {
    of(socket).is_some_and(|backlog| backlog.is_over())
}

/// Adds what is about to be emitted to a socket; `false` if it must not be: too much waits for it.
pub fn takes(socket: &SocketRef, bytes: usize) -> bool {
    of(socket).is_none_or(|backlog| weighed(&backlog, backlog.add(bytes)))
}

/// The same for what is held back, until [`Backlog::let_go`].
pub fn holds(socket: &SocketRef, bytes: usize) -> bool {
    of(socket).is_none_or(|backlog| weighed(&backlog, backlog.hold(bytes)))
}

fn weighed(backlog: &Backlog, takes: bool) -> bool {
    if takes {
        backlog.look_at_shared();
    } else if backlog.end() {
        METRICS.overfull(Overfull::Socket);
    }
    takes
}

/// What waits for all sockets.
pub struct Backlogs {
    limits: WaitingLimits,
    known: Mutex<HashMap<Sid, Known>>,
    sums: Sums,
    /// Sockets to disconnect.
    ended: Mutex<Vec<(SocketRef, Overfull)>>,
    /// Told of these.
    has_ended: Notify,
    /// When nobody was found that could be ended.
    in_vain: Mutex<Option<Instant>>,
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
        Arc::new(Self {
            limits,
            known: Mutex::default(),
            sums: Sums::default(),
            ended: Mutex::default(),
            has_ended: Notify::new(),
            in_vain: Mutex::default(),
        })
    }

    /// What waits for a socket of this address that is not connected yet: nothing.
    pub fn begin(self: &Arc<Self>, network: Option<IpAddr>) -> Arc<Backlog> {
        let shared = Shared { sum: self.sums.of(network), backlogs: Arc::downgrade(self) };
        Backlog::new(self.limits.socket, shared)
    }

    /// A socket is connected.
    pub fn add(&self, socket: &SocketRef, network: Option<IpAddr>, backlog: &Arc<Backlog>) {
        socket.extensions.insert(Arc::clone(backlog));
        backlog.is_over.store(false, Ordering::Relaxed);
        let known = Known {
            socket: socket.clone(),
            network,
            backlog: Arc::clone(backlog),
            written: (backlog.written.load(Ordering::Relaxed), Instant::now()),
        };
        self.lock().insert(socket.id, known);
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
        loop {
            let go_on = tokio::select! {
                go_on = pause(&stop, LOOK_INTERVAL) => go_on,
                () = self.has_ended.notified() => true,
            };
            if !go_on {
                return Ok(());
            }
            let mut ended = self.look();
            ended.append(&mut lock(&self.ended));
            // Not under the lock: a socket that ends is removed from here.
            for (socket, why) in ended {
                tracing::warn!(socket = %socket.id, why = why.as_str(), "too much waits for a socket, cutting it off");
                METRICS.overfull(why);
                disconnect(&socket);
            }
        }
    }

    /// Ends at once who has too much. Under whatever lock something was emitted: they are disconnected later.
    fn relieve(&self) {
        let mut in_vain = lock(&self.in_vain);
        if in_vain.is_some_and(|at| at.elapsed() < VAIN_PAUSE) {
            return;
        }
        let ended = self.look();
        *in_vain = ended.is_empty().then(Instant::now);
        drop(in_vain);
        lock(&self.ended).extend(ended);
        self.has_ended.notify_one();
    }

    /// Whom to disconnect: those that take nothing, then the largest of each address and of all that have too much.
    fn look(&self) -> Vec<(SocketRef, Overfull)> {
        let now = Instant::now();
        let mut known = self.lock();
        METRICS.waiting_bytes.set(self.sums.all().cast_signed());
        // One that was ended is there until the library has let go of it.
        let there = known.values_mut().filter(|one| !one.backlog.is_over());
        let mut waiting: Vec<_> = there
            .filter_map(|one| {
                let waiting = one.backlog.waiting();
                let untaken = one.untaken_for(waiting, now) >= UNTAKEN_MAX;
                let bytes = waiting + one.backlog.held();
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
        lock(&self.known)
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
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
        let backlog = Backlog::new(100, Shared::default());
        assert!(backlog.add(1_000));
        assert!(!backlog.add(1), "what waits is above its share");
        backlog.wrote(900);
        assert!(backlog.add(1), "it is down to its share");
        assert_eq!(backlog.waiting(), 101);
        assert!(!backlog.add(1));
    }

    #[test]
    fn who_is_given_a_large_answer_twice_is_not_ended_for_what_follows() {
        let backlog = Backlog::new(1_000_000, Shared::default());
        // As an event and as an ack.
        assert!(backlog.add(5_000_000) && backlog.add(5_000_000));
        for _ in 0..10 {
            assert!(backlog.add(100_000));
        }
        assert!(backlog.add(1));
        assert!(!backlog.add(1), "what follows has its own share");
        backlog.wrote(10_900_000);
        assert!(backlog.add(1), "there is room again");
        for _ in 0..5 {
            assert!(backlog.add(200_000));
        }
        assert!(!backlog.add(1), "and no answer waits");
    }

    #[test]
    fn what_is_written_beside_what_was_emitted_makes_no_room() {
        let backlog = Backlog::new(100, Shared::default());
        backlog.wrote(5_000);
        assert!(backlog.add(90));
        assert_eq!(backlog.waiting(), 90);
        assert!(backlog.add(90));
        assert!(!backlog.add(90));
    }

    #[test]
    fn what_is_held_back_counts_and_keeps_no_read_from_its_beginning() {
        let all: Arc<AtomicU64> = Arc::default();
        let sum = Sum { network: None, all: Arc::clone(&all) };
        let backlog = Backlog::new(1_000_000, Shared { sum, backlogs: Weak::new() });
        assert!(backlog.hold(600_000) && backlog.hold(600_000));
        assert!(backlog.has_room(), "it waits for the read");
        assert!(!backlog.hold(1) && !backlog.add(1));
        assert_eq!(all.load(Ordering::Relaxed), 1_200_000);
        backlog.let_go(1_200_000);
        assert!(backlog.add(1));
        assert_eq!(all.load(Ordering::Relaxed), 1);
        assert!(backlog.hold(1_000) && backlog.end());
        backlog.let_go(1_000);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_sums_are_those_of_what_waits_and_lose_what_ends() {
        let (network, all): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let shared = || Shared {
            sum: Sum { network: Some(Arc::clone(&network)), all: Arc::clone(&all) },
            backlogs: Weak::new(),
        };
        let sums = || [&network, &all].map(|sum| sum.load(Ordering::Relaxed));
        let (one, other) = (Backlog::new(100, shared()), Backlog::new(100, shared()));
        assert!(one.add(50) && other.add(30));
        one.wrote(20);
        assert_eq!(sums(), [60, 60]);
        one.wrote(1_000);
        assert_eq!(sums(), [30, 30], "more was written than emitted");
        assert!(one.add(7) && other.end());
        assert_eq!(sums(), [7, 7]);
        other.wrote(10);
        drop(one);
        assert_eq!(sums(), [0, 0]);
    }

    #[test]
    fn an_answer_waits_until_it_has_left_also_where_its_socket_ends_before() {
        let all: Arc<AtomicU64> = Arc::default();
        let sum = || all.load(Ordering::Relaxed);
        let sum_of_all = Sum { network: None, all: Arc::clone(&all) };
        let backlog = Backlog::new(1_000, Shared { sum: sum_of_all, backlogs: Weak::new() });
        assert!(backlog.add(900));
        // With what stands between packets.
        let answer = backlog.leaves(910);
        assert_eq!((backlog.waiting(), sum()), (910, 910));
        assert!(backlog.add(200), "what follows");
        answer.took(500);
        assert_eq!((backlog.waiting(), sum()), (1_110, 1_110));
        assert!(!backlog.add(1), "it counts among its share");
        drop(answer);
        assert_eq!((backlog.waiting(), sum()), (200, 200));
        let answer = backlog.leaves(201);
        assert!(backlog.end());
        assert_eq!(sum(), 201, "it is in memory still");
        drop(backlog);
        assert_eq!(sum(), 201);
        drop(answer);
        assert_eq!(sum(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_read_begins_when_the_last_answer_left_or_nobody_is_there() {
        let backlog = Backlog::new(u64::MAX, Shared::default());
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
