//! A client in a session, as a careful browser would be one: it keeps what was not acked, comes back
//! with `after`, and reads the rest over REST when told `more`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

use super::broken::{Broken, Promise};
use super::ledger::{Role, Room, Seat, Shown};
use super::outbox::{Outbox, Pace, Then};
use super::random::Random;
use super::socket::{Packet, Socket, Way};
use super::world::{Leave, Phase, World, count};

/// Longest wait for the answer to `init_session`.
const JOINS_WITHIN: Duration = Duration::from_secs(15);
/// Longest wait for a history over REST.
const READS_WITHIN: Duration = Duration::from_secs(20);
/// Pause before another try to connect, in milliseconds.
const PAUSE_MS: (u64, u64) = (100, 600);
/// How often a client looks whether it is done.
const LOOK: Duration = Duration::from_millis(300);

/// One client of a room.
#[derive(Debug)]
pub(super) struct Client {
    world: Arc<World>,
    room: Arc<Room>,
    name: String,
    role: Role,
    way: Way,
    random: Random,
    seat: Seat,
    outbox: Outbox,
    /// Which gateway, counted without end.
    turn: usize,
    /// Until when it talks.
    until: Instant,
    has_sent: bool,
    phase: watch::Receiver<Phase>,
    leave: watch::Receiver<Leave>,
}

/// Why a connection ended.
#[derive(Debug)]
enum End {
    /// Everything was said and shown, or there is no time left.
    Done,
    /// The client went away by itself.
    Away(Duration),
}

impl Client {
    /// A client that talks until then.
    pub(super) fn new(
        world: &Arc<World>,
        room: &Arc<Room>,
        name: &str,
        (role, pace, way): (Role, Pace, Way),
        until: Instant,
    ) -> Self {
        room.enter();
        let mut random = Random::of(world.arguments.seed, name);
        Self {
            world: Arc::clone(world),
            room: Arc::clone(room),
            name: name.to_owned(),
            role,
            way,
            turn: random.index(1_000),
            random,
            seat: Seat::new(name),
            outbox: Outbox::new(world, room, name, role, pace),
            until,
            has_sent: false,
            phase: world.phase.subscribe(),
            leave: world.leave.subscribe(),
        }
    }

    /// Talks until the end; `opened` is a connection that is in the room already.
    pub(super) async fn run(mut self, mut opened: Option<(usize, Socket)>) {
        loop {
            let pause = match self.visit(opened.take()).await {
                Ok(End::Done) => return,
                Ok(End::Away(away)) => away,
                Err(error) => match error.downcast::<Broken>() {
                    Ok(broken) => return self.world.break_promise(broken),
                    Err(_) => self.random.between(PAUSE_MS.0, PAUSE_MS.1),
                },
            };
            self.outbox.forget_asked();
            if self.gives_up() {
                return;
            }
            self.turn += 1;
            self.room.note(&self.name, "is away");
            sleep(pause).await;
        }
    }

    async fn visit(&mut self, opened: Option<(usize, Socket)>) -> Result<End> {
        self.leave.mark_unchanged();
        let (gateway, mut socket) = match opened {
            Some(opened) => opened,
            None => self.come_back().await?,
        };
        self.seat.since = Instant::now();
        loop {
            if self.is_done() {
                return Ok(End::Done);
            }
            let wake = self.outbox.wake().min(Instant::now() + LOOK);
            tokio::select! {
                packet = socket.next() => self.on_packet(packet?, gateway)?,
                () = sleep_until(wake.into()) => {}
                _ = self.leave.changed() => {
                    let leave = *self.leave.borrow_and_update();
                    if let Some(away) = leave.concerns(&self.name) {
                        return Ok(End::Away(away));
                    }
                }
            }
            let then = self.outbox.is_patient(gateway)?;
            ensure!(then == Then::Stay, "another gateway may do better");
            self.send(&mut socket).await?;
        }
    }

    async fn send(&mut self, socket: &mut Socket) -> Result<()> {
        for (offset, payload) in self.outbox.due(self.phase() == Phase::Talking) {
            self.room.emitted(&offset);
            count(&self.world.tally.emitted);
            let number = socket.emit(self.role.event(), payload).await?;
            self.outbox.emitted(&offset, number);
        }
        Ok(())
    }

    fn on_packet(&mut self, packet: Packet, gateway: usize) -> Result<()> {
        match packet {
            Packet::Ack(number, answer) => {
                let then = self.outbox.answered(number, &answer, gateway)?;
                ensure!(then == Then::Stay, "another gateway may do better");
                Ok(())
            }
            Packet::Event(name, message) if name == "message" => self.on_message(&message, gateway),
            Packet::Event(..) => Ok(()),
        }
    }

    fn on_message(&mut self, message: &Value, gateway: usize) -> Result<()> {
        let shown = Shown::read(message).ok_or_else(|| self.odd("a message", message))?;
        count(&self.world.tally.shown);
        if let Some(since) = self.room.live(&mut self.seat, &shown)? {
            self.world.spans.silence(since, gateway).map_err(|late| {
                let text =
                    format!("{} on gateway-{gateway} waited for {}: {late}", self.name, shown.id);
                self.room.report(Promise::InTime, &text)
            })?;
        }
        Ok(())
    }

