//! The slowest of the last while.

use std::time::Duration;

use tokio::time::Instant;

/// What is older than twice this is forgotten.
const HALF: Duration = Duration::from_secs(5);

/// The longest of what was added within the last 5 to 10 s.
#[derive(Default)]
pub struct Slowest {
    begun: Option<Instant>,
    now: Duration,
    before: Duration,
}

impl Slowest {
    pub fn add(&mut self, at: Instant, took: Duration) {
        self.turn(at);
        self.now = self.now.max(took);
    }

    pub fn get(&mut self, at: Instant) -> Duration {
        self.turn(at);
        self.now.max(self.before)
    }

    fn turn(&mut self, at: Instant) {
        let begun = *self.begun.get_or_insert(at);
        let age = at.saturating_duration_since(begun);
        if age < HALF {
            return;
        }
        let last = std::mem::take(&mut self.now);
        self.before = if age < 2 * HALF { last } else { Duration::ZERO };
        self.begun = Some(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_ago_counts_no_more() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut slowest = Slowest::default();
        slowest.add(at(0), Duration::from_millis(300));
        slowest.add(at(1), Duration::from_millis(100));
        assert_eq!(slowest.get(at(4)), Duration::from_millis(300));
        slowest.add(at(6), Duration::from_millis(200));
        assert_eq!(slowest.get(at(6)), Duration::from_millis(300));
        assert_eq!(slowest.get(at(12)), Duration::from_millis(200));
        assert_eq!(slowest.get(at(30)), Duration::ZERO);
    }
}
