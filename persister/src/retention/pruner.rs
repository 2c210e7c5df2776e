//! Erases by itself the sessions in which nothing happened for `RETENTION`, as `persister sessions prune` does.

use std::time::Duration;

use shared::lifecycle::{Stop, pause};
use shared::partition::Partition;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::metrics::METRICS;
use crate::ownership::Owned;
use crate::retention::prune::{Page, Sessions, stuck};

/// Pause between two looks at whether this worker is the one who erases.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// From the end of a sweep to the next one: it reads every session that is old enough, also those that are alive.
const SWEEP_INTERVAL: Duration = Duration::from_hours(1);
/// After a sweep that broke off.
const RETRY_INTERVAL: Duration = Duration::from_mins(1);
/// Pause after a page of which something was erased: messages of others waited behind that.
const PAGE_PAUSE: Duration = Duration::from_secs(1);
/// The partition whose owner erases; one worker is enough.
const PRUNED_BY_OWNER_OF: Partition = Partition::FIRST;

/// Erases what is idle.
pub struct Pruner {
    sessions: Sessions,
    owned: Owned,
    retention: Option<Duration>,
}

impl Pruner {
    /// Erases after so long, or never.
    pub fn new(sessions: Sessions, owned: Owned, retention: Option<Duration>) -> Self {
        Self { sessions, owned, retention }
    }

    /// Sweeps until the stop.
    pub async fn run(self, stop: &Stop) -> anyhow::Result<()> {
        let Some(retention) = self.retention else {
            stop.cancelled().await;
            return Ok(());
        };
        let mut next = Instant::now();
        while pause(stop, LOOK_INTERVAL).await {
            if Instant::now() < next || !self.is_in_charge() {
                continue;
            }
            let Some(swept) = stop.run_until_cancelled(self.sweep(retention, stop)).await else {
                break;
            };
            let wait = if let Err(error) = swept {
                let error = shared::causes::told(error.as_ref());
                tracing::warn!("idle sessions are not erased: {error}");
                RETRY_INTERVAL
            } else {
                SWEEP_INTERVAL
            };
            next = Instant::now() + wait;
        }
        Ok(())
    }

    fn is_in_charge(&self) -> bool {
        self.owned.borrow().contains(&PRUNED_BY_OWNER_OF)
    }

    /// Looks once at every session that is old enough, the oldest first.
    async fn sweep(&self, retention: Duration, stop: &Stop) -> anyhow::Result<()> {
        // Longer ago than any time: nothing is that old.
        let Some(before) = OffsetDateTime::now_utc().checked_sub(retention.try_into()?) else {
            return Ok(());
        };
        let (mut erased, mut behind) = (0, None);
        while let Some(page) = self.sessions.page(behind, before).await? {
            if !self.is_in_charge() {
                break;
            }
            let count = self.prune(&page, before).await?;
            erased += count;
            if count > 0 && !pause(stop, PAGE_PAUSE).await {
                break;
            }
            behind = Some(page.last);
        }
        if erased > 0 {
            tracing::info!(erased, "erased sessions in which nothing happened for RETENTION");
        }
        Ok(())
    }

    /// Erases those of a page; how many. One that cannot be erased keeps none behind it from that.
    async fn prune(&self, page: &Page, before: OffsetDateTime) -> anyhow::Result<usize> {
        let pruned = self.sessions.prune_page(page, before).await?;
        METRICS.sessions_pruned.inc_by(pruned.erased.try_into()?);
        if pruned.stuck > 0 {
            tracing::warn!("{}", stuck(pruned.stuck));
        }
        Ok(pruned.erased)
    }
}
