//! How far behind each owned partition is, and how full the log: looked at every few seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::Client;
use shared::lifecycle::{Stop, pause};
use shared::log::Log;
use shared::partition::Partition;
use shared::subjects;
use shared::timestamp::seconds_since;
use time::OffsetDateTime;

use crate::metrics::METRICS;
use crate::ownership::Owned;
use crate::store::Store;

/// Pause between two looks; Prometheus asks every 15 s unless told otherwise.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// From this version on nats-server counts what stands behind a record without the record itself.
const COUNTS_BEHIND_ONLY: (i64, i64, i64) = (2, 12, 0);

/// Looks at what is not stored yet.
pub struct LagWatch {
    store: Store,
    client: Client,
    log: Log,
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
    pub fn new(store: Store, client: Client, log: Log, owned: Owned) -> Self {
        Self { store, client, log, owned, stored: BTreeMap::new(), told: BTreeSet::new() }
    }

    /// Looks until the stop.
    pub async fn run(mut self, stop: &Stop) -> anyhow::Result<()> {
        while pause(stop, LOOK_INTERVAL).await {
            if let Some(Err(error)) = stop.run_until_cancelled(self.look()).await {
                tracing::debug!(
                    "the lag of the log is not known: {}",
                    shared::causes::told(error.as_ref())
                );
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
        if let Ok(count) = self.store.uncleared_count().await {
            METRICS.erased_in_log.set(count);
        }
        let owned: BTreeSet<_> = self.owned.borrow().iter().copied().collect();
        for given_up in self.told.difference(&owned) {
            METRICS.forget_lag(*given_up);
        }
        self.told.clone_from(&owned);
        let info = self.log.stream().get_info().await?;
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

    /// Asks for the first record after `stored`, and how many there are from it on.
    async fn pending(&self, partition: Partition, stored: u64) -> anyhow::Result<Option<Pending>> {
        let subject = subjects::requests_of(partition);
        let Some(first) = self.log.first_record(&subject, stored + 1).await? else {
            return Ok(None);
        };
        // What stands beside a record would come with the count, and end the connection if it cannot be read.
        let records =
            if first.has_headers { 1 } else { self.count_from(&subject, first.sequence).await? };
        Ok(Some(Pending { recorded_at: first.time, records }))
    }

    /// How many records of a subject there are from this one on. Any server of a cluster counts: one that is
    /// late counts a few less, and whether anything is pending it is not asked.
    async fn count_from(&self, subject: &str, sequence: u64) -> anyhow::Result<u64> {
        let wanted = serde_json::json!({ "seq": sequence, "next_by_subj": subject, "batch": 1 });
        let wanted = serde_json::to_vec(&wanted)?.into();
        let name = &self.log.stream().cached_info().config.name;
        let direct_get = format!("{}.{name}", subjects::DIRECT_GET);
        let answer = self.client.request(direct_get, wanted).await?;
        let count = answer.headers.as_ref().and_then(|headers| headers.get("Nats-Num-Pending"));
        // Without a record the answer is a status and has none.
        let count: u64 = count.map_or(Ok(0), |count| count.as_str().parse())?;
        let (major, minor, patch) = COUNTS_BEHIND_ONLY;
        let is_missing = self.client.is_server_compatible(major, minor, patch);
        // This one is there: it was read a moment ago.
        Ok(if is_missing { count + 1 } else { count.max(1) })
    }
}
