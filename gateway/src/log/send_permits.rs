//! How many sends may wait for their first answer, of all clients together.
//!
//! A send that cannot be stored soon is better refused at once: behind a queue of seconds everything else comes too late
//! as well. How many can be stored soon differs by machine, so the bound follows how long they wait.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socketioxide::socket::Sid;
use tokio::time::Instant;

use crate::metrics::METRICS;

/// At 20,000 a second the last one waits for less than a second.
const MOST: usize = 16_384;
/// A few batches of a persister: fewer would make nothing faster where each commit is slow.
const LEAST: usize = 2_048;
/// One socket may have this part of the most, as many as its lane has, and takes this part of the room at most: whoever floods is
/// refused before others are, and who has much to say on a slow machine is not.
const SHARE: usize = 4;
/// So long may a send wait to be stored.
const TARGET: Duration = Duration::from_millis(500);
/// Pause between two changes of the bound.
const PAUSE: Duration = Duration::from_millis(100);
/// Where nothing is stored for so long Postgres is away: what bounds then is what the log takes.
const AWAY: Duration = Duration::from_secs(1);

/// Gives permits to sends.
pub struct SendPermits(Arc<Mutex<State>>);

/// Room for one send to wait, until it is released or dropped.
pub struct SendPermit {
    permits: Arc<Mutex<State>>,
    socket: Option<Sid>,
    given: Instant,
    is_held: bool,
}

struct State {
    /// Of each socket no more than its share: what is beyond takes nobody else's room.
    held: usize,
    by_socket: HashMap<Sid, usize>,
    bound: usize,
    changed: Instant,
    /// Since then one was refused.
    is_short: bool,
}

impl Default for SendPermits {
    fn default() -> Self {
        let (by_socket, changed) = (HashMap::new(), Instant::now());
        let mut state = State { held: 0, by_socket, bound: MOST, changed, is_short: false };
        state.set_bound(MOST);
        Self(Arc::new(Mutex::new(state)))
    }
}

impl SendPermits {
    /// Room for one more, of a socket or of a request; `None` if what waits already cannot be stored soon.
    pub fn get(&self, socket: Option<Sid>) -> Option<SendPermit> {
        if !lock(&self.0).take(socket) {
            return None;
        }
        let permits = Arc::clone(&self.0);
        Some(SendPermit { permits, socket, given: Instant::now(), is_held: true })
    }

    #[cfg(test)]
    pub fn held(&self) -> usize {
        lock(&self.0).held
    }
}

impl SendPermit {
    /// From here on it waits for what is stored, and for nothing before that.
    pub fn begin_wait(&mut self) {
        self.given = Instant::now();
    }

    /// Its send was answered.
    pub fn release(&mut self) {
        if std::mem::take(&mut self.is_held) {
            lock(&self.permits).give_back(self.socket);
        }
    }

    /// Its send was stored, whether it was answered before or not.
    pub fn stored(self) {
        let now = Instant::now();
        lock(&self.permits).note(now.saturating_duration_since(self.given), now);
    }
}

impl Drop for SendPermit {
    fn drop(&mut self) {
        self.release();
    }
}

impl State {
    /// Whether there was room for one more.
    fn take(&mut self, socket: Option<Sid>) -> bool {
        let has_room = |state: &mut Self| {
            let of_socket = socket.and_then(|socket| state.by_socket.get(&socket).copied());
            state.held < state.bound && of_socket.is_none_or(|held| held < MOST / SHARE)
        };
        if !has_room(self) {
            self.is_short = true;
            if self.changed.elapsed() > AWAY {
                self.set_bound(MOST);
            }
            if !has_room(self) {
                return false;
            }
        }
        let share = self.share();
        let of_socket = socket.map(|socket| self.by_socket.entry(socket).or_default());
        if of_socket.as_ref().is_none_or(|held| **held < share) {
            self.held += 1;
        }
        if let Some(held) = of_socket {
            *held += 1;
        }
        true
    }

    fn give_back(&mut self, socket: Option<Sid>) {
        let share = self.share();
        let Some(socket) = socket else {
            self.held -= 1;
            return;
        };
        let Entry::Occupied(mut held) = self.by_socket.entry(socket) else { return };
        if *held.get() <= share {
            self.held -= 1;
        }
        *held.get_mut() -= 1;
        if *held.get() == 0 {
            held.remove();
        }
    }

    fn share(&self) -> usize {
        self.bound / SHARE
    }

    fn set_bound(&mut self, bound: usize) {
        let counted = |share: usize| self.by_socket.values().map(|held| share.min(*held)).sum();
        let (before, now): (usize, usize) = (counted(self.share()), counted(bound / SHARE));
        self.held = self.held - before + now;
        self.bound = bound;
        METRICS.sends_waiting_max.set(i64::try_from(bound).unwrap_or(i64::MAX));
    }

