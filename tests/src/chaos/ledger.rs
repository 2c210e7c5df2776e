//! What was sent, what was promised, and what everybody saw: one [`Room`] per session.
//!
//! The first client that is shown a message fixes its place in the room's order; everybody else must
//! be shown the same messages in the same places. So a gap, a repeat or another order is found at the
//! moment in which it is shown, and a client's whole view is one number.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::broken::{Broken, Promise};
use super::random::{Random, hash};

/// Longest filler of a message in words.
const WORDS_MAX: u64 = 40;
const WORDS: [&str; 8] = ["lorem", "ipsum", "dolor", "sit", "amet", "größer", "чат", "\u{1f600}"];
/// Steps of a room that are kept to be shown when a promise breaks.
const STEPS: usize = 120;
/// Steps that come in great numbers when a client comes back.
const REPEATED: [&str; 2] = ["given", "read"];

/// Who sends: the two events of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Visitor,
    Admin,
}

impl Role {
    /// The event it sends by.
    pub(super) fn event(self) -> &'static str {
        match self {
            Self::Visitor => "user_message",
            Self::Admin => "admin_message",
        }
    }

    /// `sender` of its messages.
    pub(super) fn sender(self) -> &'static str {
        match self {
            Self::Visitor => "user",
            Self::Admin => "admin",
        }
    }
}

/// A session, its messages and its members.
#[derive(Debug)]
pub(super) struct Room {
    /// Its `sessionId`.
    pub(super) session: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    messages: Vec<Sent>,
    by_offset: HashMap<String, usize>,
    /// Messages in the order in which they were shown first.
    order: Vec<usize>,
    /// Of each client, the group of its message that was shown last.
    groups: HashMap<String, u64>,
    /// Members that may still send.
    sending: usize,
    steps: VecDeque<Step>,
}

/// A message that was sent, perhaps several times.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    /// Unique in its room; the content begins with it.
    pub(super) offset: String,
    /// Whose it is.
    pub(super) client: String,
    pub(super) role: Role,
    /// Sent in one go with others of the same group; the next group only after their acks.
    pub(super) group: u64,
    pub(super) begun: Instant,
    pub(super) acked: Option<Instant>,
    /// From the ack, or from the first who was shown it.
    pub(super) id: Option<String>,
    /// Emits so far.
    pub(super) attempts: u32,
    /// Emits that were not surely refused.
    perhaps: u32,
    /// Where it stands among the messages of its room.
    pub(super) place: Option<usize>,
}

/// What a client has been shown of its room, from the beginning.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) client: String,
    /// Places below it were shown.
    pub(super) shown: usize,
    /// After `more`, history and live messages overlap below this place until the first above it.
    pub(super) overlap: usize,
    /// Id of the last one shown.
    pub(super) last: String,
    /// Since when its connection has been in the room.
    pub(super) since: Instant,
}

/// A message as a client is shown it.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    pub(super) id: &'a str,
    pub(super) sender: &'a str,
    pub(super) content: &'a str,
}

/// For the account of what went before a breakage.
#[derive(Clone, Debug)]
struct Step {
    at: Instant,
    client: String,
    what: &'static str,
    message: Option<usize>,
    /// How often it was done on end; the message is that of the last time.
    times: usize,
}

/// How a refused emit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Surely not taken.
    NotTaken,
    /// Nobody knows.
    Unknown,
}

impl Room {
    /// A room in which nothing was said yet.
    pub(super) fn new(session: String) -> Self {
        Self { session, state: Mutex::default() }
    }

    /// A client that will send.
    pub(super) fn enter(&self) {
        self.state().sending += 1;
    }

    /// A client that will send no more, and has every ack.
    pub(super) fn has_sent(&self) {
        self.state().sending -= 1;
    }

    /// Whether nobody will send any more, and this one was shown everything.
    pub(super) fn is_complete(&self, seat: &Seat) -> bool {
        let state = self.state();
        state.sending == 0 && seat.shown == state.messages.len()
    }

    /// Takes up a new message; its content.
    pub(super) fn begin(&self, client: &str, role: Role, offset: &str, group: u64) -> String {
        let mut state = self.state();
        let index = state.messages.len();
        state.by_offset.insert(offset.to_owned(), index);
        state.messages.push(Sent {
            offset: offset.to_owned(),
            client: client.to_owned(),
            role,
            group,
            begun: Instant::now(),
            acked: None,
            id: None,
            attempts: 0,
            perhaps: 0,
            place: None,
        });
        content(offset)
    }

    /// It is emitted now.
    pub(super) fn emitted(&self, offset: &str) {
        let mut state = self.state();
        if let Some(index) = state.by_offset.get(offset).copied() {
            state.messages[index].attempts += 1;
            state.messages[index].perhaps += 1;
            let client = state.messages[index].client.clone();
            state.step(&client, "sent", Some(index));
        }
    }

