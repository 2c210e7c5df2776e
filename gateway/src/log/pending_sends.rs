//! Sends whose fate is not known yet: kept by the message's id from before they are published, since a commit may be
//! announced before the log's own answer has come.
//!
//! A send is answered by its fate in Postgres: stored, before its own `message`, or refused. Where that takes
//! longer than `STORED_WAIT` its partition *stands still*: from then on a send is answered as accepted once
//! nats-server has surely synced it, and its fate is waited for all the same.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use shared::announcement::{Epoch, Fate, Position};
use shared::ids::{MessageId, SessionId};
use shared::lifecycle::Stop;
use shared::partition::Partition;
use shared::record::Record;
use shared::settings::{Settings, Span};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::db::rows::{Found, Sought, Words};
use crate::error::{ClientError, ErrorCode};
use crate::log::send_permits::SendPermit;
use crate::log::slowest::Slowest;
use crate::metrics::METRICS;

/// What a send takes in memory beside its record, about.
const SEND_BYTES: usize = 512;
/// Sends that are due are answered together, at most this often.
const PAUSE: Duration = Duration::from_millis(5);
/// A slower answer of the log is not waited for twice: a client hears within 5 s.
const SLOWEST_MAX: Duration = Duration::from_millis(500);
/// What the log took is stored, and told of, within a fraction of this.
const MISSED_AFTER: Duration = Duration::from_secs(1);
/// No partition has it: epochs are random and positive.
const NO_EPOCH: Epoch = Epoch(-1);
/// Sends whose fates are looked for at a time.
const SOUGHT_MAX: usize = 500;
/// Sends of the same at a time: each hears of the fates of all. A socket may send as many at once.
const SAME_MAX: usize = 256;

/// When a send is acked.
#[derive(Debug, Clone, Copy)]
pub struct AckSettings {
    /// Longest wait, after the log has it, for it to be stored.
    pub stored_wait: Duration,
    /// How often nats-server syncs the log.
    pub log_sync: Duration,
    /// Most bytes of what was acked and is not stored.
    pub guard_bytes: usize,
}

impl AckSettings {
    pub fn read(settings: &mut Settings) -> Self {
        Self {
            stored_wait: settings.get::<Span>("STORED_WAIT").0,
            log_sync: settings.get::<Span>("LOG_SYNC").0,
            guard_bytes: settings.number("GUARD_BYTES", 0..=usize::MAX),
        }
    }
}

/// What became of a send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is committed in Postgres.
    Stored,
    /// It is in the log, and synced there. Only a failure is told after that.
    Accepted,
    Failed(ClientError),
}

/// Somebody who waits for what becomes of a send.
pub trait Waiter: Send {
    fn tell(&mut self, outcome: Outcome);
}

/// Nobody waits: it is only kept until it is stored.
pub struct Nobody;

impl Waiter for Nobody {
    fn tell(&mut self, _: Outcome) {}
}

/// By what it is told which send an announcement is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// A change of a session too, whose id is made as that of a message.
    Message(MessageId),
    Opening(SessionId),
    Erasure(SessionId),
}

/// A request on its way.
pub struct Outgoing {
    pub session: SessionId,
    pub key: Key,
    /// Whether nobody can send the same again.
    pub is_unique: bool,
    /// Its record.
    pub payload: Bytes,
    /// Released once its waiter is told anything. Openings and erasures need none.
    pub permit: Option<SendPermit>,
}

/// Names a send that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    pub partition: Partition,
    number: u64,
}

/// What was told of a record: announced by who stored it, or read from Postgres.
#[derive(Clone, Copy)]
pub struct Told<'a> {
    pub sequence: u64,
    pub session: SessionId,
    pub fate: Fate,
    /// The message, where it is stored.
    pub message: Option<&'a RawValue>,
}

/// Sends whose fate is not known yet.
pub struct PendingSends {
    state: Mutex<State>,
    settings: AckSettings,
    /// Something is due earlier than was known.
    earlier: Notify,
    /// The log is not the one that took what is kept.
    replaced: Notify,
}