    /// Half as many may wait where it takes too long: before it is a second, from where on sends are accepted and wait no
    /// more, and the log takes what was to be refused. More where it does not, and they are needed.
    fn note(&mut self, waited: Duration, now: Instant) {
        if now < self.changed + PAUSE {
            return;
        }
        if waited > TARGET {
            self.set_bound(LEAST.max(self.bound / 2));
        } else if self.is_short || waited < TARGET / 2 {
            self.set_bound(MOST.min(self.bound + self.bound / 8));
        }
        (self.changed, self.is_short) = (now, false);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    /// A machine that answers what is stored within a second as stored, and else accepts it.
    struct Machine {
        permits: SendPermits,
        waiting: VecDeque<(Instant, SendPermit)>,
        steps: usize,
        /// Steps between two commits.
        commit: usize,
    }

    impl Machine {
        fn new(commit: usize) -> Self {
            Self { permits: SendPermits::default(), waiting: VecDeque::new(), steps: 0, commit }
        }

        /// So many are sent, and can be stored, at each step for a while; says how many are refused.
        async fn run(&mut self, seconds: u64, sent: usize, stored: usize) -> usize {
            let mut refused = 0;
            for _ in 0..seconds * 100 {
                tokio::time::advance(STEP).await;
                self.steps += 1;
                let now = Instant::now();
                let taken: Vec<_> = (0..sent).filter_map(|_| self.permits.get(None)).collect();
                refused += sent - taken.len();
                self.waiting.extend(taken.into_iter().map(|permit| (now, permit)));
                if self.steps.is_multiple_of(self.commit) {
                    let stored = (stored * self.commit).min(self.waiting.len());
                    self.waiting.drain(..stored).for_each(|(_, permit)| permit.stored());
                }
                let stands_still = self.waits() > Duration::from_secs(1);
                for (at, permit) in &mut self.waiting {
                    if stands_still && *at + Duration::from_millis(200) < now {
                        permit.release();
                    }
                }
            }
            refused
        }

        /// How long what is stored next has waited.
        fn waits(&self) -> Duration {
            self.waiting.front().map_or(Duration::ZERO, |(at, _)| at.elapsed())
        }

        fn bound(&self) -> usize {
            self.permits.0.lock().unwrap().bound
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_twice_what_is_stored_half_is_refused_and_the_rest_stored_within_a_second() {
        for stored in [40, 150] {
            let mut machine = Machine::new(1);
            machine.run(5, 2 * stored, stored).await;
            let mut longest = Duration::ZERO;
            let mut refused = 0;
            for _ in 0..12 {
                refused += machine.run(1, 2 * stored, stored).await;
                longest = longest.max(machine.waits());
            }
            assert!(longest < Duration::from_secs(1), "{stored}: {longest:?}");
            let half = stored * 100 * 12;
            assert!((half * 9 / 10..=half * 11 / 10).contains(&refused), "{stored}: {refused}");
            // All of it is taken again soon after.
            machine.run(5, stored / 2, stored).await;
            assert_eq!(machine.run(1, stored / 2, stored).await, 0);
            assert_eq!(machine.bound(), MOST);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_stored_by_slow_commits_but_all_of_it_is_taken() {
        for commit in [15, 30, 60, 90] {
            let mut machine = Machine::new(commit);
            assert_eq!(machine.run(30, 8, 16).await, 0, "{commit}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_be_stored_is_taken_again_where_commits_are_slow_too() {
        let mut machine = Machine::new(30);
        machine.run(10, 200, 100).await;
        assert!(machine.bound() < MOST / 2, "{}", machine.bound());
        machine.run(10, 70, 100).await;
        assert_eq!(machine.run(5, 70, 100).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_refused_that_collects_while_postgres_is_away() {
        let mut machine = Machine::new(1);
        // It was busy before, which leaves less room.
        machine.run(5, 40, 20).await;
        assert_eq!(machine.bound(), LEAST);
        machine.run(2, 200, 0).await;
        assert_eq!(machine.run(13, 10, 0).await, 0);
        assert_eq!(machine.bound(), MOST);
        assert!(machine.waits() > Duration::from_secs(13));
        assert_eq!(machine.run(10, 10, 80).await, 0);
        assert_eq!(machine.waits(), Duration::ZERO);
    }

    #[test]
    fn one_socket_takes_a_share_of_the_room_however_much_it_sends() {
        let permits = SendPermits::default();
        let (flood, other) = (Some(Sid::new()), Some(Sid::new()));
        let all = |socket| -> Vec<_> { std::iter::from_fn(|| permits.get(socket)).collect() };
        let bound = |bound| permits.0.lock().unwrap().set_bound(bound);
        let mut of_flood = all(flood);
        bound(LEAST);
        let mut of_other = all(other);
        assert_eq!((of_flood.len(), of_other.len()), (MOST / SHARE, MOST / SHARE));
        assert_eq!(permits.held(), 2 * LEAST / SHARE);
        bound(LEAST + LEAST / 8);
        assert_eq!(permits.held(), 2 * (LEAST + LEAST / 8) / SHARE);
        of_flood.truncate(10);
        of_other.truncate(LEAST);
        assert_eq!(permits.held(), 10 + (LEAST + LEAST / 8) / SHARE);
        bound(MOST);
        assert_eq!(permits.held(), 10 + LEAST);
        drop((of_flood, of_other));
        assert_eq!(permits.held(), 0);
    }

    #[test]
    fn a_permit_that_is_dropped_gives_its_room_back_once() {
        let permits = SendPermits::default();
        let sockets: Vec<_> = (0..SHARE).map(|_| Some(Sid::new())).collect();
        let all = |socket| -> Vec<_> { std::iter::from_fn(|| permits.get(socket)).collect() };
        for _ in 0..3 {
            let mut of_sockets: Vec<_> = sockets.iter().map(|socket| all(*socket)).collect();
            assert!(of_sockets.iter().all(|held| held.len() == MOST / SHARE));
            assert!(all(None).is_empty());
            of_sockets[1].iter_mut().take(9).for_each(SendPermit::release);
            assert!(permits.get(sockets[0]).is_none());
            assert_eq!(all(sockets[1]).len(), 9);
            assert_eq!(all(None).len(), 9);
        }
        assert!(permits.0.lock().unwrap().by_socket.is_empty());
    }
}
