//! What all clients of a run count together.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::figures::{float, histogram};

/// The code of a send that was surely not taken.
pub(super) const OVERLOADED: &str = "overloaded";
/// What is shown later is of no use to who waits for it.
pub(super) const IN_TIME: Duration = Duration::from_secs(2);

/// Counts of a run; everything is on one thread.
#[derive(Debug)]
pub(super) struct Tally {
    /// From when on messages are measured.
    begin: Cell<Option<Instant>>,
    /// Until when.
    end: Cell<Option<Instant>>,
    pub(super) sent: Cell<u64>,
    pub(super) acked: Cell<u64>,
    /// Shown to those who sent them.
    pub(super) seen: Cell<u64>,
    /// Shown to anybody.
    pub(super) shown: Cell<u64>,
    pub(super) refused: RefCell<BTreeMap<String, u64>>,
    /// From sending, or from when it was due, until the sender was shown it; microseconds.
    pub(super) delivery: RefCell<Histogram<u64>>,
    /// Until it was acked.
    pub(super) ack: RefCell<Histogram<u64>>,
    /// As `delivery`, of the last second.
    recent: RefCell<Histogram<u64>>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            begin: Cell::default(),
            end: Cell::default(),
            sent: Cell::default(),
            acked: Cell::default(),
            seen: Cell::default(),
            shown: Cell::default(),
            refused: RefCell::default(),
            delivery: RefCell::new(histogram()),
            ack: RefCell::new(histogram()),
            recent: RefCell::new(histogram()),
        }
    }

    /// Measures what is sent from now on.
    pub(super) fn begin(&self) {
        self.begin.set(Some(Instant::now()));
    }

    /// Measures nothing that is sent from now on.
    pub(super) fn end(&self) {
        self.end.set(Some(Instant::now()));
    }

    fn is_measured(&self, sent: Instant) -> bool {
        self.begin.get().is_some_and(|begin| sent >= begin)
            && self.end.get().is_none_or(|end| sent < end)
    }

    pub(super) fn on_ack(&self, sent: Instant) {
        add(&self.acked);
        if self.is_measured(sent) {
            self.ack.borrow_mut().saturating_record(micros(sent.elapsed()));
        }
    }

    pub(super) fn on_refusal(&self, code: &str) {
        *self.refused.borrow_mut().entry(code.to_owned()).or_default() += 1;
    }

    /// The sender was shown its own message.
    pub(super) fn on_delivery(&self, sent: Instant) {
        add(&self.seen);
        let took = micros(sent.elapsed());
        self.recent.borrow_mut().saturating_record(took);
        if self.is_measured(sent) {
            self.delivery.borrow_mut().saturating_record(took);
        }
    }

    /// Messages for each second of the measured time that their senders were shown [`IN_TIME`].
    pub(super) fn shown_in_time(&self) -> Option<f64> {
        let measured = self.end.get()?.duration_since(self.begin.get()?);
        let in_time = self.delivery.borrow().count_between(0, micros(IN_TIME));
        Some(float(in_time) / measured.as_secs_f64())
    }

    /// Sends that were answered with an error.
    pub(super) fn refusals(&self) -> u64 {
        self.refused.borrow().values().sum()
    }

    /// Sends that were surely not taken. Of those that were answered with another error nobody knows.
    pub(super) fn surely_not_taken(&self) -> u64 {
        self.refused.borrow().get(OVERLOADED).copied().unwrap_or_default()
    }

    /// Shows progress every second until it is dropped.
    pub(super) async fn show_progress(&self) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.tick().await;
        let mut seen = self.seen.get();
        loop {
            second.tick().await;
            let now = self.seen.get();
            let mut recent = self.recent.borrow_mut();
            let millis = |quantile| Duration::from_micros(recent.value_at_quantile(quantile));
            println!(
                "  {:>7}/s  p50 {:>8.1?}  p99 {:>8.1?}  most {:>8.1?}  sent {:>9}  acked {:>9}  shown {:>9}  refused {:>7}",
                now - seen,
                millis(0.5),
                millis(0.99),
                millis(1.0),
                self.sent.get(),
                self.acked.get(),
                self.shown.get(),
                self.refusals(),
            );
            recent.reset();
            seen = now;
        }
    }
}

/// One more.
pub(super) fn add(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
