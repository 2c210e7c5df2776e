//! Who types. It is told to everybody else in the session, on any gateway, and over once it was not said again for a
//! while, or once the socket that said so is gone. Nothing of it is stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::value::to_raw_value;
use shared::ids::SessionId;
use shared::lifecycle::Stop;
use shared::message::Sender;
use shared::presence::GatewayId;
use shared::reading::Typing;
use shared::subjects;
use socketioxide::socket::Sid;
use tokio::time::{Instant, MissedTickBehavior};

use crate::delivery::rooms::Rooms;
use crate::emitted::Emitted;

/// Who does not say again within this time that it types does not, by the contract.
const OVER_AFTER: Duration = Duration::from_secs(6);
/// Whoever says so more often is told on once in this time.
const TOLD_EVERY: Duration = Duration::from_secs(2);
/// How often it is looked who has not said so again.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Sides that type at a time; more are told of and not watched.
const WATCHED_MAX: usize = 100_000;
/// Longest wait for NATS to take it.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Who types, as far as this gateway was told by its own clients.
pub struct TypingSides {
    client: Client,
    me: GatewayId,
    rooms: Arc<Rooms>,
    sides: Mutex<HashMap<(SessionId, Sender), Side>>,
}

/// A side that types.
struct Side {
    /// The socket that says so; none for a program over HTTP.
    by: Option<Sid>,
    until: Instant,
    told: Instant,
}

/// `typing`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Typed {
    session_id: SessionId,
    sender: Sender,
    typing: bool,
}

impl TypingSides {
    /// Nobody types yet.
    pub fn new(client: Client, me: GatewayId, rooms: Arc<Rooms>) -> Self {
        Self { client, me, rooms, sides: Mutex::default() }
    }

    /// A client says that a side types, or does not any more.
    pub async fn says(&self, session: SessionId, sender: Sender, by: Option<Sid>, typing: bool) {
        if self.note(session, sender, by, typing) {
            self.tell(session, sender, by, typing).await;
        }
    }

    /// Whether the others are to be told.
    fn note(&self, session: SessionId, sender: Sender, by: Option<Sid>, typing: bool) -> bool {
        let mut sides = self.lock();
        let key = (session, sender);
        if !typing {
            return sides.remove(&key).is_some();
        }
        let now = Instant::now();
        if let Some(side) = sides.get_mut(&key)
            && side.told + TOLD_EVERY > now
        {
            side.until = now + OVER_AFTER;
            return false;
        }
        if sides.len() < WATCHED_MAX {
            sides.insert(key, Side { by, until: now + OVER_AFTER, told: now });
        }
        true
    }

    /// A socket is gone: what it typed will not come.
    pub fn gone(self: &Arc<Self>, by: Sid) {
        let typed: Vec<_> = {
            let mut sides = self.lock();
            let of_it = sides.extract_if(|_, side| side.by == Some(by));
            of_it.map(|((session, sender), _)| (session, sender)).collect()
        };
        for (session, sender) in typed {
            let sides = Arc::clone(self);
            tokio::spawn(async move { sides.tell(session, sender, Some(by), false).await });
        }
    }

    /// Tells everybody else in the session, here and at the other gateways.
    async fn tell(&self, session: SessionId, sender: Sender, by: Option<Sid>, typing: bool) {
        self.emit(session, sender, by, typing);
        // Without a connection the library would send it some time later.
        if self.client.connection_state() != State::Connected {
            return;
        }
        let told = Typing { gateway: self.me, session, sender, typing };
        let Ok(payload) = serde_json::to_vec(&told) else { return };
        let published = self.client.publish(subjects::TYPING, payload.into());
        tokio::time::timeout(PUBLISH_TIMEOUT, published).await.ok();
    }

    fn emit(&self, session: SessionId, sender: Sender, by: Option<Sid>, typing: bool) {
        if let Ok(data) = to_raw_value(&Typed { session_id: session, sender, typing }) {
            self.rooms.tell(session, Emitted::Typing, &data, by);
        }
    }

    /// Tells what other gateways tell, and who has not typed for a while, until the stop.
    pub async fn run(self: Arc<Self>, stop: Stop) -> anyhow::Result<()> {
        let mut told = self.client.subscribe(subjects::TYPING).await?;
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = look.tick() => self.end_silent().await,
                message = told.next() => {
                    let Some(message) = message else {
                        anyhow::bail!("the subscription to who types ended");
                    };
                    self.hear(&message.payload);
                }
            }
        }
    }

    fn hear(&self, payload: &[u8]) {
        match serde_json::from_slice(payload) {
            Ok(Typing { gateway, .. }) if gateway == self.me => {}
            Ok(Typing { session, sender, typing, .. }) => self.emit(session, sender, None, typing),
            Err(error) => tracing::warn!(%error, "who types at another gateway cannot be read"),
        }
    }

    async fn end_silent(&self) {
        let now = Instant::now();
        let over: Vec<_> = {
            let mut sides = self.lock();
            let silent = sides.extract_if(|_, side| side.until <= now);
            silent.map(|((session, sender), side)| (session, sender, side.by)).collect()
        };
        for (session, sender, by) in over {
            self.tell(session, sender, by, false).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(SessionId, Sender), Side>> {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
