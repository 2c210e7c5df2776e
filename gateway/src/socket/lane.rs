//! A bounded queue per socket whose jobs run one after the other, in the order they came.
//!
//! The library spawns every handler, which loses that order, and takes events without a bound. A
//! lane costs nothing while it is empty: its task lives only as long as there are jobs.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A job's future is made when its turn comes: what waits takes no more memory than what it was given.
type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// A queue of jobs.
pub struct Lane {
    state: Mutex<State>,
    jobs_max: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<(Job, usize)>,
    /// Slots that are not used yet.
    reserved: usize,
    /// Bytes of all these.
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
    /// A lane that holds so many jobs and so many bytes.
    pub fn new(jobs_max: usize, bytes_max: usize) -> Self {
        Self { state: Mutex::default(), jobs_max, bytes_max }
    }

    /// Room for a job of so many bytes; `None` if the lane is full.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Slot<'_>> {
        let mut state = self.lock();
        let waiting = state.jobs.len() + state.reserved;
        // An empty lane takes a job of any size: sizes are limited elsewhere.
        let is_full = waiting >= self.jobs_max || state.bytes + bytes > self.bytes_max;
        if is_full && waiting > 0 {
            return None;
        }
        state.reserved += 1;
        state.bytes += bytes;
        Some(Slot { lane: self, bytes, is_used: false })
    }

    async fn run(self: Arc<Self>) {
        while let Some(job) = self.next() {
            job().await;
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        if let Some((job, bytes)) = state.jobs.pop_front() {
            state.bytes -= bytes;
            return Some(job);
        }
        state.running = false;
        // An idle socket holds no memory here.
        state.jobs = VecDeque::new();
        None
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
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

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
        let lane = Arc::new(Lane::new(1_000, 1_000));
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
        let by_count = Arc::new(Lane::new(2, 1_000));
        assert!((0..2).all(|number| run(&by_count, number, 1, &sender)));
        assert!(by_count.reserve(1).is_none());
        let by_bytes = Arc::new(Lane::new(9, 10));
        assert!(run(&by_bytes, 2, 20, &sender), "an empty lane takes any size");
        assert!(by_bytes.reserve(1).is_none());
        for _ in 0..3 {
            assert!(receiver.recv().await.is_some());
        }
        assert!(run(&by_count, 3, 1, &sender), "room again");
    }

    #[test]
    fn a_slot_counts_until_it_is_given_back() {
        let lane = Arc::new(Lane::new(1, 1_000));
        let slot = lane.reserve(1).unwrap();
        assert!(lane.reserve(1).is_none());
        drop(slot);
        assert!(lane.reserve(1).is_some());
    }
}
