//! Finds in Postgres what became of sends whose fate was announced and not heard.

use std::sync::Arc;
use std::time::Duration;

use shared::lifecycle::{Stop, pause};

use crate::db::history::History;
use crate::delivery::positions::Positions;
use crate::log::pending_sends::PendingSends;

/// Pause between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks until the stop.
pub async fn look(
    pending: Arc<PendingSends>,
    positions: Arc<Positions>,
    history: History,
    stop: Stop,
) -> anyhow::Result<()> {
    while pause(&stop, LOOK_INTERVAL).await {
        let sought = pending.missed(|partition| positions.of(partition));
        if sought.is_empty() {
            continue;
        }
        let sends: Vec<_> = sought.iter().map(|(_, send)| send).collect();
        let Some(fates) = stop.run_until_cancelled(history.fates(&sends)).await else { break };
        match fates {
            Ok(fates) => {
                for ((ticket, _), found) in sought.iter().zip(fates) {
                    pending.found(*ticket, &found, true);
                }
            }
            Err(error) => tracing::warn!(%error, "what became of sends cannot be read yet"),
        }
    }
    Ok(())
}
