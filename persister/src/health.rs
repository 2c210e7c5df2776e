//! Health of the persister over HTTP: `/health` while the process lives, `/ready` while it can work.

use std::time::Duration;

use async_nats::connection::State;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use shared::lifecycle::Stop;
use tokio::net::TcpListener;

use crate::ownership::Owned;
use crate::store::Store;

/// Longest wait for Postgres before it counts as away.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// What readiness depends on.
#[derive(Clone)]
pub struct Readiness {
    client: async_nats::Client,
    store: Store,
    owned: std::sync::Arc<std::sync::OnceLock<Owned>>,
}

impl Readiness {
    /// Not ready before [`Readiness::follow`].
    pub fn new(client: async_nats::Client, store: Store) -> Self {
        Self { client, store, owned: std::sync::Arc::default() }
    }

    /// From now on it is ready when it has looked for its share.
    pub fn follow(&self, owned: Owned) {
        self.owned.set(owned).ok();
    }

    /// One line per dependency, and whether all are well.
    async fn report(&self) -> (StatusCode, String) {
        let postgres = tokio::time::timeout(PING_TIMEOUT, self.store.ping())
            .await
            .is_ok_and(|ping| ping.is_ok());
        let nats = self.client.connection_state() == State::Connected;
        let started = self.owned.get().is_some();
        let state = |well| if well { "ok" } else { "unavailable" };
        let text = format!(
            "postgres: {}\nnats: {}\npartitions: {}\n",
            state(postgres),
            state(nats),
            self.owned
                .get()
                .map_or_else(|| "starting".to_owned(), |owned| owned.borrow().len().to_string()),
        );
        let ready = postgres && nats && started;
        (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
    }
}

/// Serves until the stop.
pub async fn serve(listener: TcpListener, readiness: Readiness, stop: Stop) -> anyhow::Result<()> {
    let stopping = stop.clone();
    let ready = move || async move {
        if stopping.is_cancelled() {
            return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
        }
        readiness.report().await
    };
    let health = || async { ([("content-type", "application/json")], r#"{"status":"ok"}"#) };
    let router = Router::new().route("/health", get(health)).route("/ready", get(ready));
    let serving = axum::serve(listener, router).into_future();
    // Answers until the stop; an answer that is under way then is not worth waiting for.
    stop.run_until_cancelled(serving).await.unwrap_or(Ok(()))?;
    Ok(())
}
