//! A running persister's look at the index: it makes what is missing, beside the storing.

use std::time::{Duration, Instant};

use shared::database::Database;
use shared::lifecycle::{Stop, pause};
use shared::partition::Partition;

use crate::ownership::Owned;
use crate::search::index::{self, NOT_OWNER, Outcome};

/// Pause between two looks at whether this worker is the one who makes it.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// From one look at the index to the next.
const AGAIN_INTERVAL: Duration = Duration::from_mins(1);
/// The partition whose owner makes it; one worker is enough.
const MADE_BY_OWNER_OF: Partition = Partition::FIRST;

/// Sees to it that the index is there.
pub struct SearchIndex {
    database: Database,
    owned: Owned,
    is_on: bool,
}

impl SearchIndex {
    /// Where it is off, what is there stays as it is.
    pub fn new(database: &Database, owned: Owned, is_on: bool) -> Self {
        Self { database: database.clone(), owned, is_on }
    }

    /// Looks, and makes it, until the stop. Postgres goes on with one that is stopped meanwhile.
    pub async fn run(self, stop: &Stop) -> anyhow::Result<()> {
        if !self.is_on {
            stop.cancelled().await;
            return Ok(());
        }
        let (mut next, mut is_told) = (Instant::now(), false);
        while pause(stop, LOOK_INTERVAL).await {
            if Instant::now() < next || !self.owned.borrow().contains(&MADE_BY_OWNER_OF) {
                continue;
            }
            let making = index::make(&self.database, |line| tracing::info!("{line}"));
            match stop.run_until_cancelled(making).await {
                None => break,
                Some(Ok(Outcome::NotOwner)) if !is_told => {
                    tracing::warn!("{NOT_OWNER}");
                    is_told = true;
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    let error = shared::causes::told(error.as_ref());
                    tracing::warn!("messages cannot be searched yet: {error}");
                }
            }
            next = Instant::now() + AGAIN_INTERVAL;
        }
        Ok(())
    }
}
