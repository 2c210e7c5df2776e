//! How much runs at once on this machine, whatever number of tests is under way.

use std::cell::Cell;
use std::sync::LazyLock;
use std::thread;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::wait::must;

/// Processes of stacks for each processor: most of them wait most of the time.
const PROCESSES: usize = 4;

static PLACES: LazyLock<usize> =
    LazyLock::new(|| PROCESSES * thread::available_parallelism().map_or(1, usize::from));
static FREE: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(*PLACES));

thread_local! {
    /// Whether this thread's test has room already.
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// Room for a stack, given back with this value.
#[derive(Debug)]
pub(crate) struct Room(Option<SemaphorePermit<'static>>);

impl Room {
    /// Waits for room for so many processes. A test's second stack has it at once: tests that wait for room while
    /// they keep some would wait for each other.
    pub(crate) async fn take(processes: usize) -> Self {
        if TAKEN.replace(true) {
            return Self(None);
        }
        let places = must(u32::try_from(processes.min(*PLACES)), "counting processes");
        Self(Some(must(FREE.acquire_many(places).await, "waiting for room")))
    }

    /// All of it, for what races against a time-out of the kernel.
    pub(crate) fn whole() -> usize {
        *PLACES
    }

    /// Half of the machine, for what keeps a processor busy.
    pub(crate) fn half() -> usize {
        *PLACES / 2
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.0.is_some() {
            TAKEN.set(false);
        }
    }
}