    /// An emit was refused.
    pub(super) fn refused(&self, offset: &str, refusal: Refusal) {
        let mut state = self.state();
        if let Some(index) = state.by_offset.get(offset).copied() {
            if refusal == Refusal::NotTaken {
                state.messages[index].perhaps -= 1;
            }
            let client = state.messages[index].client.clone();
            state.step(&client, "refused", Some(index));
        }
    }

    /// An emit was acked; how long after the first one.
    pub(super) fn acked(&self, offset: &str, id: &str) -> Result<Duration, Broken> {
        let mut state = self.state();
        let Some(index) = state.by_offset.get(offset).copied() else {
            return Err(Broken::new(Promise::Contract, format!("an ack for {offset}")));
        };
        let now = Instant::now();
        let message = &mut state.messages[index];
        message.acked.get_or_insert(now);
        let took = now - message.begun;
        let client = message.client.clone();
        let same = message.id.get_or_insert_with(|| id.to_owned()) == id;
        state.step(&client, "acked", Some(index));
        if same {
            return Ok(took);
        }
        let known = state.messages[index].id.clone().unwrap_or_default();
        let text = format!("{offset} is {known} and was acked as {id}");
        Err(self.broken(&state, Promise::OneId, &text))
    }

    /// A client notes something that is no message.
    pub(super) fn note(&self, client: &str, what: &'static str) {
        self.state().step(client, what, None);
    }

    /// A client was shown a message live; since when it could have been, if that is known.
    pub(super) fn live(&self, seat: &mut Seat, shown: &Shown) -> Result<Option<Instant>, Broken> {
        let mut state = self.state();
        let index = self.check(&mut state, &seat.client, shown, "shown")?;
        if state.messages[index].place.is_some_and(|place| place < seat.overlap) {
            return Ok(None);
        }
        seat.overlap = 0;
        let waited = state.messages[index].acked.map(|acked| acked.max(seat.since));
        self.place(&mut state, seat, index)?;
        Ok(waited)
    }

    /// A client was given messages that it missed.
    pub(super) fn missed(&self, seat: &mut Seat, shown: &Shown) -> Result<(), Broken> {
        let mut state = self.state();
        let index = self.check(&mut state, &seat.client, shown, "given")?;
        self.place(&mut state, seat, index)
    }

    /// A client has read the whole history, and goes on behind it.
    pub(super) fn history(&self, seat: &mut Seat, history: &[Shown]) -> Result<(), Broken> {
        let mut state = self.state();
        let mut from_start = Seat { shown: 0, overlap: 0, ..seat.clone() };
        for shown in history {
            let index = self.check(&mut state, &seat.client, shown, "read")?;
            self.place(&mut state, &mut from_start, index)?;
        }
        *seat = Seat { overlap: from_start.shown, ..from_start };
        Ok(())
    }

    /// Whether the message is one that was sent, and as it was sent.
    fn check(
        &self,
        state: &mut State,
        client: &str,
        shown: &Shown,
        what: &'static str,
    ) -> Result<usize, Broken> {
        let offset = shown.content.split(' ').next().unwrap_or_default();
        let Some(index) = state.by_offset.get(offset).copied() else {
            let text =
                format!("{client} was shown {} that nobody sent: {}", shown.id, shown.content);
            return Err(self.broken(state, Promise::Content, &text));
        };
        state.step(client, what, Some(index));
        let message = &mut state.messages[index];
        let known = message.id.get_or_insert_with(|| shown.id.to_owned()).clone();
        if known != shown.id {
            let text = format!("{offset} is {known} and was shown to {client} as {}", shown.id);
            return Err(self.broken(state, Promise::OneId, &text));
        }
        if shown.content != content(offset) || shown.sender != message.role.sender() {
            let text = format!("{offset} ({known}) by {}: {}", shown.sender, shown.content);
            return Err(self.broken(state, Promise::Content, &text));
        }
        if message.perhaps == 0 {
            let text = format!("{offset} ({known}) was refused as surely not taken, and is stored");
            return Err(self.broken(state, Promise::Contract, &text));
        }
        Ok(index)
    }

    /// Whether the message comes next for this client.
    fn place(&self, state: &mut State, seat: &mut Seat, index: usize) -> Result<(), Broken> {
        match state.messages[index].place {
            Some(place) if place == seat.shown => {}
            Some(place) if place < seat.shown => {
                let text = format!("{} was shown {} twice", seat.client, state.name(index));
                return Err(self.broken(state, Promise::NothingTwice, &text));
            }
            None if seat.shown == state.order.len() => self.append(state, seat, index)?,
            place => {
                let next = state.name(state.order[seat.shown]);
                let missed = place.unwrap_or(state.order.len()) - seat.shown;
                let text = format!(
                    "{} was shown {} and not the {missed} before it, from {next} on",
                    seat.client,
                    state.name(index)
                );
                return Err(self.broken(state, Promise::SameForAll, &text));
            }
        }
        seat.shown += 1;
        seat.last = state.messages[index].id.clone().unwrap_or_default();
        Ok(())
    }

