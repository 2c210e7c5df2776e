//! The gateway: Socket.IO and HTTP towards visitors, agents and integrators; NATS towards the
//! persisters. It never writes to Postgres.
//!
//! One message's way: [`events`] takes it from a socket, [`send`] checks it, [`publisher`] puts it
//! into the log; once it is stored, [`delivery`] hears of it, or [`recovery`] reads it, and [`rooms`] emits
//! it. Agents see all sessions in their [`inboxes`]; [`presence`] is who is connected, here or to another gateway.

pub mod ai_mode;
pub mod answers;
pub mod auth;
pub mod chats;
pub mod client_info;
pub mod config;
pub mod connection;
pub mod connection_slots;
pub mod cut;
pub mod delivery;
pub mod docs_page;
pub mod erasure;
pub mod error;
pub mod etag;
pub mod events;
pub mod forwarded;
pub mod handshake;
pub mod history;
pub mod inbox;
pub mod inboxes;
pub mod intake;
pub mod known;
pub mod lane;
pub mod limits;
pub mod listing;
pub mod lists;
pub mod metrics;
pub mod openapi;
pub mod opened;
pub mod ops;
pub mod ordered_json;
pub mod paging;
pub mod payload;
pub mod peers;
pub mod presence;
pub mod problem;
pub mod progress;
pub mod publisher;
pub mod ready;
pub mod recovery;
pub mod request_body;
pub mod rooms;
pub mod routes;
pub mod schema;
pub mod send;
pub mod serve;
pub mod session;
pub mod timeouts;
pub mod token;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use shared::ids::{SessionDigest, SessionId};
use shared::lifecycle::{Stop, Tasks, until_deadline};
use shared::log::{self, Log};
use shared::nats::Disturbances;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::ai_mode::AiModes;
use crate::config::Config;
use crate::connection_slots::ConnectionSlots;
use crate::delivery::{Delivery, Positions};
use crate::history::History;
use crate::inboxes::Inboxes;
use crate::intake::Intake;
use crate::known::KnownSessions;
use crate::limits::Limits;
use crate::lists::Lists;
use crate::opened::OpenedSessions;
use crate::peers::Peers;
use crate::presence::Presence;
use crate::progress::ProgressWatch;
use crate::publisher::Publisher;
use crate::ready::Readiness;
use crate::rooms::{Rooms, Saved};
use crate::serve::Bounds;

/// Longest wait for the answers to what clients asked before the stop; each has a bound of its own
/// below it. A short deadline leaves half of itself to it.
const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for sockets to close: one that does not read would hold it for ever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What every part of the gateway shares.
pub struct Gateway {
    /// The settings.
    pub config: Config,
    /// Who may do how much.
    pub limits: Arc<Limits>,
    /// Which socket is in which session.
    pub rooms: Rooms,
    /// What the rooms were given.
    pub positions: Positions,
    /// The way into the log.
    pub publisher: Publisher,
    /// Which sessions exist.
    pub known: KnownSessions,
    /// Who waits for a session to be stored.
    pub opened: OpenedSessions,
    /// What is stored.
    pub history: History,
    /// Which sessions are active.
    pub presence: Presence,
    /// The agents who hear of every session.
    pub inboxes: Inboxes,
    /// Where lists of sessions are asked for.
    pub lists: Lists,
    /// The way of switches to all inboxes.
    pub ai_modes: AiModes,
    /// Answers that are under way.
    pub answers: TaskTracker,
    /// Once it is asked for, nothing new is begun.
    pub stop: Stop,
}

impl Gateway {
    /// Gives a saved message to everybody who should see it; `false` if nobody is in its session.
    fn emit(&self, session: SessionId, saved: &Saved) -> bool {
        let somebody_is_there = self.rooms.emit(session, saved);
        self.presence.said(session);
        self.inboxes.saved(session, saved);
        somebody_is_there
    }

    /// A session was erased: nobody is in it, and it is known no more.
    fn end(&self, session: SessionId) {
        self.known.forget(session);
        self.rooms.end(session);
        self.inboxes.changed();
    }

    /// The same for sessions of which only digests are known.
    fn end_all(&self, ended: &HashSet<SessionDigest>) {
        // It costs less to look some up again than to tell which they are.
        self.known.forget_all();
        self.rooms.end_all(|room| ended.contains(&room.digest()));
        self.inboxes.changed();
    }
}

