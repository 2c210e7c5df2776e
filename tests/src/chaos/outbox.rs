//! What a client has to say: one group in flight at a time, and what was not acked again, one by one,
//! with the offset that it had. So the order of a client's messages is known.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::arguments::Restart;
use super::broken::{Broken, Promise};
use super::ledger::{Refusal, Role, Room};
use super::random::Random;
use super::world::{World, count};
use crate::is_taken;

/// A client gives the connection up when an answer takes longer: 5 s are promised.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(9);
/// Pause before a refused message is sent again, in milliseconds.
const RETRY_MS: (u64, u64) = (150, 500);
/// Refusals in a row after which a client tries another gateway.
const REFUSALS_MAX: u32 = 5;

/// How much a client says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Mean pause between groups.
    pub(super) every: Duration,
    /// Messages sent in one go.
    pub(super) burst: u64,
}

/// A client's messages without an ack.
#[derive(Debug)]
pub(super) struct Outbox {
    world: Arc<World>,
    room: Arc<Room>,
    client: String,
    role: Role,
    pace: Pace,
    random: Random,
    number: u64,
    group: u64,
    pending: VecDeque<Pending>,
    next: Instant,
    refusals: u32,
}

#[derive(Debug)]
struct Pending {
    offset: String,
    content: String,
    /// The ack that is waited for, and since when.
    asked: Option<(u64, Instant)>,
    /// When it may be sent again.
    again: Instant,
}

/// What a client does with its connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Stay,
    /// Tries another gateway.
    Go,
}

impl Outbox {
    pub(super) fn new(
        world: &Arc<World>,
        room: &Arc<Room>,
        client: &str,
        role: Role,
        pace: Pace,
    ) -> Self {
        let random = Random::of(world.arguments.seed, client);
        let mut outbox = Self {
            world: Arc::clone(world),
            room: Arc::clone(room),
            client: client.to_owned(),
            role,
            pace,
            random,
            number: 0,
            group: 0,
            pending: VecDeque::new(),
            next: Instant::now(),
            refusals: 0,
        };
        outbox.schedule();
        outbox
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// When something is to be done next.
    pub(super) fn wake(&self) -> Instant {
        let answers =
            self.pending.iter().filter_map(|pending| Some(pending.asked?.1 + ANSWER_TIMEOUT));
        answers.min().or(self.pending.front().map(|pending| pending.again)).unwrap_or(self.next)
    }

    /// The offsets and payloads to emit now; `talking` adds new ones.
    pub(super) fn due(&mut self, talking: bool) -> Vec<(String, Value)> {
        let now = Instant::now();
        if self.pending.iter().any(|pending| pending.asked.is_some()) {
            return Vec::new();
        }
        if let Some(first) = self.pending.front() {
            return if first.again <= now { vec![self.payload(first)] } else { Vec::new() };
        }
        if !talking || self.next > now {
            return Vec::new();
        }
        self.schedule();
        self.begin();
        self.pending.iter().map(|pending| self.payload(pending)).collect()
    }

    fn begin(&mut self) {
        self.group += 1;
        for _ in 0..self.pace.burst {
            self.number += 1;
            let offset = format!("{}-{}", self.client, self.number);
            let content = self.room.begin(&self.client, self.role, &offset, self.group);
            count(&self.world.tally.sent);
            self.pending.push_back(Pending { offset, content, asked: None, again: Instant::now() });
        }
    }

    fn payload(&self, pending: &Pending) -> (String, Value) {
        let Pending { offset, content, .. } = pending;
        let payload =
            json!({"sessionId": self.room.session, "content": content, "clientOffset": offset});
        (offset.clone(), payload)
    }

    fn schedule(&mut self) {
        let every = u64::try_from(self.pace.every.as_millis()).unwrap_or(u64::MAX);
        self.next = Instant::now() + self.random.between(every / 2, every + every / 2);
    }

    /// It was emitted and asks for this ack.
    pub(super) fn emitted(&mut self, offset: &str, number: u64) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.offset == offset) {
            pending.asked = Some((number, Instant::now()));
        }
    }

    /// The connection is gone: nobody knows what became of what was emitted.
    pub(super) fn forget_asked(&mut self) {
        self.refusals = 0;
        for pending in &mut self.pending {
            pending.asked = None;
            pending.again = Instant::now();
        }
    }

    /// The ack of an emit of ours.
    pub(super) fn answered(
        &mut self,
        number: u64,
        answer: &Value,
        gateway: usize,
    ) -> Result<Then, Broken> {
        let asked = |pending: &Pending| pending.asked.is_some_and(|(asked, _)| asked == number);
        let Some(place) = self.pending.iter().position(asked) else {
            let text = format!("{} was answered twice or unasked: {answer}", self.client);
            return Err(self.room.report(Promise::Contract, &text));
        };
        if let Some((_, since)) = self.pending[place].asked.take() {
            self.in_time(since, gateway)?;
        }
        let text = |key: &str| answer.get(key).and_then(Value::as_str);
        if let (Some(id), true) = (text("id"), is_taken(answer)) {
            let took = self.room.acked(&self.pending[place].offset, id)?;
            self.world.tally.acked(took);
            self.pending.remove(place);
            self.refusals = 0;
            return Ok(Then::Stay);
        }
        self.refused(place, answer, gateway)
    }

    fn refused(&mut self, place: usize, answer: &Value, gateway: usize) -> Result<Then, Broken> {
        let code = answer["error"]["code"].as_str().unwrap_or("no code");
        let offset = self.pending[place].offset.clone();
        self.world.tally.refused(code);
        let refusal = match code {
            _ if !self.may_refuse(code, gateway) => {
                let text = format!("{offset} was answered {answer}");
                return Err(self.room.report(Promise::Contract, &text));
            }
            "overloaded" => Refusal::NotTaken,
            "unavailable" => Refusal::Unknown,
            _ => {
                let text = format!("{offset} was answered {answer}");
                return Err(self.room.report(Promise::Contract, &text));
            }
        };
        self.room.refused(&offset, refusal);
        self.pending[place].again = Instant::now() + self.random.between(RETRY_MS.0, RETRY_MS.1);
        self.refusals += 1;
        Ok(if self.refusals < REFUSALS_MAX { Then::Stay } else { Then::Go })
    }

    /// With Postgres away alone nobody is refused anything, and in a rolling restart only by a gateway
    /// that restarts.
    fn may_refuse(&self, code: &str, gateway: usize) -> bool {
        let arguments = &self.world.arguments;
        let restarts = || code == "unavailable" && self.world.spans.restarts(gateway);
        arguments.postgres_away.is_none()
            && (arguments.restart != Some(Restart::Rolling) || restarts())
    }

    /// Whether an answer is still waited for patiently.
    pub(super) fn is_patient(&self, gateway: usize) -> Result<Then, Broken> {
        let oldest = self.pending.iter().filter_map(|pending| Some(pending.asked?.1)).min();
        match oldest {
            Some(since) if since.elapsed() >= ANSWER_TIMEOUT => {
                self.in_time(since, gateway)?;
                self.world.tally.refused("no answer");
                Ok(Then::Go)
            }
            _ => Ok(Then::Stay),
        }
    }

    fn in_time(&self, since: Instant, gateway: usize) -> Result<(), Broken> {
        self.world.spans.answer(since, gateway).map_err(|late| {
            let text = format!("{} waited for an answer of gateway-{gateway}: {late}", self.client);
            self.room.report(Promise::InTime, &text)
        })
    }
}
