//! How far behind each owned partition is, and how full the log: looked at every few seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use async_nats::Client;
use async_nats::jetstream::stream::Stream;
use shared::lifecycle::{Stop, pause};
use shared::partition::Partition;
use shared::subjects;
use shared::timestamp::seconds_since;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::metrics::METRICS;
use crate::ownership::Owned;
use crate::store::Store;

/// Pause between two looks; Prometheus asks every 15 s unless told otherwise.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Looks at what is not stored yet.
pub struct LagWatch {
    store: Store,
    client: Client,
    log: Stream,
    owned: Owned,
    /// How far each partition is stored, as far as Postgres said last: while it is away the lag grows.
    stored: BTreeMap<Partition, u64>,
    told: BTreeSet<Partition>,
}

/// The first record that is not stored yet.
struct Pending {
    recorded_at: OffsetDateTime,
    /// Records from this one on.
    records: u64,
}

impl LagWatch {
    /// Looks at the partitions of this worker.
    pub fn new(store: Store, client: Client, log: Stream, owned: Owned) -> Self {
        Self { store, client, log, owned, stored: BTreeMap::new(), told: BTreeSet::new() }
    }

    /// Looks until the stop.
    pub async fn run(mut self, stop: &Stop) -> anyhow::Result<()> {
        while pause(stop, LOOK_INTERVAL).await {
            if let Some(Err(error)) = stop.run_until_cancelled(self.look()).await {
                tracing::debug!("the lag of the log is not known: {error:#}");
            }
        }
        Ok(())
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        if let Ok(stored) = self.store.stored_sequences().await {
            self.stored = stored.into_iter().collect();
        }
        if let Ok(count) = self.store.dead_letter_count().await {
            METRICS.dead_letters.set(count);
        }
        let owned: BTreeSet<_> = self.owned.borrow().iter().copied().collect();
        for given_up in self.told.difference(&owned) {
            METRICS.forget_lag(*given_up);
        }
        self.told.clone_from(&owned);
        let info = self.log.get_info().await?;
        METRICS.log_bytes.set(i64::try_from(info.state.bytes)?);
        METRICS.log_bytes_max.set(info.config.max_bytes);
        for partition in owned {
            let stored = self.stored.get(&partition).copied().unwrap_or_default();
            match self.pending(partition, stored).await? {
                Some(Pending { recorded_at, records }) => {
                    METRICS.set_lag(partition, records, seconds_since(recorded_at));
                }
                None => METRICS.set_lag(partition, 0, 0.0),
            }
        }
        Ok(())
    }

    /// Asks for the first record after `stored`; the answer also counts those behind it.
    async fn pending(&self, partition: Partition, stored: u64) -> anyhow::Result<Option<Pending>> {
        let wanted = serde_json::json!({
            "seq": stored + 1, "next_by_subj": subjects::requests_of(partition), "batch": 1,
        });
        let wanted = serde_json::to_vec(&wanted)?.into();
        let answer = self.client.request(subjects::DIRECT_GET, wanted).await?;
        if answer.status.is_some() {
            // Nothing is there.
            return Ok(None);
        }
        let headers = answer.headers.context("a record of the log without headers")?;
        let header = |name| headers.get(name).map(async_nats::HeaderValue::as_str).context(name);
        Ok(Some(Pending {
            recorded_at: OffsetDateTime::parse(header("Nats-Time-Stamp")?, &Rfc3339)?,
            records: header("Nats-Num-Pending")?.parse::<u64>()? + 1,
        }))
    }
}
