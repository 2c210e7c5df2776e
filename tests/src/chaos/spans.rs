//! The faults as they really were, and what may be late because of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Link;

use super::schedule::{Target, What};

/// How long a fault may still be felt after it was mended.
const TAIL: Duration = Duration::from_secs(3);
/// A worker is replaced within 5 s; what it left must be stored and announced then.
const TAKEOVER: Duration = Duration::from_secs(6);
/// A worker that is asked to stop hands over at once.
const HANDOVER: Duration = Duration::from_secs(1);
/// Delivery goes on this long after NATS, Postgres or a proxy came back.
const RESUMES: Duration = Duration::from_secs(5);
/// The persisters find out that the database is another one, and replay.
const REPLAY: Duration = Duration::from_secs(10);
/// Delays below it are no silence that anybody asks about.
const SILENCE_MIN: Duration = Duration::from_millis(100);

/// Every fault that was made.
#[derive(Debug)]
pub(super) struct Spans {
    slack: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spans: Vec<Span>,
    /// Of each kind, the longest silence that overlapped with nothing else.
    alone: BTreeMap<String, Duration>,
    /// The longest of all, and the kinds that it overlapped with.
    longest: (Duration, BTreeSet<String>),
    /// The longest without a fault.
    calm: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    what: What,
    begun: Instant,
    ended: Option<Instant>,
}

/// A silence that was longer than its faults excuse.
#[derive(Debug)]
pub(super) struct TooLong {
    pub(super) took: Duration,
    pub(super) allowed: Duration,
    pub(super) faults: Vec<String>,
}

impl Spans {
    pub(super) fn new(slack: Duration) -> Self {
        Self { slack, state: Mutex::default() }
    }

    /// A fault begins; its number.
    pub(super) fn begin(&self, what: What) -> usize {
        let mut state = self.state();
        state.spans.push(Span { what, begun: Instant::now(), ended: None });
        state.spans.len() - 1
    }

    /// It is mended.
    pub(super) fn end(&self, number: usize) {
        if let Some(span) = self.state().spans.get_mut(number) {
            span.ended = Some(Instant::now());
        }
    }

    /// The faults of now, for the line of progress.
    pub(super) fn present(&self) -> Vec<String> {
        let state = self.state();
        state
            .spans
            .iter()
            .filter(|span| span.ended.is_none())
            .map(|span| span.what.to_string())
            .collect()
    }

    /// Every fault: when it was made, and for how long; from the start of the run.
    pub(super) fn account(&self, started: Instant) -> Vec<String> {
        let line = |span: &Span| {
            let begun = (span.begun - started).as_secs_f64();
            let lasted = match span.ended {
                Some(_) => format!("{:.2} s", span.lasted().as_secs_f64()),
                None => "until the end".to_owned(),
            };
            format!("{begun:8.2} s  {}, {lasted}", span.what)
        };
        self.state().spans.iter().map(line).collect()
    }

    /// Whether something was broken at any time between these, or was so shortly before that it may still be felt: who
    /// took over what a killed worker had is not done when that one is started again.
    pub(super) fn was_felt(&self, from: Instant, to: Instant) -> bool {
        let felt = |span: &Span| {
            let until = |ended| ended + span.felt_for().max(TAKEOVER);
            span.begun <= to && span.ended.is_none_or(|ended| from < until(ended))
        };
        self.state().spans.iter().any(felt)
    }

    /// What was mended last before this, and how long before.
    pub(super) fn mended_before(&self, at: Instant) -> Option<(String, Duration)> {
        let state = self.state();
        let ends = state.spans.iter().filter_map(|span| Some((span.ended?, span.what)));
        let (ended, what) =
            ends.filter(|(ended, _)| *ended <= at).max_by_key(|(ended, _)| *ended)?;
        Some((what.to_string(), at - ended))
    }

    /// Whether this gateway is stopped and started now.
    pub(super) fn restarts(&self, gateway: usize) -> bool {
        let stop = What::Stop(Target::Gateway(gateway));
        let now = |span: &Span| span.what == stop && span.ended.is_none();
        self.state().spans.iter().any(now)
    }

