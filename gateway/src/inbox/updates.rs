//! Tells agents of each session about which something was decided, and those who asked for deltas of each whose entry
//! in the lists changed: many changes of a session in a second are told once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use shared::ids::SessionId;
use shared::lifecycle::{Stop, pause};
use tokio::time::Instant;

use crate::delivery::inboxes::Inboxes;
use crate::inbox::entry::Entries;

/// Decisions that follow each other closely are read together.
const GATHER: Duration = Duration::from_millis(20);
/// Whoever asked for deltas is told of a session at most this often.
const DELTA_GAP: Duration = Duration::from_secs(1);
/// Sessions of one look into the database.
const SESSIONS_MAX: usize = 500;
/// Sessions that are told of in that time at most: where more change, each is told of later, and as it is then.
const DELTAS_MAX: usize = 1_000;
/// Pause after a look failed.
const RETRY: Duration = Duration::from_secs(1);

/// Tells until the stop.
pub async fn tell(inboxes: Arc<Inboxes>, entries: Arc<Entries>, stop: Stop) -> anyhow::Result<()> {
    let mut touched_at = Instant::now();
    let mut touched = HashSet::new();
    loop {
        let is_told = stop.run_until_cancelled(async {
            if touched.is_empty() {
                inboxes.update().await;
            } else {
                tokio::time::timeout_at(touched_at + DELTA_GAP, inboxes.update()).await.ok();
            }
        });
        if is_told.await.is_none() || !pause(&stop, GATHER).await {
            return Ok(());
        }
        let decided = inboxes.take_decided();
        touched.extend(inboxes.take_touched());
        touched.retain(|session| !decided.contains(session));
        give(&inboxes, &entries, &decided, true, &stop).await;
        if touched_at.elapsed() >= DELTA_GAP {
            touched_at = Instant::now();
            let mut left = touched.iter().copied();
            let turn: HashSet<_> = left.by_ref().take(DELTAS_MAX).collect();
            touched = left.collect();
            give(&inboxes, &entries, &turn, false, &stop).await;
        }
    }
}

/// Reads the entries of these sessions and gives them to all agents, or to those who asked for deltas.
async fn give(
    inboxes: &Inboxes,
    entries: &Entries,
    sessions: &HashSet<SessionId>,
    to_all: bool,
    stop: &Stop,
) {
    let sessions: Vec<_> = sessions.iter().copied().collect();
    for some in sessions.chunks(SESSIONS_MAX) {
        loop {
            match entries.of(some).await {
                Ok(updated) => {
                    for session in &updated {
                        inboxes.updated(session, to_all);
                    }
                    break;
                }
                Err(error) => tracing::warn!(%error, "what changed about sessions cannot be read"),
            }
            if !pause(stop, RETRY).await {
                return;
            }
        }
    }
}
