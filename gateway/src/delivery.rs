//! One task emits saved messages to their rooms, in the order in which they were stored, and ends the
//! sessions that were erased.
//!
//! It keeps one position per partition. An announcement at or below it was emitted before; one
//! whose predecessor is the position, or below it, comes next; anything else means that something
//! was missed, and the missing stretch is read from Postgres. That one rule covers announcements
//! that were lost, reconnects, a subscription that was too slow, and writers that died between
//! commit and announcement.
//!
//! A position never goes back. A Postgres behind it was restored from an older backup: what is
//! replayed then was emitted before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use shared::timestamp::seconds_since;
use time::OffsetDateTime;

use crate::Gateway;
use crate::history::{SessionMessage, Snapshot};
use crate::metrics::METRICS;
use crate::rooms::Saved;

/// Messages emitted before everything else has its turn again. When thousands of sockets are ready a round
/// takes long: the runtime's own 128 a round would leave deliveries behind, and the rest of the machine idle.
const IN_ONE_GO: usize = 1_024;
/// Messages read at a time when something was missed.
const STRETCH: u16 = 500;
/// Pauses between tries while Postgres does not answer.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Up to where everything was emitted, by partition.
#[derive(Default)]
pub struct Positions(Mutex<HashMap<Partition, Position>>);

impl Positions {
    /// Where a partition stands; `None` if nothing was ever heard of it.
    pub fn of(&self, partition: Partition) -> Option<Position> {
        self.lock().get(&partition).copied()
    }

    /// Where a partition stands; if nothing was ever heard of it, it begins here.
    fn of_or_begin(&self, partition: Partition, begin: Position) -> Position {
        *self.lock().entry(partition).or_insert(begin)
    }

