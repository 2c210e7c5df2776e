//! A client as a careful browser would be one: it keeps what was not acked, comes back with `after`, and sends the
//! same again with the same `clientOffset`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

use crate::socket_client::SocketClient;

use super::account::{Account, Ack, EVENTS, MEMBERS, Name, Sent, Shown};

const JOINS_WITHIN: Duration = Duration::from_secs(10);
/// A send without an answer: another connection may do better.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);
/// Before another try to connect, and before a send that was refused is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// Whoever has so many messages without an ack says nothing new: a browser would not either, and a stack that is slow
/// for once is not buried under what it was asked meanwhile.
const WAITING_MAX: usize = 40;
/// How often a client looks whether it is done.
const LOOK: Duration = Duration::from_millis(100);
/// The number of the ack of `init_session`; those of sends follow.
const JOIN: u64 = 0;

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Talking,
    /// Each says one thing more, and stays until all of that was shown.
    Finishing,
    Over,
}

/// A session and its members.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) session: String,
    members: [Mutex<Account>; MEMBERS],
    /// Which message each said last.
    last: Mutex<[Option<usize>; MEMBERS]>,
}

/// One member of a session.
#[derive(Debug)]
pub(super) struct Client {
    room: Arc<Room>,
    member: usize,
    gateways: Arc<[SocketAddr]>,
    /// Which gateway is next, counted without end.
    turn: usize,
    every: Duration,
    /// When it says something new.
    due: Instant,
    /// What is not acked, by its number.
    pending: BTreeMap<usize, Pending>,
    phase: watch::Receiver<Phase>,
}

#[derive(Clone, Copy, Debug)]
enum Pending {
    Asked(Instant),
    Again(Instant),
}

impl Room {
    pub(super) fn new(session: String) -> Self {
        Self { session, members: Default::default(), last: Mutex::default() }
    }

    /// The account of a member.
    pub(super) fn account(&self, member: usize) -> MutexGuard<'_, Account> {
        lock(&self.members[member])
    }

    /// Whether everybody said their last, and it was shown to this member.
    fn is_complete_for(&self, member: usize) -> bool {
        let last = lock(&self.last);
        let account = self.account(member);
        let is_shown = |(member, last): (usize, &Option<usize>)| {
            let Some(number) = *last else { return false };
            let name = Name { member, number };
            account.shown.iter().rev().any(|shown| shown.name == name)
        };
        last.iter().enumerate().all(is_shown)
    }
}

/// Opens a session: its id.
pub(super) async fn open(gateway: SocketAddr) -> Result<String> {
    let mut socket = SocketClient::connect(gateway).await?;
    let answer = init(&mut socket, json!({})).await?;
    Ok(answer["sessionId"].as_str().with_context(|| answer.to_string())?.to_owned())
}

async fn init(socket: &mut SocketClient, payload: Value) -> Result<Value> {
    socket.emit(JOIN, "init_session", payload).await?;
    let text =
        timeout(JOINS_WITHIN, socket.next()).await.context("no answer to init_session")??;
    let ack = text.strip_prefix("430").with_context(|| format!("not the answer: {text}"))?;
    let [answer] = serde_json::from_str(ack)?;
    Ok(answer)
}

impl Client {
    /// A client that says something that often, at first after `begins`.
    pub(super) fn new(
        (room, member): (&Arc<Room>, usize),
        gateways: &Arc<[SocketAddr]>,
        (begins, every): (Duration, Duration),
        phase: watch::Receiver<Phase>,
    ) -> Self {
        Self {
            room: Arc::clone(room),
            member,
            gateways: Arc::clone(gateways),
            turn: member,
            every,
            due: Instant::now() + begins,
            pending: BTreeMap::new(),
            phase,
        }
    }

    /// Talks until everything was said and shown, or nobody waits for that any more.
    pub(super) async fn run(mut self) {
        while !self.is_done() {
            if let Err(error) = self.visit().await {
                self.account().refused.push(reason(&error));
            }
            self.turn += 1;
            for pending in self.pending.values_mut() {
                *pending = Pending::Again(Instant::now());
            }
            sleep(PAUSE).await;
        }
    }

    async fn visit(&mut self) -> Result<()> {
        let mut socket = self.come_back().await?;
        // What it would have said meanwhile is not said all at once.
        self.due = self.due.max(Instant::now());
        while !self.is_done() {
            tokio::select! {
                packet = socket.next() => self.on_packet(&packet?)?,
                () = sleep_until(self.wake().into()) => {}
            }
            while let Some(packet) = socket.next_now() {
                self.on_packet(&packet?)?;
            }
            self.send(&mut socket).await?;
        }
        Ok(())
    }