/// A request that the log took, and that is not known to be stored.
pub struct Kept {
    pub ticket: Ticket,
    pub sought: Sought,
    /// Its record.
    pub payload: Bytes,
}

#[derive(Default)]
struct State {
    begun: u64,
    by_key: HashMap<Key, Vec<Ticket>>,
    queues: HashMap<Partition, Queue>,
    /// Those that were accepted, oldest first; some are settled since.
    accepted: VecDeque<Ticket>,
    accepted_bytes: usize,
    slowest: Slowest,
    wakes_at: Option<Instant>,
    /// Behind the last one whose fate was looked for: those from here on have their turn first.
    sought_from: u64,
}

/// The sends of a partition, in the order in which they were published.
#[derive(Default)]
struct Queue {
    sends: BTreeMap<u64, Pending>,
    /// Those on which the log has not answered.
    in_flight: BTreeMap<u64, InFlight>,
    /// All before this one are answered.
    unanswered: u64,
}

struct InFlight {
    session: SessionId,
    /// The record of a later send of the session.
    overtaken_by: Option<u64>,
}

struct Pending {
    send: Outgoing,
    waiter: Box<dyn Waiter>,
    taken: Option<Taken>,
    /// What was announced of its id before the log's answer told which record is its own.
    heard: Vec<(u64, Fate)>,
    is_accepted: bool,
}

/// The log has it.
#[derive(Clone, Copy)]
struct Taken {
    sequence: u64,
    at: Instant,
}

impl PendingSends {
    pub fn new(settings: AckSettings) -> Self {
        Self { state: Mutex::default(), settings, earlier: Notify::new(), replaced: Notify::new() }
    }

    /// Keeps a send; to be called before it is published. Nothing where the same is sent too often: its waiter is
    /// told.
    pub fn begin(
        &self,
        partition: Partition,
        send: Outgoing,
        mut waiter: Box<dyn Waiter>,
    ) -> Option<Ticket> {
        let mut state = self.lock();
        let number = state.begun;
        let ticket = Ticket { partition, number };
        let same = state.by_key.entry(send.key.clone()).or_default();
        if same.len() >= SAME_MAX {
            drop(state);
            waiter.tell(Outcome::Failed(ClientError::overloaded()));
            return None;
        }
        same.push(ticket);
        state.begun += 1;
        let queue = state.queues.entry(partition).or_default();
        if queue.sends.is_empty() {
            queue.unanswered = number;
        }
        queue.in_flight.insert(number, InFlight { session: send.session, overtaken_by: None });
        let pending = Pending { send, waiter, taken: None, heard: Vec::new(), is_accepted: false };
        queue.sends.insert(number, pending);
        METRICS.pending_sends.inc();
        Some(ticket)
    }

    /// The log has it, as this record, and took so long to say so.
    pub fn taken(&self, ticket: Ticket, sequence: u64, waited: Duration) {
        let mut state = self.lock();
        let at = Instant::now();
        state.slowest.add(at, waited);
        state.log_answered(ticket, Some(sequence));
        let Some(pending) = state.get_mut(ticket) else { return };
        pending.taken = Some(Taken { sequence, at });
        tracing::debug!(
            message_id = pending.send.message_id(), session = pending.send.session.short(),
            partition = %ticket.partition, sequence, "accepted"
        );
        let heard = pending.heard.iter().find(|(of, _)| *of == sequence).map(|(_, fate)| *fate);
        if let Some(outcome) = heard.and_then(outcome) {
            return state.finish(ticket, outcome);
        }
        let is_still = state.queue(ticket).is_some_and(|it| it.stands_still(at, &self.settings));
        let wait =
            if is_still { state.sync_wait(&self.settings) } else { self.settings.stored_wait };
        if state.wakes_at.is_none_or(|wakes_at| at + wait < wakes_at) {
            self.earlier.notify_one();
        }
    }

