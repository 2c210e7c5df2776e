//! Runs a gateway: connects, starts its tasks, and drains when it is stopped.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use shared::lifecycle::{Stop, Tasks, until_deadline};
use shared::log::Log;
use shared::nats::Disturbances;
use shared::presence::GatewayId;
use socketioxide::SocketIo;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::access::limits::Limits;
use crate::app::Gateway;
use crate::config::Config;
use crate::db::history::History;
use crate::db::schema;
use crate::delivery::inboxes::Inboxes;
use crate::delivery::missed_fates;
use crate::delivery::rooms::Rooms;
use crate::delivery::task::Delivery;
use crate::http::readiness::Readiness;
use crate::http::{ops, routes};
use crate::inbox::entry::Entries;
use crate::inbox::lists::{ListMaker, Lists};
use crate::inbox::updates;
use crate::log::guard::Guard;
use crate::log::health::LogHealth;
use crate::log::pending_sends::PendingSends;
use crate::log::progress::ProgressWatch;
use crate::log::publisher::Publisher;
use crate::log::session_lookup::SessionLookup;
use crate::presence::active::Presence;
use crate::presence::list_revision::ListRevision;
use crate::presence::peers::Peers;
use crate::signals::read_marks::Reading;
use crate::signals::typing::TypingSides;
use crate::transport::backlog::Backlogs;
use crate::transport::connection_slots::ConnectionSlots;
use crate::transport::disconnect::disconnect;
use crate::transport::incoming::Incoming;
use crate::transport::serve::{self, Bounds};

/// Longest wait for the answers to what clients asked before the stop; each has a bound of its own
/// below it. A short deadline leaves half of itself to it.
const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for sockets to close: one that does not read would hold it for ever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a gateway on these listeners until it is stopped. A task that ends before ends it with an error.
///
/// Until everything it needs is there, it only says that it lives. `ops` is where operators look.
pub async fn run(
    config: Config,
    listeners: Vec<TcpListener>,
    ops: TcpListener,
    stop: Stop,
) -> anyhow::Result<()> {
    let services = Services::connect(&config, &stop).await?;
    let mut watched = Tasks::default();
    watched.spawn("the operators' server", ops::serve(ops, services.readiness.clone()));
    watched.spawn("the watch over NATS", shared::nats::watch(services.disturbances.clone()));
    let serving = async {
        match Box::pin(start(config, listeners, services, &stop)).await? {
            Some(running) => running.until_stopped(&stop).await,
            None => Ok(()),
        }
    };
    watched.while_they_run(serving).await
}

/// What a gateway uses.
struct Services {
    nats: Client,
    disturbances: Disturbances,
    history: History,
    health: LogHealth,
    readiness: Readiness,
}

impl Services {
    async fn connect(config: &Config, stop: &Stop) -> anyhow::Result<Self> {
        let (nats, disturbances) = shared::nats::connect(&config.nats, "gateway").await?;
        let history = History::connect(&config.database);
        let health = LogHealth::default();
        let readiness = Readiness::new(nats.clone(), history.clone(), health.clone(), stop.clone());
        Ok(Self { nats, disturbances, history, health, readiness })
    }

    /// Waits for the log and for the tables. `None` if the stop came first.
    async fn wait_for_log(&self, config: &Config, stop: &Stop) -> anyhow::Result<Option<Log>> {
        let jetstream = async_nats::jetstream::new(self.nats.clone());
        let Some(log) = shared::log::open_until_done(&jetstream, &config.log, stop).await? else {
            return Ok(None);
        };
        Ok(schema::wait(&self.history, stop).await?.map(|()| log))
    }
}

/// Waits for what is needed, then starts everything. `None` if the stop came first.
async fn start(
    config: Config,
    listeners: Vec<TcpListener>,
    services: Services,
    stop: &Stop,
) -> anyhow::Result<Option<Running>> {
    let listeners: Vec<_> = listeners.into_iter().map(Arc::new).collect();
    let bounds = bounds(&config);
    let started = Stop::new();
    let mut starting = Tasks::default();
    let first = routes::starting(&config);
    let first = serve::serve(listeners.clone(), first, bounds.clone(), started.clone());
    starting.spawn("the first server", first);
    let log = starting.while_they_run(Box::pin(services.wait_for_log(&config, stop))).await?;
    let Some(log) = log else { return Ok(None) };
    let (gateway, lists) = assemble(config, &services, &log, bounds.incoming.clone(), stop);
    let positions = Arc::clone(&gateway.positions);
    let (history, nats) = (&services.history, &services.nats);
    let ring = Arc::clone(&gateway.ring);
    let delivery = Delivery::start(gateway.audience(), positions, ring, history, nats, &log, stop);
    let Some(delivery) = starting.while_they_run(delivery).await? else { return Ok(None) };
    let presence = Arc::clone(&gateway.presence);
    let peers = Peers::start(presence, nats, services.disturbances.clone()).await?;
    let (progress, waiting) = ProgressWatch::new(history.clone(), log);

    let delivering = Stop::new();
    let mut tasks = Tasks::default();
    tasks.spawn("the watch over the progress", progress.run(delivering.clone()));
    tasks.spawn("the delivery", delivery.run(delivering.clone()));
    let (inboxes, entries) = (Arc::clone(&gateway.inboxes), Arc::clone(&gateway.entries));
    tasks.spawn("what tells of sessions", updates::tell(inboxes, entries, delivering.clone()));
    tasks.spawn("what tells who types", Arc::clone(&gateway.typing).run(delivering.clone()));
    tasks.spawn("what tells who has read", Arc::clone(&gateway.reading).run(delivering.clone()));
    answer(&mut tasks, &gateway, &delivering);
    let backlogs = Arc::clone(&gateway.backlogs);
    tasks.spawn("the watch over what waits", backlogs.run(disconnect, delivering.clone()));
    tasks.spawn("what makes lists", lists.run(delivering.clone()));
    tasks.spawn("the exchange with other gateways", peers.run(delivering.clone()));
    let (router, io) = routes::router(&gateway, services.readiness.clone());
    let open = stop.run_until_cancelled(gateway.publisher.is_open());
    let Some(()) = open.await else { return Ok(None) };
    started.cancel();
    starting.all_ended().await?;
    tasks.spawn("the server", serve::serve(listeners, router, bounds, stop.clone()));
    services.readiness.serving(waiting);
    tracing::info!("ready");
    Ok(Some(Running { gateway, io, tasks, delivering }))
}