/// Runs a gateway on these listeners until it is stopped. A task that ends before ends it with an error.
///
/// Until everything it needs is there, it only says that it lives. `ops` is where operators look.
pub async fn run(
    config: Config,
    listeners: Vec<TcpListener>,
    ops: TcpListener,
    stop: Stop,
) -> anyhow::Result<()> {
    let (nats, disturbances) = shared::nats::connect(&config.nats, "gateway").await?;
    let history = History::connect(&config.database);
    let intake = Intake::default();
    let readiness = Readiness::new(nats.clone(), history.clone(), intake.clone(), stop.clone());
    let mut watched = Tasks::default();
    watched.spawn("the operators' server", ops::serve(ops, readiness.clone()));
    watched.spawn("the watch over NATS", shared::nats::watch(disturbances.clone()));
    let needs = Needs { nats, disturbances, history, intake, readiness };
    watched.while_they_run(Box::pin(serve(config, listeners, needs, stop))).await
}

/// What a gateway uses.
struct Needs {
    nats: Client,
    disturbances: Disturbances,
    history: History,
    intake: Intake,
    readiness: Readiness,
}

async fn serve(
    config: Config,
    listeners: Vec<TcpListener>,
    needs: Needs,
    stop: Stop,
) -> anyhow::Result<()> {
    let listeners: Vec<_> = listeners.into_iter().map(Arc::new).collect();
    let started = Stop::new();
    let mut starting = Tasks::default();
    let first = routes::starting(&config.cors_origins);
    let per_peer = config.limits.rates.then_some(config.limits.connections_per_address as usize);
    let slots = ConnectionSlots::new(per_peer, Arc::clone(&config.trusted_proxies));
    let bounds = Bounds { http: config.http, slots };
    let first = serve::serve(listeners.clone(), first, bounds.clone(), started.clone());
    starting.spawn("the first server", first);
    let Needs { nats, disturbances, history, intake, readiness } = needs;
    let jetstream = async_nats::jetstream::new(nats.clone());
    let Some(log) = starting.while_they_run(prepare(&jetstream, &config, &history, &stop)).await?
    else {
        return Ok(());
    };

    let (lists, asked) = Lists::new();
    let gateway = Arc::new(Gateway {
        limits: Limits::new(config.limits.clone()),
        rooms: Rooms::default(),
        positions: Positions::default(),
        publisher: Publisher::new(nats.clone(), config.log.partitions, intake),
        known: KnownSessions::new(history.clone(), log.clone(), config.log.partitions),
        opened: OpenedSessions::default(),
        history,
        presence: Presence::default(),
        inboxes: Inboxes::default(),
        lists,
        ai_modes: AiModes::new(nats.clone()),
        answers: TaskTracker::new(),
        stop: stop.clone(),
        config,
    });
    let delivery = starting.while_they_run(Delivery::start(&gateway, &nats, &log, &stop)).await?;
    let Some(delivery) = delivery else { return Ok(()) };
    let peers = Peers::start(&gateway, &nats, disturbances).await?;
    let (progress, waiting) = ProgressWatch::new(gateway.history.clone(), log.clone());
    let delivering = Stop::new();
    let mut tasks = Tasks::default();
    tasks.spawn("the watch over the progress", progress.run(delivering.clone()));
    tasks.spawn("the delivery", delivery.run(delivering.clone()));
    tasks.spawn(
        "what listens for sessions",
        opened::listen(gateway.clone(), nats.clone(), delivering.clone()),
    );
    tasks.spawn(
        "what listens for switches",
        ai_mode::listen(gateway.clone(), nats.clone(), delivering.clone()),
    );
    tasks.spawn("what makes lists", lists::make(gateway.clone(), asked, delivering.clone()));
    tasks.spawn("the exchange with other gateways", peers.run(delivering.clone()));

    let (router, io) = routes::router(&gateway, readiness.clone());
    started.cancel();
    starting.all_ended().await?;
    tasks.spawn("the server", serve::serve(listeners, router, bounds, stop.clone()));
    readiness.serving(waiting);
    tracing::info!("ready");
    tokio::select! {
        // First: some of the tasks end by the same stop.
        biased;
        () = stop.cancelled() => {}
        error = tasks.one_ended() => return Err(error),
    }
    let shutdown = async {
        gateway.answers.close();
        let in_flight = IN_FLIGHT_TIMEOUT.min(gateway.config.shutdown / 2);
        tokio::time::timeout(in_flight, gateway.answers.wait()).await.ok();
        // Emitting after the close would panic: delivery ends first.
        delivering.cancel();
        tokio::time::timeout(CLOSE_TIMEOUT, io.close()).await.ok();
        tasks.all_ended().await
    };
    until_deadline(&stop, gateway.config.shutdown, shutdown).await
}

/// Waits for the log and for the tables. `None` if the stop came first.
async fn prepare(
    jetstream: &Context,
    config: &Config,
    history: &History,
    stop: &Stop,
) -> anyhow::Result<Option<Log>> {
    let Some(log) = log::open_until_done(jetstream, config.log, stop).await? else {
        return Ok(None);
    };
    Ok(schema::wait(history, stop).await?.map(|()| log))
}
