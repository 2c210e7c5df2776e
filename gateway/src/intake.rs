//! Whether the log takes what it is given. NATS may be connected and store nothing: its disk is full, its
//! cluster has no leader, the log has no room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Refusals over this time, with nothing taken in between, are no passing fault. It is as long as one
/// request waits for its answer: see [`crate::publisher`].
const STUCK_AFTER: Duration = Duration::from_millis(4_500);
/// How long a refusal says something about now: where nobody sends, nobody is refused.
const REMEMBERED: Duration = Duration::from_secs(10);

/// What became of requests of late. Cheap to clone.
#[derive(Clone)]
pub struct Intake(Arc<Marks>);

struct Marks {
    begun: Instant,
    /// Milliseconds from the beginning to the last request that was taken.
    taken: AtomicU64,
    /// The same for the last one that was not; 0 if there was none.
    refused: AtomicU64,
    told: AtomicBool,
}

impl Default for Intake {
    fn default() -> Self {
        let (taken, refused, told) = Default::default();
        Self(Arc::new(Marks { begun: Instant::now(), taken, refused, told }))
    }
}

impl Intake {
    /// Whether the log takes requests, as far as is known.
    pub fn is_open(&self) -> bool {
        let Marks { taken, refused, .. } = &*self.0;
        is_open(self.now(), taken.load(Ordering::Relaxed), refused.load(Ordering::Relaxed))
    }

    /// The log took a request.
    pub fn took(&self) {
        self.0.taken.store(self.now(), Ordering::Relaxed);
        if self.0.told.load(Ordering::Relaxed) && self.0.told.swap(false, Ordering::Relaxed) {
            tracing::info!("the log takes requests again");
        }
    }

    /// The log did not take a request, or did not say so in time.
    pub fn refused(&self) {
        self.0.refused.store(self.now(), Ordering::Relaxed);
        if !self.is_open() && !self.0.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("the log takes nothing: the log of nats-server may say why");
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn is_open(now: u64, taken: u64, refused: u64) -> bool {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let forgotten = now.saturating_sub(refused) > millis(REMEMBERED);
    forgotten || refused.saturating_sub(taken) < millis(STUCK_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_closed_once_nothing_was_taken_for_as_long_as_a_request_waits() {
        assert!(is_open(0, 0, 0));
        assert!(is_open(20_000, 0, 0), "nobody sends");
        assert!(is_open(60_000, 59_000, 60_000), "one of many");
        assert!(!is_open(60_000, 55_000, 60_000));
        assert!(is_open(60_000, 60_000, 59_999), "the last one was taken");
        assert!(is_open(71_000, 55_000, 60_000), "long ago");
    }
}
