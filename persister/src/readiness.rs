//! Readiness: whether this persister can do its work now, dependency by dependency.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::connection::State;
use shared::health::{self, Phase, Report, Waiting};
use shared::lifecycle::Stop;

use crate::metrics::METRICS;
use crate::ownership::Owned;
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

    /// What `/ready` says.
    pub async fn report(&self) -> Report {
        let asked = tokio::time::timeout(PING_TIMEOUT, self.store.is_durable()).await;
        let durable = asked.ok().and_then(Result::ok);
        let postgres = durable.is_some() && !self.store.is_waiting();
        let nats = self.client.connection_state() == State::Connected;
        let stalled = self.work.get().and_then(|(_, waiting)| health::stalled(waiting));
        if let Some(durable) = durable {
            METRICS.postgres_fsync.set(durable.into());
        }
        let phase = Phase::of(&self.stop, self.work.get().is_some());
        Report::new(phase, vec![("postgres", postgres), ("nats", nats)])
            .with_fault(stalled)
            .with_warning((durable == Some(false)).then(|| NOT_DURABLE.to_owned()))
    }

    /// Notes the same, and the connections behind it, as metrics.
    pub async fn measure(&self) {
        // Before the report, which uses one itself.
        METRICS.connections.set_pool(self.store.pool());
        METRICS.connections.set_report(&self.report().await);
        METRICS.connections.set_nats(&self.client);
        let owned = self.work.get().map_or(0, |(owned, _)| owned.borrow().len());
        METRICS.partitions_owned.set(i64::try_from(owned).unwrap_or(i64::MAX));
    }
}
