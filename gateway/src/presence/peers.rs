//! Exchanges with the other gateways whose visitors are connected where.
//!
//! A gateway publishes the changes of its own set, numbered, and every second that it lives. A gateway
//! that hears a number that does not follow asks for the whole set; a gateway that is silent is given up.
//! All of it travels on one subject, so that what one gateway says arrives in order.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use shared::ids::SessionId;
use shared::lifecycle::Stop;
use shared::nats::Disturbances;
use shared::presence::{Delta, GatewayId, Says, SnapshotPart, SnapshotRequest, Statement};
use shared::subjects;
use tokio::time::{Instant, MissedTickBehavior};

use crate::presence::active::Presence;

/// How often a gateway says that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// A gateway that was not heard for this long is gone: three beats may be lost or late.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// Changes are gathered for this long: a gateway to which thousands connect says so ten times a second.
const GATHER: Duration = Duration::from_millis(100);
/// Whole sets are told at most this often, however many ask.
const TELL_GAP: Duration = Duration::from_millis(500);
/// Sessions in one packet of about 39 KB; NATS takes 1 MB.
const SESSIONS_MAX: usize = 1_000;
/// Longest wait for NATS to take a packet; what it does not take is asked for later.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);

/// The exchange with the other gateways.
pub struct Peers {
    presence: Arc<Presence>,
    client: Client,
    heard: Subscriber,
    disturbances: Disturbances,
    me: GatewayId,
    /// Number of the last change that was said.
    revision: u64,
    others: HashMap<GatewayId, Peer>,
    /// When changes are said next.
    say_at: Option<Instant>,
    /// When the whole set is told next.
    tell_at: Option<Instant>,
    told: Option<Instant>,
}

/// What is known of another gateway.
struct Peer {
    /// Number of the last change that is known. Everybody begins with an empty set.
    revision: u64,
    heard: Instant,
    asked: Option<Instant>,
    /// Parts of a whole set that arrives.
    arriving: Option<(SnapshotPart, HashSet<SessionId>)>,
}