    /// It is not in the log, or nobody knows.
    pub fn failed(&self, ticket: Ticket, error: ClientError) {
        let mut state = self.lock();
        state.log_answered(ticket, None);
        state.finish(ticket, Outcome::Failed(error));
    }

    /// Answers those that sent what this was told of.
    pub fn settle(&self, key: &Key, told: Told<'_>) {
        let mut state = self.lock();
        for ticket in state.by_key.get(key).cloned().unwrap_or_default() {
            let Some(pending) = state.get_mut(ticket) else { continue };
            match pending.outcome_of(told) {
                Some(outcome) => state.finish(ticket, outcome),
                None if pending.taken.is_none() => {
                    pending.heard.push((told.sequence, told.fate));
                }
                None => {}
            }
        }
    }

    /// Answers sends that are due, until the stop.
    pub async fn run(&self, stop: Stop) -> anyhow::Result<()> {
        loop {
            let next = self.answer_due();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.max(Instant::now() + PAUSE)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.earlier.notified() => {}
                () = due => {}
            }
        }
    }

    /// Accepts what is due, and says when to look again.
    fn answer_due(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.lock();
        let wait = state.sync_wait(&self.settings);
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        for (partition, queue) in &state.queues {
            let at = if queue.stands_still(now, &self.settings) {
                let (ready, later) = queue.synced(now, wait);
                due.extend(
                    ready.into_iter().map(|number| Ticket { partition: *partition, number }),
                );
                later
            } else {
                queue.oldest().map(|oldest| oldest.at + self.settings.stored_wait)
            };
            next = [next, at].into_iter().flatten().min();
        }
        for ticket in due {
            state.accept(ticket);
        }
        state.evict(self.settings.guard_bytes);
        state.wakes_at = next;
        next
    }

    /// Sends that the log took long ago, in front of where their partition stands: what was announced of them
    /// was missed.
    pub fn missed(
        &self,
        position: impl Fn(Partition) -> Option<Position>,
    ) -> Vec<(Ticket, Sought)> {
        let now = Instant::now();
        let mut state = self.lock();
        let mut missed = Vec::new();
        for (partition, queue) in &state.queues {
            let Some(stands_at) = position(*partition) else { continue };
            missed.extend(queue.sends.iter().filter_map(|(number, pending)| {
                let taken = pending.taken?;
                let is_missed =
                    taken.sequence <= stands_at.sequence && taken.at + MISSED_AFTER <= now;
                let ticket = Ticket { partition: *partition, number: *number };
                let position = Position { sequence: taken.sequence, ..stands_at };
                is_missed.then_some((ticket, position))
            }));
        }
        // Those that Postgres knows nothing of keep their places, and must not hold up the others.
        missed
            .sort_unstable_by_key(|(ticket, _)| (ticket.number < state.sought_from, ticket.number));
        missed.truncate(SOUGHT_MAX);
        state.sought_from = missed.last().map_or(0, |(ticket, _)| ticket.number + 1);
        let sought = |(ticket, position): (Ticket, Position)| {
            let pending = state.queue(ticket)?.sends.get(&ticket.number)?;
            Some((ticket, pending.send.sought(position)))
        };
        missed.into_iter().filter_map(sought).collect()
    }

    /// The newest record that the log took: where, and what.
    pub fn newest(&self) -> Option<(u64, Bytes)> {
        let state = self.lock();
        let all = state.queues.values().flat_map(|queue| queue.sends.values());
        let taken = all.filter_map(|it| Some((it.taken?.sequence, &it.send.payload)));
        let newest = taken.max_by_key(|(sequence, _)| *sequence);
        newest.map(|(sequence, payload)| (sequence, payload.clone()))
    }

    /// Everything that the log took, in the order in which it was published.
    pub fn kept(&self) -> Vec<Kept> {
        let state = self.lock();
        let mut kept = Vec::new();
        for (partition, queue) in &state.queues {
            kept.extend(queue.sends.iter().filter_map(|(number, pending)| {
                let sequence = pending.taken?.sequence;
                Some(Kept {
                    ticket: Ticket { partition: *partition, number: *number },
                    sought: pending.send.sought(Position { epoch: NO_EPOCH, sequence }),
                    payload: pending.send.payload.clone(),
                })
            }));
        }
        kept.sort_unstable_by_key(|kept| kept.ticket.number);
        kept
    }

    /// A persister says that the log is another one.
    pub fn note_another_log(&self) {
        self.replaced.notify_one();
    }

    /// Resolves when it did.
    pub async fn log_replaced(&self) {
        self.replaced.notified().await;
    }

    /// Answers a send by what Postgres has of it; where its partition has passed it, also by that this is nothing.
    pub fn found(&self, ticket: Ticket, found: &Found, is_passed: bool) {
        let mut state = self.lock();
        let Some(pending) = state.get_mut(ticket) else { return };
        let missing = (is_passed && pending.send.is_change()).then_some(Fate::Missing);
        if let Some(outcome) = pending.send.fate(found).or(missing).and_then(outcome) {
            METRICS.fates_sought.inc();
            state.finish(ticket, outcome);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn queue(&self, ticket: Ticket) -> Option<&Queue> {
        self.queues.get(&ticket.partition)
    }

    fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Pending> {
        self.queues.get_mut(&ticket.partition)?.sends.get_mut(&ticket.number)
    }

    fn log_answered(&mut self, ticket: Ticket, sequence: Option<u64>) {
        if let Some(queue) = self.queues.get_mut(&ticket.partition) {
            queue.log_answered(ticket.number, sequence);
        }
    }

    /// How long after it was taken a record is surely on the disk of nats-server: that syncs at an interval, and the
    /// answer may have been on its way.
    fn sync_wait(&mut self, settings: &AckSettings) -> Duration {
        2 * settings.log_sync + 2 * self.slowest.get(Instant::now()).min(SLOWEST_MAX)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Pending> {
        let queue = self.queues.get_mut(&ticket.partition)?;
        let pending = queue.sends.remove(&ticket.number)?;
        if let Some(tickets) = self.by_key.get_mut(&pending.send.key) {
            tickets.retain(|other| *other != ticket);
            if tickets.is_empty() {
                self.by_key.remove(&pending.send.key);
            }
        }
        METRICS.pending_sends.dec();
        if pending.is_accepted {
            self.accepted_bytes -= pending.bytes();
            while self.accepted.front().is_some_and(|front| {
                self.queues
                    .get(&front.partition)
                    .is_none_or(|it| !it.sends.contains_key(&front.number))
            }) {
                self.accepted.pop_front();
            }
        }
        Some(pending)
    }

    fn finish(&mut self, ticket: Ticket, outcome: Outcome) {
        let Some(mut pending) = self.remove(ticket) else { return };
        let is_stored = outcome == Outcome::Stored;
        // Who was told that it is accepted takes it for stored.
        if !(pending.is_accepted && is_stored) {
            pending.tell(outcome);
        }
        if let Some(permit) = pending.send.permit.filter(|_| is_stored) {
            permit.stored();
        }
    }

    fn accept(&mut self, ticket: Ticket) {
        let Some(queue) = self.queues.get_mut(&ticket.partition) else { return };
        let Some(pending) = queue.sends.get_mut(&ticket.number) else { return };
        pending.is_accepted = true;
        pending.tell(Outcome::Accepted);
        self.accepted_bytes += pending.bytes();
        self.accepted.push_back(ticket);
        let mut open = queue.sends.range(queue.unanswered..).filter(|(_, it)| !it.is_accepted);
        queue.unanswered = open.next().map_or(ticket.number + 1, |(number, _)| *number);
    }

    /// Forgets the oldest that were accepted, where they take too much memory.
    fn evict(&mut self, bytes_max: usize) {
        while self.accepted_bytes > bytes_max {
            let Some(oldest) = self.accepted.pop_front() else { return };
            if self.remove(oldest).is_some() {
                METRICS.sends_forgotten.inc();
            }
        }
    }
}

impl Queue {
    /// The oldest that the log has.
    fn oldest(&self) -> Option<Taken> {
        self.sends.values().find_map(|pending| pending.taken)
    }

    /// Whether a send waits for longer than its fate usually takes.
    fn stands_still(&self, now: Instant, settings: &AckSettings) -> bool {
        self.oldest().is_some_and(|oldest| oldest.at + settings.stored_wait <= now)
    }

    /// The log has a send, or nobody knows. A cluster that changes its leader may take some of what is in flight and
    /// lose what was published before it. Then the session's order is another one, now or once it is sent again.
    fn log_answered(&mut self, number: u64, sequence: Option<u64>) {
        let Some(own) = self.in_flight.remove(&number) else { return };
        let is_behind = |later| sequence.is_none_or(|sequence| sequence > later);
        if own.overtaken_by.is_some_and(is_behind) {
            METRICS.sends_overtaken.inc();
        }
        let Some(sequence) = sequence else { return };
        for earlier in self.in_flight.range_mut(..number).map(|(_, earlier)| earlier) {
            if earlier.session == own.session {
                earlier.overtaken_by = Some(sequence);
            }
        }
    }

    /// Those not answered yet that the log has had for so long, and when the next one follows.
    fn synced(&self, now: Instant, wait: Duration) -> (Vec<u64>, Option<Instant>) {
        let mut synced = Vec::new();
        for (number, pending) in self.sends.range(self.unanswered..) {
            match pending.taken {
                Some(taken) if taken.at + wait > now => return (synced, Some(taken.at + wait)),
                Some(_) if !pending.is_accepted => synced.push(*number),
                _ => {}
            }
        }
        (synced, None)
    }
}

impl Pending {
    fn tell(&mut self, outcome: Outcome) {
        if let Some(permit) = &mut self.send.permit {
            permit.release();
        }
        self.waiter.tell(outcome);
    }

    fn bytes(&self) -> usize {
        SEND_BYTES + self.send.payload.len()
    }

    /// What it means for it that this was told of its id; `None` if that is of another record, or may be.
    fn outcome_of(&self, told: Told<'_>) -> Option<Outcome> {
        let is_own = self.taken.is_some_and(|taken| taken.sequence == told.sequence);
        // Stored is stored, by whichever record, if it says the same.
        let says_the_same = || words_of(told).is_some_and(|words| self.send.says(&words));
        if is_own || self.send.is_unique || told.fate == Fate::Stored && says_the_same() {
            return outcome(told.fate);
        }
        None
    }
}

impl Outgoing {
    /// Whether it says the same.
    fn says(&self, words: &Words) -> bool {
        let Ok(Record::Message(message)) = Record::decode(&self.payload) else { return false };
        words.session == self.session.to_string()
            && words.sender == message.sender.as_str()
            && words.content == message.content.as_str()
    }

    /// What it means for it that Postgres has this.
    fn fate(&self, found: &Found) -> Option<Fate> {
        match &self.key {
            Key::Message(_) => match &found.words {
                Some(words) if self.says(words) => Some(Fate::StoredBefore),
                Some(_) => Some(Fate::Conflict),
                None if found.is_erased => Some(Fate::Refused),
                None => found.decided.or(found.is_dead_letter.then_some(Fate::SetAside)),
            },
            Key::Opening(_) => (found.is_open || found.is_erased).then_some(Fate::Opened),
            Key::Erasure(_) => found.is_erased.then_some(Fate::Erased),
        }
    }

    /// Whether it changes something about a session, which leaves nothing behind where there is none.
    fn is_change(&self) -> bool {
        matches!(Record::decode(&self.payload), Ok(Record::Change(_)))
    }

    fn message_id(&self) -> Option<&str> {
        match &self.key {
            Key::Message(id) => Some(id.as_str()),
            Key::Opening(_) | Key::Erasure(_) => None,
        }
    }

    fn sought(&self, position: Position) -> Sought {
        let id = self.message_id().unwrap_or_default().to_owned();
        Sought { id, session: self.session, digest: self.session.digest(), position }
    }
}

/// What a stored message says.
fn words_of(told: Told<'_>) -> Option<Words> {
    #[derive(Deserialize)]
    struct Said {
        sender: String,
        content: String,
    }
    let Said { sender, content } = serde_json::from_str(told.message?.get()).ok()?;
    Some(Words { session: told.session.to_string(), sender, content })
}

/// What a fate means for who sent the message.
fn outcome(fate: Fate) -> Option<Outcome> {
    Some(match fate {
        Fate::Stored | Fate::StoredBefore | Fate::Opened | Fate::Erased | Fate::Changed => {
            Outcome::Stored
        }
        Fate::Conflict => Outcome::Failed(ClientError::conflict()),
        Fate::Claimed => Outcome::Failed(ClientError::claimed()),
        Fate::AiOff => Outcome::Failed(ClientError::ai_off()),
        Fate::Refused | Fate::Missing => Outcome::Failed(ClientError::session_not_found()),
        Fate::SetAside => Outcome::Failed(ClientError::new(
            ErrorCode::InvalidPayload,
            "Postgres refuses it: it is kept as a dead letter",
        )),
        Fate::Other => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shared::content::Content;
    use shared::message::Sender;
    use shared::record::NewMessage;

    use super::*;
    use crate::log::send_permits::SendPermits;

    /// Keeps what it is told.
    #[derive(Clone, Default)]
    struct Listener(Arc<Mutex<Vec<Outcome>>>);

    impl Waiter for Listener {
        fn tell(&mut self, outcome: Outcome) {
            self.0.lock().unwrap().push(outcome);
        }
    }

    impl Listener {
        fn take(&self) -> Vec<Outcome> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    struct Bench {
        permits: SendPermits,
        sends: PendingSends,
        session: SessionId,
        id: MessageId,
    }

    impl Bench {
        fn new(guard_bytes: usize) -> Self {
            let settings =
                AckSettings { stored_wait: Duration::ZERO, log_sync: Duration::ZERO, guard_bytes };
            let sends = PendingSends::new(settings);
            let (session, id) = (SessionId::random(), MessageId::random());
            Self { permits: SendPermits::default(), sends, session, id }
        }

        fn send(&self, content: &str, is_unique: bool) -> (Ticket, Listener) {
            let content = Content::parse(content.into(), 100).unwrap();
            let new =
                NewMessage { id: self.id.clone(), sender: Sender::User, content, is_ai: false };
            let payload = Record::Message(new).encode().unwrap().into();
            let key = Key::Message(self.id.clone());
            let (session, permit) = (self.session, self.permits.get(None));
            let send = Outgoing { session, key, is_unique, payload, permit };
            let told = Listener::default();
            let ticket = self.sends.begin(Partition::FIRST, send, Box::new(told.clone()));
            (ticket.unwrap(), told)
        }

        fn tell(&self, sequence: u64, fate: Fate, content: &str) {
            let json = serde_json::json!({ "sender": "user", "content": content }).to_string();
            let message = RawValue::from_string(json).unwrap();
            let message = (fate == Fate::Stored).then_some(&*message);
            let told = Told { sequence, session: self.session, fate, message };
            self.sends.settle(&Key::Message(self.id.clone()), told);
        }
    }

    fn conflict() -> Vec<Outcome> {
        vec![Outcome::Failed(ClientError::conflict())]
    }

    #[test]
    fn a_fate_may_come_before_the_answer_of_the_log() {
        for is_unique in [true, false] {
            let bench = Bench::new(0);
            let (ticket, told) = bench.send("Hello!", is_unique);
            bench.tell(7, Fate::Stored, "Hello!");
            assert_eq!(told.take(), [Outcome::Stored]);
            bench.sends.taken(ticket, 7, Duration::ZERO);
            bench.sends.failed(ticket, ClientError::unavailable());
            assert_eq!(told.take(), [], "it was answered");
        }
    }

    #[test]
    fn who_sends_an_id_again_hears_of_the_own_record() {
        let bench = Bench::new(0);
        let (first, told_first) = bench.send("Hello!", false);
        let (again, told_again) = bench.send("Hello!", false);
        let (other, told_other) = bench.send("Something else", false);
        bench.tell(7, Fate::Stored, "Hello!");
        assert_eq!(
            (told_first.take(), told_again.take()),
            (vec![Outcome::Stored], vec![Outcome::Stored])
        );
        bench.tell(8, Fate::StoredBefore, "");
        bench.tell(9, Fate::Conflict, "");
        assert_eq!(told_other.take(), [], "which record is its own is not known yet");
        bench.sends.taken(first, 7, Duration::ZERO);
        bench.sends.taken(again, 8, Duration::ZERO);
        bench.sends.taken(other, 9, Duration::ZERO);
        assert_eq!(told_other.take(), conflict());
    }

    #[test]
    fn words_that_differ_are_not_stored_by_the_record_of_another() {
        let bench = Bench::new(0);
        let (ticket, told) = bench.send("Something else", false);
        bench.sends.taken(ticket, 9, Duration::ZERO);
        bench.tell(7, Fate::Stored, "Hello!");
        bench.tell(8, Fate::StoredBefore, "");
        assert_eq!(told.take(), []);
        bench.tell(9, Fate::Conflict, "");
        assert_eq!(told.take(), conflict());
    }

    #[test]
    fn what_is_accepted_is_told_of_again_only_if_it_is_refused() {
        for (fate, wanted) in [
            (Fate::Stored, vec![]),
            (Fate::Refused, vec![Outcome::Failed(ClientError::session_not_found())]),
        ] {
            let bench = Bench::new(1_000_000);
            let (ticket, told) = bench.send("Hello!", true);
            assert_eq!(bench.sends.answer_due(), None, "the log has not answered");
            bench.sends.taken(ticket, 7, Duration::ZERO);
            bench.sends.answer_due();
            bench.sends.answer_due();
            assert_eq!(told.take(), [Outcome::Accepted]);
            bench.tell(7, fate, "Hello!");
            assert_eq!(told.take(), wanted);
            assert_eq!(bench.sends.lock().accepted_bytes, 0);
        }
    }

    #[test]
    fn a_send_takes_room_until_its_first_answer() {
        let bench = Bench::new(1_000_000);
        let (stored, _) = bench.send("Hello!", false);
        bench.sends.taken(stored, 7, Duration::ZERO);
        assert_eq!(bench.permits.held(), 1);
        bench.tell(7, Fate::Stored, "Hello!");
        assert_eq!(bench.permits.held(), 0);
        let (accepted, _) = bench.send("Hello again!", false);
        bench.sends.taken(accepted, 8, Duration::ZERO);
        assert_eq!(bench.permits.held(), 1);
        bench.sends.answer_due();
        bench.sends.answer_due();
        assert_eq!(bench.permits.held(), 0, "it is kept, and was answered");
        let (failed, _) = bench.send("Nobody hears it", false);
        bench.sends.failed(failed, ClientError::unavailable());
        assert_eq!(bench.permits.held(), 0);
    }

    #[test]
    fn what_was_accepted_is_bounded_in_bytes_and_the_oldest_goes_first() {
        let bench = Bench::new(2 * (SEND_BYTES + 100));
        let tickets: Vec<_> = (0..3).map(|n| bench.send(&"x".repeat(n + 1), true).0).collect();
        for (sequence, ticket) in (1..).zip(&tickets) {
            bench.sends.taken(*ticket, sequence, Duration::ZERO);
            bench.sends.answer_due();
        }
        let state = bench.sends.lock();
        let kept: Vec<_> = state.queues[&Partition::FIRST].sends.keys().copied().collect();
        assert_eq!(kept, [1, 2]);
        assert!(state.accepted_bytes <= 2 * (SEND_BYTES + 100), "{}", state.accepted_bytes);
    }

    #[test]
    fn sends_that_a_later_one_of_their_session_overtakes_are_counted() {
        let failed = |bench: &Bench, ticket| bench.sends.failed(ticket, ClientError::unavailable());
        let count = || METRICS.sends_overtaken.get();
        let bench = Bench::new(0);
        let before = count();
        let [in_order, told_late, overtaken, failing, newest] =
            [(); 5].map(|()| bench.send("x", true).0);
        bench.sends.taken(in_order, 1, Duration::ZERO);
        bench.sends.taken(newest, 3, Duration::ZERO);
        bench.sends.taken(told_late, 2, Duration::ZERO);
        assert_eq!(count(), before, "the log has them in order");
        bench.sends.taken(overtaken, 4, Duration::ZERO);
        assert_eq!(count(), before + 1);
        failed(&bench, failing);
        assert_eq!(count(), before + 2, "it may be sent again");
        let (alone, _) = bench.send("x", true);
        failed(&bench, alone);
        assert_eq!(count(), before + 2, "nothing came later");
    }

    #[test]
    fn the_same_is_kept_a_few_times_and_then_not_taken() {
        let bench = Bench::new(0);
        let all: Vec<_> = (0..SAME_MAX).map(|_| bench.send("Hello!", false)).collect();
        let told = Listener::default();
        let key = Key::Message(bench.id.clone());
        let send = || Outgoing {
            session: bench.session,
            key: key.clone(),
            is_unique: false,
            payload: Bytes::new(),
            permit: None,
        };
        assert!(bench.sends.begin(Partition::FIRST, send(), Box::new(told.clone())).is_none());
        assert_eq!(told.take(), [Outcome::Failed(ClientError::overloaded())]);
        bench.sends.failed(all[0].0, ClientError::unavailable());
        assert!(bench.sends.begin(Partition::FIRST, send(), Box::new(told)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nothing_is_known_of_does_not_hold_up_what_is_looked_for_behind_it() {
        let sends = PendingSends::new(AckSettings {
            stored_wait: Duration::ZERO,
            log_sync: Duration::ZERO,
            guard_bytes: 0,
        });
        for sequence in 0..1_200 {
            let session = SessionId::random();
            let key = Key::Opening(session);
            let payload = Bytes::new();
            let send = Outgoing { session, key, is_unique: true, payload, permit: None };
            let ticket = sends.begin(Partition::FIRST, send, Box::new(Nobody)).unwrap();
            sends.taken(ticket, sequence, Duration::ZERO);
        }
        tokio::time::advance(2 * MISSED_AFTER).await;
        let look = || {
            let missed = sends.missed(|_| Some(Position { epoch: Epoch(1), sequence: 1_200 }));
            missed.iter().map(|(ticket, _)| ticket.number).collect::<Vec<_>>()
        };
        assert_eq!(look(), (0..500).collect::<Vec<_>>());
        assert_eq!(look(), (500..1_000).collect::<Vec<_>>());
        assert_eq!(look(), (1_000..1_200).chain(0..300).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_found_in_postgres_is_compared_with_what_was_sent() {
        let found = |content: &str, bench: &Bench| {
            let session = bench.session.to_string();
            let words = Words { session, sender: "user".into(), content: content.into() };
            Found { words: Some(words), ..Found::default() }
        };
        let bench = Bench::new(0);
        let (same, told_same) = bench.send("Hello!", false);
        let (other, told_other) = bench.send("Something else", false);
        bench.sends.found(same, &found("Hello!", &bench), true);
        bench.sends.found(other, &found("Hello!", &bench), true);
        assert_eq!((told_same.take(), told_other.take()), (vec![Outcome::Stored], conflict()));
    }
}
