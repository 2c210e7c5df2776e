//! A bounded queue per socket whose jobs run one after the other, in the order they came.
//!
//! The library spawns every handler, which loses that order, and takes events without a bound. A
//! lane costs nothing while it is empty: its task lives only as long as there are jobs.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

/// A queue of jobs. `J` knows how to run itself.
pub struct Lane<J> {
    state: Mutex<State<J>>,
    jobs_max: usize,
    bytes_max: usize,
}

struct State<J> {
    jobs: VecDeque<(J, usize)>,
    bytes: usize,
    running: bool,
}

/// Something that a lane runs.
pub trait Job: Send + 'static {
    /// Does the work; the next job starts when it is done.
    fn run(self) -> impl Future<Output = ()> + Send;
}

impl<J: Job> Lane<J> {
    /// A lane that holds so many jobs and so many bytes.
    pub fn new(jobs_max: usize, bytes_max: usize) -> Self {
        let state = State { jobs: VecDeque::new(), bytes: 0, running: false };
        Self { state: Mutex::new(state), jobs_max, bytes_max }
    }

    /// Queues a job of so many bytes; gives it back if the lane is full.
    pub fn push(self: &Arc<Self>, job: J, bytes: usize) -> Result<(), J> {
        let start = {
            let mut state = self.lock();
            // An empty lane takes a job of any size: sizes are limited elsewhere.
            let full = state.jobs.len() >= self.jobs_max || state.bytes + bytes > self.bytes_max;
            if full && !state.jobs.is_empty() {
                return Err(job);
            }
            state.jobs.push_back((job, bytes));
            state.bytes += bytes;
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            tokio::spawn(Arc::clone(self).run());
        }
        Ok(())
    }

    async fn run(self: Arc<Self>) {
        while let Some(job) = self.next() {
            job.run().await;
        }
    }

    fn next(&self) -> Option<J> {
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

    fn lock(&self) -> std::sync::MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    struct Number(u32, mpsc::UnboundedSender<u32>);

    impl Job for Number {
        async fn run(self) {
            // Even numbers take longer: the order must not depend on it.
            for _ in 0..(self.0 % 2) * 3 {
                tokio::task::yield_now().await;
            }
            self.1.send(self.0).unwrap();
        }
    }

    #[tokio::test]
    async fn jobs_run_in_the_order_they_came() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let lane = Arc::new(Lane::new(1_000, 1_000));
        for round in 0..10 {
            for number in 0..100 {
                assert!(lane.push(Number(round * 100 + number, sender.clone()), 1).is_ok());
            }
            for number in 0..100 {
                assert_eq!(receiver.recv().await, Some(round * 100 + number));
            }
        }
    }

    #[tokio::test]
    async fn a_full_lane_gives_the_job_back() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let by_count = Arc::new(Lane::new(2, 1_000));
        assert!((0..2).all(|n| by_count.push(Number(n, sender.clone()), 1).is_ok()));
        assert!(by_count.push(Number(9, sender.clone()), 1).is_err());
        let by_bytes = Arc::new(Lane::new(9, 10));
        assert!(
            by_bytes.push(Number(2, sender.clone()), 20).is_ok(),
            "an empty lane takes any size"
        );
        assert!(by_bytes.push(Number(9, sender.clone()), 1).is_err());
        for _ in 0..3 {
            assert_ne!(receiver.recv().await, Some(9));
        }
        assert!(by_count.push(Number(3, sender), 1).is_ok(), "room again");
    }
}
