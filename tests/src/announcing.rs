//! Says to gateways what a persister would say.

use async_nats::Client;
use serde_json::Value;
use shared::announcement::{Announcement, Entry, Fate, Position, Stretch};
use shared::ids::SessionId;
use shared::partition::Partition;
use shared::subjects;

use crate::wait::must;

/// Repeats where a partition stands.
pub async fn repeat(nats: &Client, partition: Partition, position: Position) {
    tell(nats, Stretch::repeated(partition, position)).await;
}

/// Tells that a message is stored at a position, behind `previous`.
pub async fn say(
    nats: &Client,
    partition: Partition,
    (position, previous): (Position, u64),
    session: SessionId,
    message: Value,
) {
    let Position { epoch, sequence } = position;
    let id = message["id"].as_str().unwrap_or_default().to_owned();
    let (id, message) = (Some(id.as_str()), Some(message));
    let entries =
        vec![Entry { sequence, session, at: 0, fate: Fate::Stored, id, message, change: None }];
    tell(nats, Stretch { partition, epoch, previous, sequence, entries }).await;
}

async fn tell(nats: &Client, stretch: Stretch<'_, Value>) {
    let announcement = Announcement { partitions: vec![stretch] };
    let json = must(serde_json::to_vec(&announcement), "writing an announcement");
    must(nats.publish(subjects::COMMITS, json.into()).await, "announcing");
    must(nats.flush().await, "announcing");
}