/// What connections may take.
fn bounds(config: &Config) -> Bounds {
    let per_peer = config.limits.rates.then_some(config.limits.connections_per_address as usize);
    let trusted = Arc::clone(&config.trusted_proxies);
    let slots = ConnectionSlots::new(per_peer, Arc::clone(&trusted));
    let incoming = Incoming::new(config.waiting.shared());
    Bounds { http: config.http, slots, packets: config.limits.packets(), incoming, trusted }
}

/// Puts together what sockets and routes share, and what makes their lists.
fn assemble(
    config: Config,
    services: &Services,
    log: &Log,
    incoming: Incoming,
    stop: &Stop,
) -> (Arc<Gateway>, ListMaker) {
    let (nats, history, partitions) =
        (services.nats.clone(), services.history.clone(), config.log.partitions);
    let lookup = SessionLookup::new(history.clone(), log.clone(), partitions);
    let revision = Arc::<ListRevision>::default();
    let presence = Arc::new(Presence::new(Arc::clone(&revision)));
    let inboxes = Arc::new(Inboxes::new(revision));
    let zone = config.inbox_zone.clone();
    let entries = Arc::new(Entries::new(history.clone(), Arc::clone(&presence), zone));
    let (lists, maker) = Lists::new(
        history.clone(),
        Arc::clone(&presence),
        Arc::clone(&inboxes),
        Arc::clone(&entries),
    );
    let rooms = Arc::<Rooms>::default();
    let typing = TypingSides::new(nats.clone(), GatewayId::random(), Arc::clone(&rooms));
    let reading = Reading::new(nats.clone(), Arc::clone(&rooms), Arc::clone(&inboxes));
    let gateway = Gateway {
        limits: Limits::new(config.limits.clone()),
        rooms,
        positions: Arc::default(),
        ring: Arc::default(),
        publisher: Arc::new(Publisher::new(nats, partitions, services.health.clone())),
        lookup: Arc::new(lookup),
        pending_sends: Arc::new(PendingSends::new(config.acks)),
        stored_sessions: Arc::default(),
        history,
        presence,
        typing: Arc::new(typing),
        reading: Arc::new(reading),
        inboxes,
        lists,
        entries,
        backlogs: Backlogs::new(config.waiting),
        incoming,
        answers: TaskTracker::new(),
        stop: stop.clone(),
        config,
    };
    (Arc::new(gateway), maker)
}

/// Answers sends by what became of them.
fn answer(tasks: &mut Tasks, gateway: &Gateway, until: &Stop) {
    let (pending, stop) = (Arc::clone(&gateway.pending_sends), until.clone());
    tasks.spawn("what answers sends", async move { pending.run(stop).await });
    let (pending, positions) = (Arc::clone(&gateway.pending_sends), Arc::clone(&gateway.positions));
    let looking = missed_fates::look(pending, positions, gateway.history.clone(), until.clone());
    tasks.spawn("what looks for missed fates", looking);
    let guard = Guard {
        nats: gateway.config.nats.clone(),
        log: gateway.config.log.clone(),
        publisher: Arc::clone(&gateway.publisher),
        pending: Arc::clone(&gateway.pending_sends),
        lookup: Arc::clone(&gateway.lookup),
        history: gateway.history.clone(),
    };
    tasks.spawn("what publishes", guard.run(until.clone()));
}

/// A gateway that serves.
struct Running {
    gateway: Arc<Gateway>,
    io: SocketIo,
    tasks: Tasks,
    /// Ends what clients are told by; the sockets are open as long.
    delivering: Stop,
}

impl Running {
    async fn until_stopped(mut self, stop: &Stop) -> anyhow::Result<()> {
        tokio::select! {
            // First: some of the tasks end by the same stop.
            biased;
            () = stop.cancelled() => {}
            error = self.tasks.one_ended() => return Err(error),
        }
        let deadline = self.gateway.config.shutdown;
        until_deadline(stop, deadline, self.drain()).await
    }

    async fn drain(mut self) -> anyhow::Result<()> {
        self.gateway.answers.close();
        let in_flight = IN_FLIGHT_TIMEOUT.min(self.gateway.config.shutdown / 2);
        tokio::time::timeout(in_flight, self.gateway.answers.wait()).await.ok();
        // Emitting after the close would panic: delivery ends first.
        self.delivering.cancel();
        tokio::time::timeout(CLOSE_TIMEOUT, self.io.close()).await.ok();
        self.tasks.all_ended().await
    }
}