    /// Joins with what it was shown last; the answer has what it missed.
    async fn come_back(&mut self) -> Result<SocketClient> {
        let gateway = self.gateways[self.turn % self.gateways.len()];
        let mut socket = SocketClient::connect(gateway).await?;
        let after = self.account().shown.last().map(|last| last.id.clone()).unwrap_or_default();
        let payload = json!({"sessionId": self.room.session, "after": after});
        let answer = init(&mut socket, payload).await?;
        if let Some(code) = answer["error"]["code"].as_str() {
            bail!("init_session: {code}");
        }
        if answer["sessionId"] != self.room.session.as_str() {
            self.account().odd.push(format!("{} is given another session", self.room.session));
            bail!("init_session: another session");
        }
        for message in answer["messages"].as_array().into_iter().flatten() {
            self.on_message(message);
        }
        ensure!(answer["more"] != true, "init_session: more");
        Ok(socket)
    }

    fn on_packet(&mut self, packet: &str) -> Result<()> {
        if let Some(ack) = packet.strip_prefix("43") {
            let digits = ack.find('[').context("an empty ack")?;
            let [answer] = serde_json::from_str(&ack[digits..])?;
            self.on_ack(ack[..digits].parse()?, &answer)
        } else if let Some(message) = packet.strip_prefix(r#"42["message","#) {
            let message = message.strip_suffix(']').context("a message without an end")?;
            self.on_message(&serde_json::from_str(message)?);
            Ok(())
        } else {
            Ok(())
        }
    }

    fn on_message(&self, message: &Value) {
        let mut account = self.account();
        match Shown::read(message) {
            Some(shown) => account.shown.push(shown),
            None => account.odd.push(format!("nobody sent what was shown: {message}")),
        }
    }

    fn on_ack(&mut self, number: u64, answer: &Value) -> Result<()> {
        let number = usize::try_from(number - JOIN - 1)?;
        if let Some(ack) = Ack::read(answer) {
            self.pending.remove(&number);
            self.account().sent[number].ack = Some(ack);
            return Ok(());
        }
        let code = answer["error"]["code"].as_str().unwrap_or("no code").to_owned();
        if !["unavailable", "overloaded"].contains(&code.as_str()) {
            self.account().odd.push(format!("{} was answered {answer}", self.room.session));
        }
        self.account().refused.push(code);
        self.pending.insert(number, Pending::Again(Instant::now() + PAUSE));
        Ok(())
    }

    /// Sends what is to be sent again, in order, and what is new.
    async fn send(&mut self, socket: &mut SocketClient) -> Result<()> {
        let now = Instant::now();
        self.say_more(now);
        let asked = self
            .pending
            .values()
            .any(|pending| matches!(pending, Pending::Asked(at) if at.elapsed() > ANSWERS_WITHIN));
        ensure!(!asked, "no answer");
        let member = self.member;
        let is_due = |pending: &Pending| matches!(pending, Pending::Again(at) if *at <= now);
        let due = self.pending.iter_mut().filter(|(_, pending)| is_due(pending));
        for (number, pending) in due {
            *pending = Pending::Asked(now);
            let name = Name { member, number: *number };
            self.room.account(member).sent[*number].emits += 1;
            let payload = json!({
                "sessionId": self.room.session,
                "content": name.content(),
                "clientOffset": name.offset(),
            });
            let packet = Value::from(vec![EVENTS[member].into(), payload]);
            socket.put(format!("42{}{packet}", *number as u64 + JOIN + 1)).await?;
        }
        socket.flush().await
    }

    /// What is said for the first time, also the last thing of all, once everything else was acked.
    fn say_more(&mut self, now: Instant) {
        match *self.phase.borrow() {
            Phase::Talking => {
                while self.due <= now {
                    self.due += self.every;
                    if self.pending.len() >= WAITING_MAX {
                        continue;
                    }
                    let number = self.account().say(now);
                    self.pending.insert(number, Pending::Again(now));
                }
            }
            Phase::Finishing if self.pending.is_empty() => {
                let last = &mut lock(&self.room.last)[self.member];
                if last.is_none() {
                    let number = *last.insert(self.account().say(now));
                    self.pending.insert(number, Pending::Again(now));
                }
            }
            _ => {}
        }
    }

    fn wake(&self) -> Instant {
        let again = self.pending.values().filter_map(|pending| match pending {
            Pending::Again(at) => Some(*at),
            Pending::Asked(_) => None,
        });
        let talks = *self.phase.borrow() == Phase::Talking;
        let look = Instant::now() + LOOK;
        again.chain(talks.then_some(self.due)).fold(look, Instant::min)
    }

    fn is_done(&self) -> bool {
        match *self.phase.borrow() {
            Phase::Talking => false,
            Phase::Over => true,
            Phase::Finishing => {
                let complete = self.pending.is_empty() && self.room.is_complete_for(self.member);
                self.account().complete = complete;
                complete
            }
        }
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.room.account(self.member)
    }
}

impl Account {
    /// One more message; its number.
    fn say(&mut self, now: Instant) -> usize {
        self.sent.push(Sent { first: now, emits: 0, ack: None });
        self.sent.len() - 1
    }
}

/// Short enough to be counted.
fn reason(error: &anyhow::Error) -> String {
    let text = error.to_string();
    let known = ["init_session: ", "no answer"].iter().any(|known| text.starts_with(known));
    if known { text } else { "no connection".to_owned() }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