    fn append(&self, state: &mut State, seat: &Seat, index: usize) -> Result<(), Broken> {
        let (client, group) = (state.messages[index].client.clone(), state.messages[index].group);
        let before = state.groups.insert(client, group).unwrap_or_default();
        if group < before {
            let text = format!(
                "{} was shown {} behind a message that its sender sent after its ack",
                seat.client,
                state.name(index)
            );
            return Err(self.broken(state, Promise::OrderOfSender, &text));
        }
        state.messages[index].place = Some(state.order.len());
        state.order.push(index);
        Ok(())
    }

    /// The messages and their common order, at the end.
    pub(super) fn result(&self) -> (Vec<Sent>, Vec<usize>) {
        let state = self.state();
        (state.messages.clone(), state.order.clone())
    }

    /// The oldest message that was acked and shown to nobody yet, and when it was acked.
    pub(super) fn oldest_unseen(&self) -> Option<Instant> {
        let state = self.state();
        // What is not shown yet is young.
        let waiting = state.messages.iter().rev().take(500).filter(|sent| sent.place.is_none());
        waiting.filter_map(|sent| sent.acked).min()
    }

    /// Whether something that was acked before is shown to nobody yet.
    pub(super) fn waits_since(&self, before: Instant) -> bool {
        let waits = |sent: &Sent| sent.place.is_none() && sent.acked.is_some_and(|at| at < before);
        self.state().messages.iter().rev().any(waits)
    }

    /// What a client has not been shown.
    pub(super) fn lacks(&self, seat: &Seat) -> String {
        let state = self.state();
        let unsent = state.messages.iter().filter(|sent| sent.acked.is_none()).count();
        let next = state.order.get(seat.shown).map(|index| state.name(*index));
        format!(
            "{} in {}: shown {} of {} ({} shown to anybody), {unsent} without an ack, {} still send; next: {}",
            seat.client,
            self.session,
            seat.shown,
            state.messages.len(),
            state.order.len(),
            state.sending,
            next.unwrap_or_else(|| "none".to_owned())
        )
    }

    /// A breakage with the last steps in this room.
    pub(super) fn report(&self, promise: Promise, text: &str) -> Broken {
        self.broken(&self.state(), promise, text)
    }

    fn broken(&self, state: &State, promise: Promise, text: &str) -> Broken {
        Broken::new(promise, format!("session {}: {text}\n{}", self.session, state.last_steps()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn step(&mut self, client: &str, what: &'static str, message: Option<usize>) {
        if let Some(last) = self.steps.back_mut()
            && last.what == what
            && last.client == client
            && REPEATED.contains(&what)
        {
            (last.message, last.at) = (message, Instant::now());
            last.times += 1;
            return;
        }
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        let client = client.to_owned();
        self.steps.push_back(Step { at: Instant::now(), client, what, message, times: 1 });
    }

    fn name(&self, index: usize) -> String {
        let Sent { offset, id, .. } = &self.messages[index];
        format!("{offset} ({})", id.as_deref().unwrap_or("no id yet"))
    }

    fn last_steps(&self) -> String {
        let now = Instant::now();
        let line = |step: &Step| {
            let message = step.message.map(|index| self.name(index)).unwrap_or_default();
            let ago = (now - step.at).as_secs_f64();
            let times =
                if step.times == 1 { String::new() } else { format!(", {} in all", step.times) };
            format!("  {ago:8.3} s ago  {:12} {} {message}{times}", step.client, step.what)
        };
        self.steps.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

impl Seat {
    pub(super) fn new(client: &str) -> Self {
        let (client, since) = (client.to_owned(), Instant::now());
        Self { client, shown: 0, overlap: 0, last: String::new(), since }
    }
}

impl<'a> Shown<'a> {
    /// Reads a `Message`.
    pub(super) fn read(message: &'a Value) -> Option<Self> {
        let text = |key: &str| message.get(key)?.as_str();
        Some(Self { id: text("id")?, sender: text("sender")?, content: text("content")? })
    }
}

/// The content that belongs to an offset.
pub(super) fn content(offset: &str) -> String {
    let mut random = Random::new(hash(offset));
    let mut content = offset.to_owned();
    for _ in 0..random.below(WORDS_MAX) {
        content.push(' ');
        content.push_str(WORDS[random.index(WORDS.len())]);
    }
    content
}