    /// To be called before what it covers is emitted: whoever joins later was not given it.
    fn advance(&self, partition: Partition, position: Position) {
        self.lock().insert(partition, position);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Partition, Position>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The delivery task.
pub struct Delivery {
    gateway: Arc<Gateway>,
    saved: Subscriber,
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
                    *gateway.positions.lock() = positions;
                    return Ok(Some(Self { gateway: Arc::clone(gateway), saved }));
                }
                Err(error) => tracing::warn!("waiting for Postgres and NATS: {error:#}"),
            }
            if !pause(stop, backoff.pause()).await {
                return Ok(None);
            }
        }
    }

    /// Emits until the stop.
    pub async fn run(self, stop: Stop) -> anyhow::Result<()> {
        // Without the runtime's budget: `IN_ONE_GO` is ours.
        tokio::task::unconstrained(self.emit_all(stop)).await
    }

    async fn emit_all(mut self, stop: Stop) -> anyhow::Result<()> {
        let mut emitted: usize = 0;
        while let Some(Some(message)) = stop.run_until_cancelled(self.saved.next()).await {
            let place = subjects::parse_saved(&message.subject);
            let announcement = message.headers.as_ref().and_then(Announcement::from_headers);
            if let (true, Some((_, Some(session)))) = (message.payload.is_empty(), place) {
                // Also where its place was passed before, and where it has none yet: it does no harm to
                // hear it twice.
                self.gateway.end(session);
                if announcement.is_none() {
                    continue;
                }
            }
            let (Some((partition, session)), Some(announcement)) = (place, announcement) else {
                tracing::warn!("an announcement cannot be read");
                continue;
            };
            let message = session.and_then(|session| {
                Some((session, saved(&message.payload, announcement.position)?))
            });
            stop.run_until_cancelled(self.on_announcement(partition, announcement, message)).await;
            emitted = (emitted + 1) % IN_ONE_GO;
            if emitted == 0 {
                tokio::task::yield_now().await;
            }
        }
        anyhow::ensure!(stop.is_cancelled(), "the subscription to saved messages ended");
        Ok(())
    }

    async fn on_announcement(
        &self,
        partition: Partition,
        announcement: Announcement,
        message: Option<(SessionId, Saved)>,
    ) {
        let Announcement { position, previous, recorded_at } = announcement;
        let before = Position { sequence: previous, ..position };
        let known = self.gateway.positions.of_or_begin(partition, before);
        if !before.is_within(known) && !self.heal(partition, before).await {
            return;
        }
        // After healing a position may still be ahead: nothing is stored between the two.
        if !position.is_within(self.gateway.positions.of_or_begin(partition, before)) {
            self.gateway.positions.advance(partition, position);
            if let Some((session, message)) = message {
                self.deliver(session, &message, recorded_at);
            }
        }
    }

    /// Emits what a partition stored after the known position, until Postgres answers.
    ///
    /// `false` if Postgres does not have everything up to the announced position: it was restored from
    /// an older backup, or a worker that was fenced had a last word. What is stored yet, its owner
    /// announces.
    async fn heal(&self, partition: Partition, announced: Position) -> bool {
        METRICS.holes_healed.inc();
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        loop {
            let known = self.gateway.positions.of_or_begin(partition, announced);
            tracing::info!(%partition, from = known.sequence, to = announced.sequence, "reading what was missed");
            match self.read_missing(partition, known, announced).await {
                Ok(stored) => return announced.is_within(stored),
                Err(error) => tracing::warn!(%error, "what was missed cannot be read yet"),
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Emits everything that a partition stored after a known position; up to where it is stored.
    async fn read_missing(
        &self,
        partition: Partition,
        mut known: Position,
        announced: Position,
    ) -> sqlx::Result<Position> {
        loop {
            let Snapshot { stored, rows } =
                self.gateway.history.stored_after(partition, known, STRETCH).await?;
            // Read later than the rows: who ended meanwhile is heard of twice.
            self.end_missing(partition, known).await?;
            if let Some(last) = rows.last().and_then(|last| last.message.position()) {
                known = last;
            } else if known.epoch != stored.epoch && announced.epoch == stored.epoch {
                // Nothing is stored in the new epoch yet; or Postgres, restored from before ours,
                // knows only the new one, and all of it is news to us.
                known = Position { sequence: 0, ..stored };
            } else {
                return Ok(stored);
            }
            self.gateway.positions.advance(partition, known);
            for message in &rows {
                self.emit(message);
            }
        }
    }

    /// Ends every session that a partition ended after a known position.
    async fn end_missing(&self, partition: Partition, mut known: Position) -> sqlx::Result<()> {
        loop {
            let ended = self.gateway.history.erased_after(partition, known, STRETCH).await?;
            let Some((_, last)) = ended.last() else { return Ok(()) };
            known = *last;
            self.gateway.end_all(&ended.into_iter().map(|(digest, _)| digest).collect());
        }
    }

    fn emit(&self, stored: &SessionMessage) {
        let session = SessionId::parse(&stored.session_id).ok();
        let json = to_raw_value(&stored.message.to_message()).ok();
        if let (Some(session), Some(json), Some(position)) =
            (session, json, stored.message.position())
        {
            METRICS.healed_messages.inc();
            let recorded_at = stored.message.created_at();
            self.deliver(session, &Saved { position, json: json.into() }, Some(recorded_at));
        }
    }

    fn deliver(&self, session: SessionId, saved: &Saved, recorded_at: Option<OffsetDateTime>) {
        let somebody_is_there = self.gateway.emit(session, saved);
        if somebody_is_there {
            tracing::debug!(
                message_id = message_id(&saved.json),
                session = session.short(),
                partition = %self.gateway.config.log.partitions.partition_of(session),
                sequence = saved.position.sequence,
                "emitted"
            );
        }
        if let (true, Some(recorded_at)) = (somebody_is_there, recorded_at) {
            METRICS.delivery_seconds.observe(seconds_since(recorded_at));
        }
    }
}

/// The message of an announcement; it is checked to be JSON, not parsed.
pub fn saved(payload: &[u8], position: Position) -> Option<Saved> {
    let json: Box<RawValue> = serde_json::from_slice(payload).ok()?;
    Some(Saved { position, json: json.into() })
}

/// For the log; a message is not parsed to be emitted.
fn message_id(json: &RawValue) -> String {
    #[derive(serde::Deserialize)]
    struct Identified {
        id: String,
    }
    serde_json::from_str(json.get()).map(|Identified { id }| id).unwrap_or_default()
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
