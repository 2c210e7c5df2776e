//! One task emits saved messages to their rooms, in the order in which they were stored.
//!
//! It keeps one position per partition. An announcement at or below it was emitted before; one
//! whose predecessor is the position, or below it, comes next; anything else means that something
//! was missed, and the missing stretch is read from Postgres. That one rule covers announcements
//! that were lost, reconnects, a subscription that was too slow, and writers that died between
//! commit and announcement.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::Stream;
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use serde_json::value::{RawValue, to_raw_value};
use shared::announcement::{Announcement, Position};
use shared::ids::SessionId;
use shared::lifecycle::{Backoff, Stop, pause};
use shared::partition::Partition;
use shared::subjects;

use crate::Gateway;
use crate::history::SessionMessage;
use crate::rooms::Saved;

/// Messages read at a time when something was missed.
const STRETCH: u16 = 500;
/// Pauses between tries while Postgres does not answer.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The delivery task.
pub struct Delivery {
    gateway: Arc<Gateway>,
    saved: Subscriber,
    positions: HashMap<Partition, Position>,
}

impl Delivery {
    /// Subscribes, then reads where every partition stands: what is stored later is emitted.
    /// `None` if the stop came first.
    pub async fn start(
        gateway: &Arc<Gateway>,
        client: &Client,
        log: &Stream,
        stop: &Stop,
    ) -> anyhow::Result<Option<Self>> {
        let saved = client.subscribe(subjects::ALL_SAVED).await?;
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        loop {
            match positions(gateway, log).await {
                Ok(positions) => {
                    return Ok(Some(Self { gateway: Arc::clone(gateway), saved, positions }));
                }
                Err(error) => tracing::warn!("waiting for Postgres and NATS: {error:#}"),
            }
            if !pause(stop, backoff.pause()).await {
                return Ok(None);
            }
        }
    }

    /// Emits until the stop.
    pub async fn run(mut self, stop: Stop) -> anyhow::Result<()> {
        while let Some(Some(message)) = stop.run_until_cancelled(self.saved.next()).await {
            let place = subjects::parse_saved(&message.subject);
            let announcement = message.headers.as_ref().and_then(Announcement::from_headers);
            let (Some((partition, session)), Some(announcement)) = (place, announcement) else {
                tracing::warn!("an announcement cannot be read");
                continue;
            };
            let message = session.and_then(|session| {
                Some((session, saved(&message.payload, announcement.position)?))
            });
            stop.run_until_cancelled(self.on_announcement(partition, announcement, message)).await;
        }
        anyhow::ensure!(stop.is_cancelled(), "the subscription to saved messages ended");
        Ok(())
    }

    async fn on_announcement(
        &mut self,
        partition: Partition,
        announcement: Announcement,
        message: Option<(SessionId, Saved)>,
    ) {
        let Announcement { position, previous } = announcement;
        let known =
            *self.positions.entry(partition).or_insert(Position { sequence: previous, ..position });
        if known.epoch != position.epoch || previous > known.sequence {
            self.heal(partition, position).await;
        }
        // After healing a position may still be ahead: nothing is stored between the two.
        let known = self.positions[&partition];
        if known.epoch == position.epoch && position.sequence > known.sequence {
            if let Some((session, message)) = message {
                self.gateway.rooms.emit(session, &message);
            }
            self.positions.insert(partition, position);
        }
    }

    /// Emits what a partition stored after the known position, until Postgres answers.
    async fn heal(&mut self, partition: Partition, announced: Position) {
        let known = self.positions[&partition];
        tracing::info!(%partition, from = known.sequence, to = announced.sequence, "reading what was missed");
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        while let Err(error) = self.read_missing(partition, announced).await {
            tracing::warn!(%error, "what was missed cannot be read yet");
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn read_missing(
        &mut self,
        partition: Partition,
        announced: Position,
    ) -> sqlx::Result<()> {
        loop {
            self.read_stored(partition).await?;
            let known = self.positions[&partition];
            if known.epoch == announced.epoch {
                return Ok(());
            }
            let epochs = self.gateway.history.epochs_from(partition, known.epoch).await?;
            let forgotten = epochs.is_empty();
            // An epoch in which nothing is stored yet shows in no row. One that is older than ours is
            // the last word of a worker that was fenced.
            if forgotten || epochs.contains(&announced.epoch) {
                self.positions.insert(partition, Position { epoch: announced.epoch, sequence: 0 });
            }
            // A database restored from before our epoch knows only the new one: read that too.
            if !forgotten {
                return Ok(());
            }
        }
    }

    /// Emits everything that a partition stored after the known position.
    async fn read_stored(&mut self, partition: Partition) -> sqlx::Result<()> {
        loop {
            let known = self.positions[&partition];
            let stored = self.gateway.history.stored_after(partition, known, STRETCH).await?;
            let Some(last) = stored.last().and_then(|last| last.message.position()) else {
                return Ok(());
            };
            for message in &stored {
                self.emit(message);
            }
            self.positions.insert(partition, last);
        }
    }

    fn emit(&self, stored: &SessionMessage) {
        let session = SessionId::parse(&stored.session_id).ok();
        let json = to_raw_value(&stored.message.to_message()).ok();
        if let (Some(session), Some(json), Some(position)) =
            (session, json, stored.message.position())
        {
            self.gateway.rooms.emit(session, &Saved { position, json: json.into() });
        }
    }
}

/// The message of an announcement; it is checked to be JSON, not parsed.
fn saved(payload: &[u8], position: Position) -> Option<Saved> {
    let json: Box<RawValue> = serde_json::from_slice(payload).ok()?;
    Some(Saved { position, json: json.into() })
}

/// Where every partition stands, read after the server surely knows the subscription.
async fn positions(
    gateway: &Gateway,
    log: &Stream,
) -> anyhow::Result<HashMap<Partition, Position>> {
    // A flush is no round trip; a request on the same connection is.
    log.get_info().await?;
    Ok(gateway.history.positions().await?.into_iter().collect())
}
