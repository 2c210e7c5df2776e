//! Keeps a fixed rate: says when each message is due, on a thread of its own, which no load holds up.

use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

/// Tells senders in turn when their next message is due, until they are gone.
pub(super) fn start(rate: u64, senders: Vec<UnboundedSender<Instant>>) {
    thread::spawn(move || keep(rate, &senders));
}

fn keep(rate: u64, senders: &[UnboundedSender<Instant>]) {
    let begun = Instant::now();
    for (number, sender) in (0_u64..).zip(senders.iter().cycle()) {
        let due = begun + Duration::from_nanos(number.saturating_mul(1_000_000_000) / rate.max(1));
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            thread::sleep(early);
        }
        if sender.send(due).is_err() {
            return;
        }
    }
}
