//! Readiness: whether this gateway can do its work now, dependency by dependency.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::connection::State;
use axum::http::StatusCode;
use shared::health::{self, Phase, Report, Waiting};
use shared::lifecycle::Stop;
use shared::metrics::Connections;
use tokio::sync::Mutex;

use crate::db::history::History;
use crate::log::health::LogHealth;
use crate::transport::serve::Host;

/// Longest wait for Postgres before it counts as away.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long its answer is good for: anybody may ask, and as often as they like.
const PING_INTERVAL: Duration = Duration::from_millis(500);

/// What readiness depends on.
#[derive(Clone)]
pub struct Readiness {
    client: Client,
    history: History,
    health: LogHealth,
    serving: Arc<OnceLock<Waiting>>,
    /// When Postgres was asked last, and whether it answered.
    pinged: Arc<Mutex<Option<(Instant, bool)>>>,
    stop: Stop,
}

impl Readiness {
    /// Depends on these, from [`Readiness::serving`] until the stop.
    pub fn new(client: Client, history: History, health: LogHealth, stop: Stop) -> Self {
        Self { client, history, health, serving: Arc::default(), pinged: Arc::default(), stop }
    }

    /// From now on clients are served, and what they say should be stored.
    pub fn serving(&self, waiting: Waiting) {
        self.serving.set(waiting).ok();
    }

    /// The answer of `/ready`.
    pub async fn answer(&self) -> (StatusCode, String) {
        let report = self.report().await;
        let status =
            if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, report.to_string())
    }

    /// Notes the same, and the connections behind it, as metrics.
    pub async fn measure(&self, connections: &Connections) {
        // Before the report, which uses one itself.
        connections.set_pool(self.history.pool());
        connections.set_report(&self.report().await);
        connections.set_nats(&self.client);
    }

    async fn postgres_answers(&self) -> bool {
        // Held meanwhile: who asks at the same time gets the same answer.
        let mut pinged = self.pinged.lock().await;
        if let Some((at, answers)) = *pinged
            && at.elapsed() < PING_INTERVAL
        {
            return answers;
        }
        let ping = tokio::time::timeout(PING_TIMEOUT, self.history.ping()).await;
        let answers = ping.is_ok_and(|ping| ping.is_ok());
        *pinged = Some((Instant::now(), answers));
        answers
    }

    async fn report(&self) -> Report {
        let postgres = self.postgres_answers().await;
        let nats = self.client.connection_state() == State::Connected && self.health.is_open();
        // Acks go on all the same: a balancer goes by the phase.
        let stalled = self.serving.get().and_then(health::stalled);
        let phase = Phase::of(&self.stop, self.serving.get().is_some());
        Report::new(phase, vec![("postgres", postgres), ("nats", nats)]).with_fault(stalled)
    }
}

/// Asks the gateway that listens here whether it is ready; its report is the error.
pub async fn ask(host: &Host, port: u16) -> anyhow::Result<()> {
    let address = match host {
        Host::Address(address) if !address.is_unspecified() => *address,
        Host::Address(_) | Host::Localhost => Ipv4Addr::LOCALHOST.into(),
    };
    Ok(shared::health::ask(SocketAddr::new(address, port)).await?)
}