impl Peers {
    /// Listens from now on.
    pub async fn start(
        presence: Arc<Presence>,
        client: &Client,
        disturbances: Disturbances,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            presence,
            client: client.clone(),
            heard: client.subscribe(subjects::PRESENCE).await?,
            disturbances,
            me: GatewayId::random(),
            revision: 0,
            others: HashMap::new(),
            say_at: None,
            tell_at: None,
            told: None,
        })
    }

    /// Exchanges until the stop, and says farewell.
    pub async fn run(mut self, stop: Stop) -> anyhow::Result<()> {
        let presence = Arc::clone(&self.presence);
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_beat = Instant::now();
        self.ask(None).await;
        loop {
            tokio::select! {
                // What was heard counts before anybody is given up.
                biased;
                () = stop.cancelled() => break,
                message = self.heard.next() => {
                    let Some(message) = message else { break };
                    self.hear(&message.payload).await;
                }
                Ok(()) = self.disturbances.changed() => self.resync().await,
                () = at(self.tell_at) => self.tell().await,
                () = at(self.say_at) => self.say_changes().await,
                () = presence.unsaid(), if self.say_at.is_none() => {
                    self.say_at = Some(Instant::now() + GATHER);
                }
                _ = beat.tick() => {
                    // Frozen as a whole, we heard nobody.
                    let late = last_beat.elapsed() > 2 * BEAT;
                    last_beat = Instant::now();
                    self.give_up_silent(late);
                    self.say(Says::Delta(self.changed(Vec::new(), Vec::new()))).await;
                }
            }
        }
        self.say(Says::Leave).await;
        tokio::time::timeout(PUBLISH_TIMEOUT, self.client.flush()).await.ok();
        anyhow::ensure!(stop.is_cancelled(), "the subscription to other gateways ended");
        Ok(())
    }

    async fn hear(&mut self, payload: &[u8]) {
        let Ok(Statement { gateway, says }) = serde_json::from_slice(payload) else {
            tracing::warn!("what another gateway says cannot be read");
            return;
        };
        if gateway == self.me {
            return;
        }
        match says {
            Says::Leave => self.forget(gateway),
            Says::SnapshotRequest(SnapshotRequest { of }) => {
                if of.is_none_or(|of| of == self.me) {
                    let earliest = self.told.map_or_else(Instant::now, |told| told + TELL_GAP);
                    self.tell_at.get_or_insert(earliest);
                }
            }
            Says::Delta(changed) => self.on_delta(gateway, &changed).await,
            Says::Snapshot(part) => self.on_snapshot_part(gateway, part),
        }
    }

    async fn on_delta(&mut self, of: GatewayId, changed: &Delta) {
        let peer = self.others.entry(of).or_insert_with(Peer::new);
        peer.heard = Instant::now();
        if peer.revision == changed.since {
            peer.revision = changed.revision;
            self.presence.peer_changed(of, changed);
        } else if peer.asked.is_none_or(|asked| asked.elapsed() >= BEAT) {
            peer.asked = Some(Instant::now());
            self.ask(Some(of)).await;
        }
    }

    fn on_snapshot_part(&mut self, of: GatewayId, mut part: SnapshotPart) {
        let peer = self.others.entry(of).or_insert_with(Peer::new);
        peer.heard = Instant::now();
        let (before, mut sessions) = match peer.arriving.take() {
            Some((last, sessions)) if last.is_before(&part) => (Some(last), sessions),
            _ => (None, HashSet::new()),
        };
        // Somebody else asked for it, or a part was lost: then it is asked for again.
        if peer.revision == part.revision || (before.is_none() && part.part > 0) {
            return;
        }
        sessions.extend(std::mem::take(&mut part.sessions));
        if part.part + 1 < part.parts {
            peer.arriving = Some((part, sessions));
            return;
        }
        peer.revision = part.revision;
        self.presence.peer_is(of, &sessions);
    }

    /// After a reconnect, or where something was dropped: nobody knows what was missed.
    async fn resync(&mut self) {
        self.others.values_mut().for_each(|peer| peer.heard = Instant::now());
        self.ask(None).await;
    }

    fn give_up_silent(&mut self, deaf: bool) {
        // While there is no connection nobody can be heard: what was known stays.
        let deaf = deaf || self.client.connection_state() != State::Connected;
        let now = Instant::now();
        if deaf {
            self.others.values_mut().for_each(|peer| peer.heard = now);
        }
        let silent = self.others.iter().filter(|(_, peer)| now - peer.heard > SILENCE_MAX);
        for gateway in silent.map(|(gateway, _)| *gateway).collect::<Vec<_>>() {
            tracing::warn!("another gateway is silent, its visitors count as gone");
            self.forget(gateway);
        }
    }

    fn forget(&mut self, gateway: GatewayId) {
        self.others.remove(&gateway);
        self.presence.peer_gone(gateway);
    }

    fn changed(&self, came: Vec<SessionId>, left: Vec<SessionId>) -> Delta {
        Delta { since: self.revision, revision: self.revision, came, left }
    }

    async fn say_changes(&mut self) {
        self.say_at = None;
        let (came, left) = self.presence.take_unsaid();
        let came = came.chunks(SESSIONS_MAX).map(|chunk| (chunk.to_vec(), Vec::new()));
        let left = left.chunks(SESSIONS_MAX).map(|chunk| (Vec::new(), chunk.to_vec()));
        for (came, left) in came.chain(left) {
            let changed = Delta { revision: self.revision + 1, ..self.changed(came, left) };
            self.revision = changed.revision;
            self.say(Says::Delta(changed)).await;
        }
    }

    /// Tells the whole set, with what was not said yet: saying that again does no harm.
    async fn tell(&mut self) {
        self.tell_at = None;
        self.told = Some(Instant::now());
        let here = self.presence.here();
        let parts = here.len().div_ceil(SESSIONS_MAX).max(1);
        for part in 0..parts {
            let sessions = here.iter().skip(part * SESSIONS_MAX).take(SESSIONS_MAX);
            let sessions = sessions.copied().collect();
            self.say(Says::Snapshot(SnapshotPart {
                revision: self.revision,
                part,
                parts,
                sessions,
            }))
            .await;
        }
    }

    async fn ask(&self, of: Option<GatewayId>) {
        self.say(Says::SnapshotRequest(SnapshotRequest { of })).await;
    }

    /// What cannot be said now is lost: the numbers tell the others.
    async fn say(&self, says: Says) {
        if self.client.connection_state() != State::Connected {
            return;
        }
        let Ok(payload) = serde_json::to_vec(&Statement { gateway: self.me, says }) else { return };
        let published = self.client.publish(subjects::PRESENCE, payload.into());
        tokio::time::timeout(PUBLISH_TIMEOUT, published).await.ok();
    }
}

impl Peer {
    fn new() -> Self {
        Self { revision: 0, heard: Instant::now(), asked: None, arriving: None }
    }
}

/// Resolves at a time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