    /// Connects to a gateway and resumes.
    async fn come_back(&mut self) -> Result<(usize, Socket)> {
        let (gateway, mut socket) = self.way.connect(&self.world.stack, self.turn).await?;
        let payload = json!({"sessionId": self.room.session, "after": self.seat.last});
        let asked = socket.emit("init_session", payload).await?;
        let answer = timeout(JOINS_WITHIN, self.answer(&mut socket, asked)).await??;
        self.joined(&answer)?;
        if answer["more"] == true {
            self.read_more(gateway).await?;
        }
        Ok((gateway, socket))
    }

    /// The answer leaves before anything that follows it.
    async fn answer(&self, socket: &mut Socket, asked: u64) -> Result<Value> {
        match socket.next().await? {
            Packet::Ack(number, answer) if number == asked => Ok(answer),
            other => {
                let text = format!("{} was sent {other:?} before the answer", self.name);
                bail!(self.room.report(Promise::Contract, &text))
            }
        }
    }

    fn joined(&mut self, answer: &Value) -> Result<()> {
        let same = answer["sessionId"] == self.room.session.as_str();
        if let Some(code) = answer["error"]["code"].as_str() {
            ensure!(
                same && ["unavailable", "overloaded"].contains(&code),
                self.odd("init_session", answer)
            );
            self.world.tally.refused(&format!("init_session {code}"));
            bail!("not now");
        }
        ensure!(same && answer["resumed"] == true, self.odd("init_session", answer));
        count(&self.world.tally.resumed);
        // What was shown is never unknown, also while a restored database catches up.
        let has_none = self.seat.last.is_empty();
        ensure!(has_none || answer["reset"] == false, self.odd("init_session", answer));
        self.room.note(&self.name, "is back");
        for message in answer["messages"].as_array().into_iter().flatten() {
            let shown = Shown::read(message).ok_or_else(|| self.odd("a message", message))?;
            self.room.missed(&mut self.seat, &shown)?;
        }
        Ok(())
    }

    /// What did not fit into the answer; live messages wait in the socket meanwhile.
    async fn read_more(&mut self, gateway: usize) -> Result<()> {
        count(&self.world.tally.mores);
        let path = format!("/api/chats/{}", self.room.session);
        let url = self.world.stack.gateway(gateway).url(&path);
        let reading = async {
            let answer = reqwest::get(url).await?.error_for_status()?;
            anyhow::Ok(serde_json::from_slice::<Vec<Value>>(&answer.bytes().await?)?)
        };
        let history = timeout(READS_WITHIN, reading).await??;
        let history: Vec<_> = history.iter().filter_map(Shown::read).collect();
        // The database was replaced by an older one in between: come back.
        ensure!(history.len() >= self.seat.shown, "a shorter history than before");
        self.room.history(&mut self.seat, &history)?;
        self.room.note(&self.name, "has read the rest");
        Ok(())
    }

    fn odd(&self, what: &str, answer: &Value) -> Broken {
        let text = format!("{} got as {what}: {answer}", self.name);
        self.room.report(Promise::Contract, &text)
    }

    /// Whether everything was said and shown.
    fn is_done(&mut self) -> bool {
        if self.gives_up() {
            return true;
        }
        if self.phase() == Phase::Talking || !self.outbox.is_empty() {
            return false;
        }
        if !self.has_sent {
            self.has_sent = true;
            self.room.has_sent();
        }
        self.room.is_complete(&self.seat)
    }

    /// Whether there is no time left: then what is missing is missing.
    fn gives_up(&self) -> bool {
        let late = self.phase() == Phase::TooLate;
        if late {
            let promise =
                if self.outbox.is_empty() { Promise::SameForAll } else { Promise::InTime };
            self.world.break_promise(self.room.report(promise, &self.room.lacks(&self.seat)));
        }
        late
    }

    fn phase(&self) -> Phase {
        match *self.phase.borrow() {
            Phase::Talking if Instant::now() >= self.until => Phase::Finishing,
            phase => phase,
        }
    }
}

/// Opens a session: its id, and the connection that is in it.
pub(super) async fn open(world: &World, turn: usize) -> Result<(String, usize, Socket)> {
    let (gateway, mut socket) = Way::Rust.connect(&world.stack, turn).await?;
    let asked = socket.emit("init_session", json!({})).await?;
    let Packet::Ack(number, answer) = timeout(JOINS_WITHIN, socket.next()).await?? else {
        bail!("no answer to init_session")
    };
    ensure!(number == asked, "another answer");
    if let Some(code) = answer["error"]["code"].as_str() {
        world.tally.refused(&format!("init_session {code}"));
    }
    let session = answer["sessionId"].as_str().context("no session now")?;
    Ok((session.to_owned(), gateway, socket))
}
