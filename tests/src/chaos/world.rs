//! What all parts of a run share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::Stack;

use super::arguments::Arguments;
use super::broken::Broken;
use super::feeds::Feed;
use super::ledger::Room;
use super::random::hash;
use super::spans::Spans;

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Talk.
    Talking,
    /// Send nothing new, and stay until everything was shown.
    Finishing,
    /// Say what is missing: the deadline is over.
    TooLate,
}

/// Clients that are to vanish.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leave {
    percent: u64,
    salt: u64,
    away: Duration,
}

/// A run.
#[derive(Debug)]
pub(super) struct World {
    pub(super) arguments: Arguments,
    pub(super) stack: Stack,
    pub(super) spans: Spans,
    pub(super) tally: Tally,
    pub(super) started: Instant,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) leave: watch::Sender<Leave>,
    /// Breakages so far.
    pub(super) broken: watch::Sender<Vec<Broken>>,
    rooms: Mutex<Vec<Arc<Room>>>,
    feeds: Mutex<Vec<Arc<Feed>>>,
    /// Sessions that are erased in this run.
    erased: Mutex<Vec<String>>,
    /// Sessions that are deleted by SQL in this run.
    deleted: Mutex<Vec<String>>,
    /// Subjects on which somebody else put records that are no requests.
    foreign: Mutex<Vec<String>>,
    recoveries: Mutex<Vec<Duration>>,
    drained: Mutex<Option<Duration>>,
    /// Processes that were asked to stop and said that they could not do it well.
    unclean: Mutex<Vec<String>>,
}

/// What is counted beside the rooms.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: AtomicU64,
    pub(super) emitted: AtomicU64,
    pub(super) acked: AtomicU64,
    pub(super) shown: AtomicU64,
    pub(super) resumed: AtomicU64,
    pub(super) mores: AtomicU64,
    /// Sends that were acked after the end of their session was asked for.
    pub(super) behind_an_end: AtomicU64,
    refused: Mutex<BTreeMap<String, u64>>,
    /// When each first ack came, and after how long.
    acks: Mutex<Vec<(Instant, Duration)>>,
}

impl World {
    pub(super) fn new(arguments: Arguments, stack: Stack) -> Self {
        Self {
            spans: Spans::new(Duration::from_secs(arguments.slack)),
            arguments,
            stack,
            tally: Tally::default(),
            started: Instant::now(),
            phase: watch::Sender::new(Phase::Talking),
            leave: watch::Sender::default(),
            broken: watch::Sender::default(),
            rooms: Mutex::default(),
            feeds: Mutex::default(),
            erased: Mutex::default(),
            deleted: Mutex::default(),
            foreign: Mutex::default(),
            recoveries: Mutex::default(),
            drained: Mutex::default(),
            unclean: Mutex::default(),
        }
    }

    /// A promise broke.
    pub(super) fn break_promise(&self, broken: Broken) {
        self.broken.send_modify(|all| all.push(broken));
    }

    pub(super) fn add_room(&self, room: &Arc<Room>) {
        lock(&self.rooms).push(Arc::clone(room));
    }

    pub(super) fn rooms(&self) -> Vec<Arc<Room>> {
        lock(&self.rooms).clone()
    }

    pub(super) fn add_feed(&self, feed: &Arc<Feed>) {
        lock(&self.feeds).push(Arc::clone(feed));
    }

    pub(super) fn feeds(&self) -> Vec<Arc<Feed>> {
        lock(&self.feeds).clone()
    }

    /// A session that is to be erased.
    pub(super) fn add_erased(&self, session: &str) {
        lock(&self.erased).push(session.to_owned());
    }

    pub(super) fn erased(&self) -> Vec<String> {
        lock(&self.erased).clone()
    }

    /// A session that is to be deleted by SQL.
    pub(super) fn add_deleted(&self, session: &str) {
        let mut deleted = lock(&self.deleted);
        if !deleted.iter().any(|known| known == session) {
            deleted.push(session.to_owned());
        }
    }

    pub(super) fn deleted(&self) -> Vec<String> {
        lock(&self.deleted).clone()
    }

    /// Somebody else put a record on this subject.
    pub(super) fn add_foreign(&self, subject: &str) {
        lock(&self.foreign).push(subject.to_owned());
    }

    pub(super) fn foreign(&self) -> Vec<String> {
        lock(&self.foreign).clone()
    }

    /// A full log takes sends again, so long after the persisters were back.
    pub(super) fn recovered(&self, took: Duration) {
        lock(&self.recoveries).push(took);
    }

    pub(super) fn recoveries(&self) -> Vec<Duration> {
        lock(&self.recoveries).clone()
    }

    /// Everything that was acked while Postgres was away is shown, so long after it was back.
    pub(super) fn has_drained(&self, took: Duration) {
        *lock(&self.drained) = Some(took);
    }

    pub(super) fn drained(&self) -> Option<Duration> {
        *lock(&self.drained)
    }

    /// A process did not end well though it was asked to.
    pub(super) fn ended_badly(&self, how: String) {
        lock(&self.unclean).push(how);
    }

    pub(super) fn bad_ends(&self) -> Vec<String> {
        lock(&self.unclean).clone()
    }
}

impl Tally {
    pub(super) fn refused(&self, code: &str) {
        *lock(&self.refused).entry(code.to_owned()).or_default() += 1;
    }

    pub(super) fn refusals(&self) -> BTreeMap<String, u64> {
        lock(&self.refused).clone()
    }

    pub(super) fn acked(&self, took: Duration) {
        count(&self.acked);
        lock(&self.acks).push((Instant::now(), took));
    }

    /// The acks of sends whose whole wait, from the send to the ack, is one of these: the shortest first, each with
    /// the instant of its send.
    pub(super) fn acks(
        &self,
        waited: impl Fn(Instant, Instant) -> bool,
    ) -> Vec<(Duration, Instant)> {
        let acks = lock(&self.acks).clone();
        let begun =
            acks.into_iter().filter_map(|(came, took)| Some((took, came.checked_sub(took)?)));
        let mut took: Vec<_> =
            begun.filter(|(took, begun)| waited(*begun, *begun + *took)).collect();
        took.sort_unstable();
        took
    }
}

impl Leave {
    pub(super) fn new(percent: u64, salt: u64, away: Duration) -> Self {
        Self { percent, salt, away }
    }

    /// How long this client is to be away, if it is among them.
    pub(super) fn concerns(&self, client: &str) -> Option<Duration> {
        let lot = (hash(client) ^ self.salt) % 100;
        (lot < self.percent).then_some(self.away)
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// So many so far.
pub(super) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
