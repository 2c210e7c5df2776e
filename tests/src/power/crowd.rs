//! Everybody who talks in a round.

use std::net::{Ipv4Addr, SocketAddr};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Stack;
use crate::wait::must;

use super::account::MEMBERS;
use super::client::{self, Client, Phase, Room};

/// Messages a second of one session, where the rate allows it.
const ROOM_RATE: u64 = 20;
/// Opening a session where something is not there yet is tried again.
const OPENS_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// Sessions whose visitors and agents talk.
#[derive(Debug)]
pub(super) struct Crowd {
    pub(super) rooms: Vec<Arc<Room>>,
    phase: watch::Sender<Phase>,
    clients: JoinSet<()>,
}

impl Crowd {
    /// Opens sessions and lets their members talk, all together at this rate per second.
    pub(super) async fn enter(stack: &Stack, rate: u64) -> Self {
        let address = |gateway: &crate::Service| (Ipv4Addr::LOCALHOST, gateway.port()).into();
        let gateways: Arc<[SocketAddr]> = stack.gateways().iter().map(address).collect();
        let count = rate.div_ceil(ROOM_RATE).max(1);
        let opening = (0..count).map(|number| {
            let number = usize::try_from(number).unwrap_or_default();
            open(gateways[number % gateways.len()])
        });
        let rooms: Vec<_> = join_all(opening).await;
        let phase = watch::Sender::new(Phase::Talking);
        let members = count * MEMBERS as u64;
        let every = Duration::from_micros(1_000_000 * members / rate.max(1));
        let mut clients = JoinSet::new();
        let seats = rooms.iter().flat_map(|room| (0..MEMBERS).map(move |member| (room, member)));
        for (number, seat) in (0..).zip(seats) {
            // One after the other, not all at the same instant.
            let begins = every * number / u32::try_from(members).unwrap_or(u32::MAX);
            let client = Client::new(seat, &gateways, (begins, every), phase.subscribe());
            clients.spawn(client.run());
        }
        Self { rooms, phase, clients }
    }

    /// Whether every client was given an ack of something that it said after that.
    fn goes_on_since(&self, then: Instant) -> bool {
        let goes_on = |room: &Arc<Room>, member| {
            let account = room.account(member);
            account.sent.iter().rev().any(|sent| sent.first > then && sent.ack.is_some())
        };
        self.rooms.iter().all(|room| (0..MEMBERS).all(|member| goes_on(room, member)))
    }

    /// How long it takes until everybody can go on who was there then; nothing if it takes longer than that.
    pub(super) async fn goes_on(&self, then: Instant, within: Duration) -> Option<Duration> {
        let begun = Instant::now();
        while !self.goes_on_since(then) {
            if begun.elapsed() > within {
                return None;
            }
            sleep(LOOK).await;
        }
        Some(begun.elapsed())
    }

    /// Lets everybody say their last, and be shown everything.
    pub(super) async fn finish(mut self, within: Duration) -> Vec<Arc<Room>> {
        self.phase.send_replace(Phase::Finishing);
        let ended = timeout(within, ended(&mut self.clients)).await;
        self.phase.send_replace(Phase::Over);
        if ended.is_err() {
            self.clients.abort_all();
            self::ended(&mut self.clients).await;
        }
        self.rooms
    }
}

async fn ended(clients: &mut JoinSet<()>) {
    while let Some(ended) = clients.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            resume_unwind(error.into_panic());
        }
    }
}

async fn open(gateway: SocketAddr) -> Arc<Room> {
    let begun = Instant::now();
    loop {
        match client::open(gateway).await {
            Ok(session) => return Arc::new(Room::new(session)),
            Err(error) if begun.elapsed() > OPENS_WITHIN => must(Err(error), "opening a session"),
            Err(_) => sleep(LOOK).await,
        }
    }
}
