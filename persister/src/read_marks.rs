//! Keeps up to which message each side has read a session, as gateways say, and tells all gateways what it kept.

use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;
use shared::lifecycle::{Stop, pause};
use shared::reading::ReadMarks;
use shared::subjects;

use crate::store::Store;
use crate::store::read_marks::Kept;

/// Persisters share the marks.
const QUEUE: &str = "persisters";
/// A session whose row is being changed is tried again so often, after so long.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// Keeps what gateways say until the stop. What cannot be kept is lost: whoever reads on says so again.
pub async fn keep(store: Store, client: Client, stop: &Stop) -> anyhow::Result<()> {
    let mut marks = client.queue_subscribe(subjects::READ_MARKS, QUEUE.into()).await?;
    while let Some(Some(message)) = stop.run_until_cancelled(marks.next()).await {
        match serde_json::from_slice(&message.payload) {
            Ok(marks) => keep_these(&store, &client, marks, stop).await,
            Err(error) => tracing::warn!(%error, "what was read of sessions cannot be read"),
        }
    }
    Ok(())
}

async fn keep_these(store: &Store, client: &Client, mut left: ReadMarks, stop: &Stop) {
    for _ in 0..TRIES {
        let kept = match store.mark_read(&left.marks).await {
            Ok(kept) => kept,
            Err(error) => return tracing::warn!(%error, "what was read of sessions is not kept"),
        };
        let (moved, busy) = kept;
        tell(client, moved).await;
        left.marks = busy;
        if left.marks.is_empty() || !pause(stop, PAUSE).await {
            return;
        }
    }
}

async fn tell(client: &Client, moved: Kept) {
    if moved.is_empty() {
        return;
    }
    if let Ok(payload) = serde_json::to_vec(&ReadMarks { marks: moved }) {
        client.publish(subjects::READ_UP_TO, payload.into()).await.ok();
    }
}