    /// How many there were of each kind.
    pub(super) fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for span in &self.state().spans {
            *counts.entry(span.what.kind()).or_default() += 1;
        }
        counts
    }

    /// A client of this gateway waited since then for a message that it is shown now.
    pub(super) fn silence(&self, since: Instant, gateway: usize) -> Result<(), TooLong> {
        let took = since.elapsed();
        let mut state = self.state();
        if took < SILENCE_MIN {
            return Ok(());
        }
        let felt: Vec<Span> = state.overlapping(since, gateway);
        let kinds: BTreeSet<String> = felt.iter().map(|span| span.what.kind()).collect();
        state.note(took, &kinds);
        let excuses = felt.iter().map(Span::excuses);
        check(took, self.slack + Duration::from_secs(1) + excuses.sum::<Duration>(), &felt)
    }

    /// A client of this gateway waited since then for any answer to a send. NATS and Postgres excuse
    /// nothing: the promise holds without them.
    pub(super) fn answer(&self, since: Instant, gateway: usize) -> Result<(), TooLong> {
        let took = since.elapsed();
        let mut felt = self.state().overlapping(since, gateway);
        felt.retain(|span| span.what.targets().contains(&Target::Gateway(gateway)));
        let asleep = felt.iter().filter(|span| matches!(span.what, What::Pause(_)));
        let excuses: Duration = asleep.map(|span| span.lasted() + TAIL).sum();
        check(took, RESUMES + self.slack + excuses, &felt)
    }

    /// The silences: alone by kind, without a fault, and the longest with its kinds.
    pub(super) fn silences(
        &self,
    ) -> (BTreeMap<String, Duration>, Duration, (Duration, BTreeSet<String>)) {
        let state = self.state();
        (state.alone.clone(), state.calm, state.longest.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn overlapping(&self, since: Instant, gateway: usize) -> Vec<Span> {
        let concerns = |span: &&Span| span.what.gateway().is_none_or(|index| index == gateway);
        let felt = |span: &&Span| span.ended.is_none_or(|ended| ended + span.felt_for() > since);
        self.spans.iter().filter(concerns).filter(felt).copied().collect()
    }

    fn note(&mut self, took: Duration, kinds: &BTreeSet<String>) {
        if took > self.longest.0 {
            self.longest = (took, kinds.clone());
        }
        if kinds.is_empty() {
            self.calm = self.calm.max(took);
        }
        if let (Some(kind), 1) = (kinds.first(), kinds.len()) {
            let longest = self.alone.entry(kind.clone()).or_default();
            *longest = took.max(*longest);
        }
    }
}

impl Span {
    fn lasted(&self) -> Duration {
        self.ended.unwrap_or_else(Instant::now) - self.begun
    }

    /// How long after it was mended.
    fn felt_for(&self) -> Duration {
        match self.what {
            // What is said while the log is read anew waits behind what stands there.
            What::Restore | What::OlderLog { .. } | What::LoseLog { .. } => REPLAY,
            _ => TAIL,
        }
    }

    /// How much later a message may come because of it.
    fn excuses(&self) -> Duration {
        match self.what {
            What::Stop(Target::Persister(_)) => HANDOVER,
            What::ClockStep(_)
            | What::Kill(Target::Persister(_))
            | What::Pause(Target::Persister(_))
            | What::Cut(Link::PersisterNats | Link::PersisterPostgres, _)
            | What::Freeze(Link::PersisterNats | Link::PersisterPostgres, _) => TAKEOVER,
            What::Restore => self.lasted() + REPLAY,
            What::Fill { .. } => self.lasted() + TAKEOVER,
            // The whole log is read anew.
            What::OlderLog { .. } | What::LoseLog { .. } => self.lasted() + TAKEOVER + REPLAY,
            What::Foreign { .. } | What::Leave { .. } => Duration::ZERO,
            _ => self.lasted() + RESUMES,
        }
    }
}

fn check(took: Duration, allowed: Duration, felt: &[Span]) -> Result<(), TooLong> {
    if took <= allowed {
        return Ok(());
    }
    let faults = felt.iter().map(|span| format!("{} ({:.1?})", span.what, span.lasted()));
    Err(TooLong { took, allowed, faults: faults.collect() })
}

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { took, allowed, faults } = self;
        write!(f, "{took:.1?} where {allowed:.1?} are excused by: {}", faults.join(", "))
    }
}
