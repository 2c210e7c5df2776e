//! What operators ask for: `/health` while the process lives, `/ready` while it can work, `/metrics`.
//! It answers from the first moment to the last, also while the persister drains.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use async_nats::connection::State;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use shared::health::{Phase, Report};
use shared::lifecycle::Stop;
use tokio::net::TcpListener;

use crate::metrics::METRICS;
use crate::ownership::Owned;
use crate::progress::{self, Waiting};
use crate::store::{NOT_DURABLE, Store};

/// Longest wait for Postgres before it counts as away.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// What readiness depends on.
#[derive(Clone)]
pub struct Readiness {
    client: async_nats::Client,
    store: Store,
    work: Arc<OnceLock<(Owned, Waiting)>>,
    stop: Stop,
}

impl Readiness {
    /// Depends on these two, from [`Readiness::follow`] until the stop.
    pub fn new(client: async_nats::Client, store: Store, stop: Stop) -> Self {
        Self { client, store, work: Arc::default(), stop }
    }

    /// From now on it looks for its share, and stores.
    pub fn follow(&self, owned: Owned, waiting: Waiting) {
        self.work.set((owned, waiting)).ok();
    }

    async fn report(&self) -> Report {
        let asked = tokio::time::timeout(PING_TIMEOUT, self.store.is_durable()).await;
        let durable = asked.ok().and_then(Result::ok);
        let postgres = durable.is_some() && !self.store.is_waiting();
        let nats = self.client.connection_state() == State::Connected;
        let stalled = self.work.get().and_then(|(_, waiting)| progress::fault(waiting));
        if let Some(durable) = durable {
            METRICS.postgres_fsync.set(durable.into());
        }
        Report::new(self.phase(), vec![("postgres", postgres), ("nats", nats)])
            .with_fault(stalled)
            .with_warning((durable == Some(false)).then(|| NOT_DURABLE.to_owned()))
    }

    fn phase(&self) -> Phase {
        match self.work.get() {
            _ if self.stop.is_cancelled() => Phase::Stopping,
            Some(_) => Phase::Serving,
            None => Phase::Starting,
        }
    }

    async fn measure(&self) {
        // Before the report, which uses one itself.
        METRICS.connections.set_pool(self.store.pool());
        METRICS.connections.set_report(&self.report().await);
        METRICS.connections.set_nats(&self.client);
        let owned = self.work.get().map_or(0, |(owned, _)| owned.borrow().len());
        METRICS.partitions_owned.set(i64::try_from(owned).unwrap_or(i64::MAX));
    }
}

/// Listens where the settings say.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("OPS_ADDRESS: cannot listen on {address}"))
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, readiness: Readiness) -> anyhow::Result<()> {
    let measured = readiness.clone();
    let router = Router::new()
        .route("/health", get(health))
        .route("/ready", get(move || async move { ready(&readiness).await }))
        .route("/metrics", get(move || async move { metrics(&measured).await }));
    Ok(axum::serve(listener, router).await?)
}

async fn health() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#)
}

async fn ready(readiness: &Readiness) -> (StatusCode, String) {
    let report = readiness.report().await;
    let ready = report.is_ready();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, report.to_string())
}

async fn metrics(readiness: &Readiness) -> Response {
    readiness.measure().await;
    match METRICS.text() {
        Ok(text) => ([(header::CONTENT_TYPE, shared::metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
