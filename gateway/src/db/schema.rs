//! Waits for the database to be what this release needs.

use std::time::Duration;

use shared::SCHEMA_VERSION;
use shared::database::Unusable;
use shared::lifecycle::{Backoff, Stop, pause};

use crate::db::history::History;

const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Waits until the migrations are applied. `None` if the stop came first.
pub async fn wait(history: &History, stop: &Stop) -> anyhow::Result<Option<()>> {
    let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
    loop {
        match look(history).await {
            Ok(Found { unusable: Some(unusable), .. }) => return Err(unusable.into()),
            Ok(Found { is_migrated: false, .. }) => {
                tracing::info!("waiting for a persister to migrate the database");
            }
            Ok(Found { older_workers: 1.., .. }) => {
                tracing::info!(
                    "waiting for persisters of an earlier release to stop: they would set changes of sessions aside"
                );
            }
            Ok(Found { is_replica, .. }) => {
                anyhow::ensure!(
                    !is_replica,
                    "DATABASE_URL names a replica; its answers may be of the past: name the primary"
                );
                return Ok(Some(()));
            }
            Err(error) => {
                if let Some(unusable) = Unusable::told_by(&error) {
                    return Err(unusable.into());
                }
                tracing::warn!(%error, "waiting for Postgres");
            }
        }
        if !pause(stop, backoff.pause()).await {
            return Ok(None);
        }
    }
}

struct Found {
    unusable: Option<Unusable>,
    is_migrated: bool,
    is_replica: bool,
    older_workers: i64,
}

/// Postgres may be away at either question.
async fn look(history: &History) -> Result<Found, sqlx::Error> {
    let unusable = history.look().await?;
    let is_migrated = history.schema_version().await? >= Some(SCHEMA_VERSION);
    let older_workers = if is_migrated { history.older_workers().await? } else { 0 };
    Ok(Found { unusable, is_migrated, is_replica: history.is_replica().await?, older_workers })
}
