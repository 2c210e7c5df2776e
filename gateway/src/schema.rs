//! Waits for the database to be what this release needs.

use std::time::Duration;

use shared::SCHEMA_VERSION;
use shared::lifecycle::{Backoff, Stop, pause};

use crate::history::History;

/// Pauses between looks.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Waits until the migrations are applied. `None` if the stop came first.
pub async fn wait(history: &History, stop: &Stop) -> anyhow::Result<Option<()>> {
    let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
    loop {
        match is_ready(history).await {
            Ok(true) => {
                let replica = history.is_replica().await?;
                anyhow::ensure!(
                    !replica,
                    "DATABASE_URL names a replica; its answers may be of the past: name the primary"
                );
                return Ok(Some(()));
            }
            Ok(false) => tracing::info!("waiting for a persister to migrate the database"),
            Err(error) => tracing::warn!(%error, "waiting for Postgres"),
        }
        if !pause(stop, backoff.pause()).await {
            return Ok(None);
        }
    }
}

async fn is_ready(history: &History) -> sqlx::Result<bool> {
    match history.schema_version().await {
        Ok(version) => Ok(version >= Some(SCHEMA_VERSION)),
        Err(error) if is_missing_table(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// SQLSTATE `undefined_table`: no migration ever ran.
fn is_missing_table(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == "42P01")
}
