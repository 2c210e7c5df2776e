//! A bounded queue per socket whose jobs run one after the other, in the order they came.
//!
//! The library spawns every handler, which loses that order, and takes events without a bound. A
//! lane costs nothing while it is empty: its task lives only as long as there are jobs.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::transport::incoming::Kept;

/// A job's future is made when its turn comes: what waits takes no more memory than what it was given.
type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// A queue of jobs.
pub struct Lane {
    state: Mutex<State>,
    jobs_max: usize,
    bytes_max: usize,
    /// Among what else is kept of what its address sent.
    kept: Kept,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<(Job, usize)>,
    /// Slots that are not used yet.
    reserved: usize,
    /// Bytes of all these, and of the one that runs: it holds them still.
    bytes: usize,
    running: bool,
}

/// Room for one job in a lane; given back where it is not used.
pub struct Slot<'a> {
    lane: &'a Arc<Lane>,
    bytes: usize,
    is_used: bool,
}

impl Lane {
    /// A lane that holds so many jobs and so many bytes, fewer where much is kept of others of its address.
    pub fn new(jobs_max: usize, bytes_max: usize, kept: Kept) -> Self {
        Self { state: Mutex::default(), jobs_max, bytes_max, kept }
    }

    /// Room for a job of so many bytes; `None` if the lane is full.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Slot<'_>> {
        let mut state = self.lock();
        let waiting = state.jobs.len() + state.reserved;
        // An empty lane takes a job of any size: sizes are limited elsewhere.
        let is_full = waiting >= self.jobs_max || state.bytes + bytes > self.bytes_max;
        if is_full && (waiting > 0 || state.bytes > 0) {
            return None;
        }
        if self.kept.set((state.bytes + bytes) as u64).is_err() {
            self.keep(&state);
            return None;
        }
        state.reserved += 1;
        state.bytes += bytes;
        Some(Slot { lane: self, bytes, is_used: false })
    }

    async fn run(self: Arc<Self>) {
        let mut done = 0;
        while let Some((job, bytes)) = self.next(done) {
            job().await;
            done = bytes;
        }
    }

    /// The next job, after one of so many bytes that is done.
    fn next(&self, done: usize) -> Option<(Job, usize)> {
        let mut state = self.lock();
        state.bytes -= done;
        self.keep(&state);
        if let Some(job) = state.jobs.pop_front() {
            return Some(job);
        }
        state.running = false;
        // An idle socket holds no memory here.
        state.jobs = VecDeque::new();
        None
    }

    /// No more than this: it was taken, and less is no excess.
    fn keep(&self, state: &State) {
        self.kept.set(state.bytes as u64).ok();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot<'_> {
    /// Runs a job when those before it are done.
    pub fn run<F: Future<Output = ()> + Send + 'static>(
        mut self,
        job: impl FnOnce() -> F + Send + 'static,
    ) {
        self.is_used = true;
        let job: Job = Box::new(move || Box::pin(job()));
        let start = {
            let mut state = self.lane.lock();
            state.reserved -= 1;
            state.jobs.push_back((job, self.bytes));
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            tokio::spawn(Arc::clone(self.lane).run());
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.is_used {
            let mut state = self.lane.lock();
            state.reserved -= 1;
            state.bytes -= self.bytes;
            self.lane.keep(&state);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{Notify, mpsc};

    use super::*;
    use crate::transport::incoming::Incoming;
    use crate::transport::sums::Most;

    fn lane(jobs_max: usize, bytes_max: usize) -> Arc<Lane> {
        let incoming = Incoming::new(Most { address: u64::MAX, all: u64::MAX });
        Arc::new(Lane::new(jobs_max, bytes_max, incoming.of(None)))
    }

    type Sender = mpsc::UnboundedSender<u32>;

    /// Runs a job that says its number; `false` if the lane is full.
    fn run(lane: &Arc<Lane>, number: u32, bytes: usize, sender: &Sender) -> bool {
        let sender = sender.clone();
        let slot = lane.reserve(bytes);
        let is_free = slot.is_some();
        if let Some(slot) = slot {
            slot.run(move || async move {
                // Odd numbers take longer: the order must not depend on it.
                for _ in 0..(number % 2) * 3 {
                    tokio::task::yield_now().await;
                }
                sender.send(number).unwrap();
            });
        }
        is_free
    }

    #[tokio::test]
    async fn jobs_run_in_the_order_they_came() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let lane = lane(1_000, 1_000);
        for round in 0..10 {
            for number in 0..100 {
                assert!(run(&lane, round * 100 + number, 1, &sender));
            }
            for number in 0..100 {
                assert_eq!(receiver.recv().await, Some(round * 100 + number));
            }
        }
    }

    #[tokio::test]
    async fn a_full_lane_has_no_slot() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let by_count = lane(2, 1_000);
        assert!((0..2).all(|number| run(&by_count, number, 1, &sender)));
        assert!(by_count.reserve(1).is_none());
        let by_bytes = lane(9, 10);
        assert!(run(&by_bytes, 2, 20, &sender), "an empty lane takes any size");
        assert!(by_bytes.reserve(1).is_none());
        for _ in 0..3 {
            assert!(receiver.recv().await.is_some());
        }
        assert!(run(&by_count, 3, 1, &sender), "room again");
    }

    #[tokio::test]
    async fn a_job_that_runs_takes_room_until_it_is_done() {
        let lane = lane(9, 10);
        let (begun, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let job = {
            let (begun, done) = (Arc::clone(&begun), Arc::clone(&done));
            move || async move {
                begun.notify_one();
                done.notified().await;
            }
        };
        lane.reserve(20).unwrap().run(job);
        begun.notified().await;
        assert!(lane.reserve(1).is_none());
        done.notify_one();
        while lane.reserve(20).is_none() {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn lanes_of_an_address_share_what_may_be_kept_of_it() {
        let incoming = Incoming::new(Most { address: 1_000_000, all: u64::MAX });
        let address = |host| Some([192, 0, 2, host].into());
        let [one, same, other] =
            [1, 1, 2].map(|host| Arc::new(Lane::new(99, 4_000_000, incoming.of(address(host)))));
        let first = one.reserve(600_000).unwrap();
        let second = same.reserve(300_000).unwrap();
        assert!(same.reserve(200_000).is_none() && one.reserve(200_000).is_none());
        assert!(other.reserve(900_000).is_some(), "another address");
        assert!(same.reserve(100_000).is_some(), "what was refused is not kept");
        drop(first);
        assert!(same.reserve(600_000).is_some());
        drop(second);
    }

    #[test]
    fn a_slot_counts_until_it_is_given_back() {
        let lane = lane(1, 1_000);
        let slot = lane.reserve(1).unwrap();
        assert!(lane.reserve(1).is_none());
        drop(slot);
        assert!(lane.reserve(1).is_some());
    }
}
