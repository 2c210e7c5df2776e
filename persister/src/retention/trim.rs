//! Removes records from the log: those of erased sessions and old ones. Nobody else does: records are
//! kept after they were stored, so that a database restored from an older backup catches up by itself.
//!
//! Removed is what every partition has stored, once it is older than `LOG_KEEP` or when the log takes
//! more than half of its room; the other half is for a backlog. A partition in which nothing is
//! pending holds nothing back.

use std::time::Duration;

use async_nats::jetstream::stream::Info;
use shared::lifecycle::{Stop, pause};
use shared::log::Log;
use shared::partition::Partition;
use time::OffsetDateTime;

use crate::log_identity::{self, AnotherLog};
use crate::metrics::METRICS;
use crate::ownership::Owned;
use crate::reader;
use crate::retention::erased::clear;
use crate::store::Store;

/// Pause between two looks: how long a log that filled up stays full after the backlog is stored.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Erased sessions that one look removes: a second or two, so that trimming is never late.
const CLEARED_MAX: u32 = 1_000;
/// The partition whose owner looks; one worker is enough.
const TRIMMED_BY_OWNER_OF: Partition = Partition::FIRST;

/// Removes what is stored and old.
pub struct Trimmer {
    store: Store,
    log: Log,
    owned: Owned,
    keep: Duration,
}

impl Trimmer {
    /// Keeps records for at least `keep`, if there is room.
    pub fn new(store: Store, log: Log, owned: Owned, keep: Duration) -> Self {
        Self { store, log, owned, keep }
    }

    /// Looks until the stop.
    pub async fn run(self, stop: &Stop) -> anyhow::Result<()> {
        while pause(stop, LOOK_INTERVAL).await {
            if !self.owned.borrow().contains(&TRIMMED_BY_OWNER_OF) {
                continue;
            }
            let Some((cleared, trimmed)) = stop.run_until_cancelled(self.look()).await else {
                break;
            };
            if let Err(error) = cleared {
                tracing::warn!(
                    "erased sessions are not removed from the log: {}",
                    shared::causes::told(error.as_ref())
                );
            }
            if let Err(error) = trimmed {
                tracing::warn!("the log is not trimmed: {}", shared::causes::told(error.as_ref()));
            }
        }
        Ok(())
    }

    /// Neither keeps the other from its work.
    async fn look(&self) -> (anyhow::Result<()>, anyhow::Result<()>) {
        (self.clear().await, self.trim().await)
    }

    /// Removes what is left of erased sessions, by the same rule as everything else: where every
    /// partition is beyond it, or its next owner would take the log for trimmed too far.
    async fn clear(&self) -> anyhow::Result<()> {
        let erased = self.store.uncleared(CLEARED_MAX).await?;
        if erased.is_empty() {
            return Ok(());
        }
        let below = self.stored_below(&self.log.stream().get_info().await?).await?;
        let mut records = 0;
        for erased in erased {
            if erased.in_this_log {
                if erased.last_sequence >= below {
                    continue;
                }
                records += clear(&self.log, &erased).await?;
            }
            self.store.cleared(&erased).await?;
        }
        METRICS.log_records_cleared.inc_by(records);
        tracing::info!(records, "removed erased sessions from the log");
        Ok(())
    }

    async fn trim(&self) -> anyhow::Result<()> {
        let info = self.log.stream().get_info().await?;
        let wanted = self.old_before(&info).await?.max(too_many_before(&info));
        if wanted <= info.state.first_sequence {
            return Ok(());
        }
        let below = wanted.min(self.stored_below(&info).await?);
        if below <= info.state.first_sequence {
            return Ok(());
        }
        let purged = self.log.stream().purge().sequence(below).await?;
        METRICS.log_records_trimmed.inc_by(purged.purged);
        tracing::info!(records = purged.purged, below, "trimmed the log");
        Ok(())
    }

    /// The first sequence that some partition still needs. Partitions without anything pending are
    /// moved there: what their offset names is removed, and they must not look as if they lost it.
    async fn stored_below(&self, info: &Info) -> anyhow::Result<u64> {
        let marks = self.store.marks().await?;
        let mut below = info.state.last_sequence + 1;
        let mut idle = Vec::new();
        for mark in &marks {
            let (partition, sequence) = (mark.partition, mark.stored.sequence);
            let last = reader::last_sequence(&self.log, partition).await;
            if last.map_err(anyhow::Error::from_boxed)? > sequence {
                below = below.min(sequence + 1);
            } else {
                idle.push((partition, sequence));
            }
        }
        // After everything else was looked at: nothing of it was another log's.
        let another = log_identity::another_log(&self.log, &marks).await;
        if let Some(AnotherLog { why, .. }) = another.map_err(anyhow::Error::from_boxed)? {
            anyhow::bail!("this is not the log that the offsets were taken from ({why})");
        }
        idle.retain(|(_, sequence)| sequence + 1 < below);
        self.store.move_idle(&idle, below - 1, info.created).await?;
        Ok(below)
    }

    /// The first sequence that is young enough to be kept, by bisection.
    async fn old_before(&self, info: &Info) -> anyhow::Result<u64> {
        let cutoff = OffsetDateTime::now_utc() - self.keep;
        let (mut low, mut high) = (info.state.first_sequence, info.state.last_sequence + 1);
        if info.state.messages == 0 || info.state.first_timestamp >= cutoff {
            return Ok(low);
        }
        while low < high {
            let middle = low + (high - low) / 2;
            // Records may be missing inside the log: the next one that is there counts.
            let next = self.log.first_record(shared::subjects::ALL_REQUESTS, middle).await;
            match next {
                Ok(Some(record)) if record.time < cutoff => low = record.sequence + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }
}

/// The first sequence to keep so that the log takes half of its room, if all records were alike.
fn too_many_before(info: &Info) -> u64 {
    let state = &info.state;
    let half = info.config.max_bytes.unsigned_abs() / 2;
    if state.bytes <= half || state.messages == 0 {
        return state.first_sequence;
    }
    let surplus =
        u128::from(state.bytes - half) * u128::from(state.messages) / u128::from(state.bytes);
    state.first_sequence + u64::try_from(surplus).unwrap_or(u64::MAX) + 1
}
