//! Whether anything is stored while something waits: Postgres and NATS may both answer, and the log may not be
//! read or a statement may not be planned all the same.

use std::collections::BTreeMap;
use std::time::Duration;

use shared::health::{self, Waiting};
use shared::lifecycle::{Stop, pause};
use shared::log::Log;
use shared::partition::Partition;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::METRICS;
use crate::ownership::Owned;
use crate::reader;
use crate::store::Store;

/// Pause between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks after what is stored.
pub struct ProgressWatch {
    store: Store,
    log: Log,
    owned: Owned,
    waiting: watch::Sender<Option<Instant>>,
    stored: BTreeMap<Partition, u64>,
    /// With this last sequence of the log nothing waited behind what is stored.
    idle_at: Option<u64>,
}

impl ProgressWatch {
    /// Looks at the partitions of this worker; at all, while it has none.
    pub fn new(store: Store, log: Log, owned: Owned) -> (Self, Waiting) {
        let (waiting, receiver) = watch::channel(None);
        let stored = BTreeMap::new();
        (Self { store, log, owned, waiting, stored, idle_at: None }, receiver)
    }

    /// Looks until the stop.
    pub async fn run(mut self, stop: &Stop) -> anyhow::Result<()> {
        while pause(stop, LOOK_INTERVAL).await {
            let Some(waits) = stop.run_until_cancelled(self.waits()).await else { break };
            // What cannot be looked at has not answered: that is told elsewhere.
            let waits = waits.unwrap_or(false);
            self.waiting.send_if_modified(|since| {
                let before = *since;
                *since = waits.then(|| before.unwrap_or_else(Instant::now));
                before != *since
            });
            METRICS.stalled.set(health::stalled(&self.waiting.subscribe()).is_some().into());
        }
        Ok(())
    }

    /// Whether something waits and nothing was stored since the last look.
    async fn waits(&mut self) -> anyhow::Result<bool> {
        let owned = self.owned.borrow().clone();
        let counts = |partition: &Partition| owned.is_empty() || owned.contains(partition);
        let stored = self.store.stored_sequences().await?;
        let stored: BTreeMap<_, _> = stored.into_iter().filter(|(one, _)| counts(one)).collect();
        let moved = stored != self.stored;
        self.stored = stored;
        if moved {
            self.idle_at = None;
            return Ok(false);
        }
        let last = self.log.stream().get_info().await?.state.last_sequence;
        if self.idle_at == Some(last) {
            return Ok(false);
        }
        for (partition, sequence) in &self.stored {
            let newest = reader::last_sequence(&self.log, *partition).await;
            if newest.map_err(anyhow::Error::from_boxed)? > *sequence {
                return Ok(true);
            }
        }
        self.idle_at = Some(last);
        Ok(false)
    }
}
