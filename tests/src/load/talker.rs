//! A client that sends and is shown what its session says.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::{mpsc::UnboundedReceiver, watch};

use crate::socket_client::SocketClient;

use super::account::{Name, Shown};
use super::tally::{OVERLOADED, Tally, add};

/// Senders of a session.
pub(super) const MEMBERS: usize = 2;

/// When a client sends.
#[derive(Debug)]
pub(super) enum Pace {
    /// So many are on their way.
    InFlight(u64),
    /// When told that one is due.
    Due(UnboundedReceiver<Instant>),
}

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Talking,
    /// Send nothing new.
    Listening,
    Over,
}

/// A client in a session; [`Talker::run`] gives it back with what it was shown.
#[derive(Debug)]
pub(super) struct Talker {
    tally: Rc<Tally>,
    session: String,
    /// Its number among all senders; those of a session are neighbours.
    pub(super) number: usize,
    pace: Pace,
    phase: watch::Receiver<Phase>,
    on_their_way: u64,
    /// When each of its messages was sent, or due.
    sent: Vec<Instant>,
    /// Its messages that were surely not taken.
    pub(super) refused: HashSet<u64>,
    /// What it was shown of each member of the session.
    pub(super) shown: [Shown; MEMBERS],
    /// Changes with everything that it was shown, and its order.
    pub(super) order: u64,
    /// Why its connection ended before the run did.
    pub(super) ended: Option<String>,
}

/// Joins a session, or opens one.
pub(super) async fn join(
    server: SocketAddr,
    session: Option<&str>,
) -> Result<(SocketClient, String)> {
    let mut client = SocketClient::connect(server).await?;
    let session = init(&mut client, session).await?;
    Ok((client, session))
}

/// Emits `init_session`; the id in the answer.
pub(super) async fn init(client: &mut SocketClient, session: Option<&str>) -> Result<String> {
    client.emit(0, "init_session", json!({"sessionId": session})).await?;
    let text = client.next().await?;
    let ack = text.strip_prefix("430").with_context(|| format!("no answer: {text}"))?;
    let ack: Value = serde_json::from_str(ack)?;
    let given = ack[0]["sessionId"].as_str().with_context(|| format!("no session: {ack}"))?;
    ensure!(session.is_none_or(|session| session == given), "another session: {ack}");
    Ok(given.to_owned())
}

impl Talker {
    pub(super) fn new(
        tally: &Rc<Tally>,
        session: &str,
        number: usize,
        pace: Pace,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        Self {
            tally: Rc::clone(tally),
            session: session.to_owned(),
            number,
            pace,
            phase,
            on_their_way: 0,
            sent: Vec::new(),
            refused: HashSet::new(),
            shown: Default::default(),
            order: 0,
            ended: None,
        }
    }

    /// How many it sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent.len() as u64
    }

    /// Talks and listens until the end.
    pub(super) async fn run(mut self, mut client: SocketClient) -> Self {
        if let Err(error) = self.talk(&mut client).await {
            self.ended = Some(format!("{error:#}"));
        }
        self
    }

    async fn talk(&mut self, client: &mut SocketClient) -> Result<()> {
        self.fill(client).await?;
        loop {
            let talking = *self.phase.borrow() == Phase::Talking;
            let due = match &mut self.pace {
                Pace::Due(due) if talking => Some(due),
                _ => None,
            };
            tokio::select! {
                biased;
                changed = self.phase.changed() => {
                    changed?;
                    if *self.phase.borrow() == Phase::Over {
                        return Ok(());
                    }
                }
                packet = client.next() => self.on_packet(&packet?)?,
                Some(due) = next_due(due) => self.put(client, due).await?,
            }
            // What came together is answered together.
            while let Some(packet) = client.next_now() {
                self.on_packet(&packet?)?;
            }
            self.fill(client).await?;
        }
    }

    /// Sends what may be sent now.
    async fn fill(&mut self, client: &mut SocketClient) -> Result<()> {
        let talking = *self.phase.borrow() == Phase::Talking;
        while let Some(due) = self.next_now().filter(|_| talking) {
            self.put(client, due).await?;
        }
        client.flush().await
    }

    fn next_now(&mut self) -> Option<Instant> {
        match &mut self.pace {
            Pace::InFlight(most) => (self.on_their_way < *most).then(Instant::now),
            Pace::Due(due) => due.try_recv().ok(),
        }
    }

    async fn put(&mut self, client: &mut SocketClient, due: Instant) -> Result<()> {
        let (number, session) = (self.sent(), &self.session);
        let event =
            if self.number.is_multiple_of(MEMBERS) { "user_message" } else { "admin_message" };
        let content = Name { sender: self.number, number }.content();
        self.sent.push(due);
        self.on_their_way += 1;
        add(&self.tally.sent);
        let packet =
            format!(r#"42{number}["{event}",{{"sessionId":"{session}","content":"{content}"}}]"#);
        client.put(packet).await
    }

    fn on_packet(&mut self, packet: &str) -> Result<()> {
        if let Some(ack) = packet.strip_prefix("43") {
            return self.on_ack(ack);
        }
        Name::find(packet).map_or(Ok(()), |name| self.on_message(name))
    }

    fn on_message(&mut self, name: Name) -> Result<()> {
        let first = self.number - self.number % MEMBERS;
        let member = name.sender.checked_sub(first).filter(|member| *member < MEMBERS);
        let Some(member) = member else { bail!("a message of another session: {name:?}") };
        self.shown[member].add(name.number);
        self.order = self.order.wrapping_mul(31).wrapping_add(member as u64 + 2 * name.number + 1);
        add(&self.tally.shown);
        if name.sender == self.number {
            let sent = usize::try_from(name.number).ok().and_then(|number| self.sent.get(number));
            self.tally.on_delivery(*sent.context("a message that nobody sent")?);
            self.on_their_way = self.on_their_way.saturating_sub(1);
        }
        Ok(())
    }

    fn on_ack(&mut self, ack: &str) -> Result<()> {
        let digits = ack.find('[').context("an empty ack")?;
        let number: u64 = ack[..digits].parse()?;
        let sent = usize::try_from(number).ok().and_then(|number| self.sent.get(number));
        let sent = *sent.context("an ack that nobody asked for")?;
        if !ack[digits..].starts_with(r#"[{"error""#) {
            self.tally.on_ack(sent);
            return Ok(());
        }
        let answer: Value = serde_json::from_str(&ack[digits..])?;
        let code = answer[0]["error"]["code"].as_str().unwrap_or("no code");
        self.tally.on_refusal(code);
        if code == OVERLOADED {
            self.refused.insert(number);
        }
        self.on_their_way = self.on_their_way.saturating_sub(1);
        Ok(())
    }
}

async fn next_due(due: Option<&mut UnboundedReceiver<Instant>>) -> Option<Instant> {
    match due {
        Some(due) => due.recv().await,
        None => std::future::pending().await,
    }
}
