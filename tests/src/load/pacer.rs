//! Keeps a fixed rate: says when each message is due, on a thread of its own, which no load holds up.

use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

/// Shortest sleep: at high rates waking up for every message would take the time that is measured. What
/// is sent so much too late counts from when it was due all the same.
const SLEEPS_FOR: Duration = Duration::from_micros(250);

/// Tells senders in turn when their next messages are due, so many at once, until they are gone.
pub(super) fn start(rate: u64, burst: u64, senders: Vec<UnboundedSender<Instant>>) {
    thread::spawn(move || keep(rate, burst.max(1), &senders));
}

fn keep(rate: u64, burst: u64, senders: &[UnboundedSender<Instant>]) {
    let begun = Instant::now();
    for (number, sender) in (0_u64..).zip(senders.iter().cycle()) {
        let nanos = (number * burst).saturating_mul(1_000_000_000) / rate.max(1);
        let due = begun + Duration::from_nanos(nanos);
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            thread::sleep(early.max(SLEEPS_FOR));
        }
        for _ in 0..burst {
            if sender.send(due).is_err() {
                return;
            }
        }
    }
}
