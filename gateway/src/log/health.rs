//! Whether the log takes what it is given. NATS may be connected and store nothing: its disk is full, its
//! cluster has no leader, the log has no room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest time from a request's arrival to the log's answer. What the log took may wait for a second longer to be
/// stored, and a client hears within 5 s.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(3_500);
/// Refusals over this time, with nothing taken in between, are no passing fault: one request waits as long.
const STUCK_AFTER: Duration = ANSWER_TIMEOUT;
/// How long a refusal says something about now: where nobody sends, nobody is refused.
const REMEMBERED: Duration = Duration::from_secs(10);

/// What became of the last requests. Cheap to clone.
#[derive(Clone)]
pub struct LogHealth(Arc<Marks>);

struct Marks {
    begun: Instant,
    /// Since when nothing was taken, as far as refusals tell: milliseconds from the beginning, or [`NEVER`].
    failing: AtomicU64,
    /// The last refusal, likewise.
    refused: AtomicU64,
    told: AtomicBool,
}

const NEVER: u64 = u64::MAX;

impl Default for LogHealth {
    fn default() -> Self {
        let never = || AtomicU64::new(NEVER);
        let told = AtomicBool::default();
        Self(Arc::new(Marks { begun: Instant::now(), failing: never(), refused: never(), told }))
    }
}

impl LogHealth {
    /// Whether the log takes requests, as far as is known.
    pub fn is_open(&self) -> bool {
        let Marks { failing, refused, .. } = &*self.0;
        is_open(self.now(), failing.load(Ordering::Relaxed), refused.load(Ordering::Relaxed))
    }

    /// The log took a request.
    pub fn took(&self) {
        self.0.failing.store(NEVER, Ordering::Relaxed);
        if self.0.told.load(Ordering::Relaxed) && self.0.told.swap(false, Ordering::Relaxed) {
            tracing::info!("the log takes requests again");
        }
    }

    /// The log did not take a request that waited so long, or did not say so in time.
    pub fn refused(&self, waited: Duration) {
        let now = self.now();
        let failing = self.0.failing.load(Ordering::Relaxed);
        if failing == NEVER || is_long_ago(now, self.0.refused.load(Ordering::Relaxed)) {
            self.0.failing.store(now.saturating_sub(millis(waited)), Ordering::Relaxed);
        }
        self.0.refused.store(now, Ordering::Relaxed);
        if !self.is_open() && !self.0.told.swap(true, Ordering::Relaxed) {
            tracing::warn!("the log takes nothing: the log of nats-server may say why");
        }
    }

    fn now(&self) -> u64 {
        millis(self.0.begun.elapsed())
    }
}

fn is_open(now: u64, failing: u64, refused: u64) -> bool {
    failing == NEVER
        || is_long_ago(now, refused)
        || refused.saturating_sub(failing) < millis(STUCK_AFTER)
}

fn is_long_ago(now: u64, refused: u64) -> bool {
    now.saturating_sub(refused) > millis(REMEMBERED)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_closed_once_nothing_was_taken_for_as_long_as_a_request_waits() {
        assert!(is_open(0, NEVER, NEVER));
        assert!(is_open(60_000, 59_000, 60_000), "it may pass");
        assert!(!is_open(60_000, 55_500, 60_000));
        assert!(is_open(60_000, NEVER, 60_000), "the last one was taken");
        assert!(is_open(71_000, 55_000, 60_000), "long ago");
    }

    #[test]
    fn one_that_is_refused_at_once_after_a_long_silence_says_nothing() {
        let health = LogHealth::default();
        health.refused(Duration::ZERO);
        assert!(health.is_open());
    }
}
