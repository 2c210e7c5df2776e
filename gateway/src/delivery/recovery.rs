//! Reads from Postgres what a partition stored and was not announced here, and emits it.
//!
//! It goes stretch by stretch through an epoch, then through the epochs that followed it. Partitions take
//! turns, one stretch each: memory is that of one stretch, however many of them are behind and how far.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::to_raw_value;
use shared::announcement::{Fate, Position};
use shared::ids::{MessageId, SessionId};
use shared::lifecycle::Backoff;
use shared::partition::Partition;
use tokio::sync::Semaphore;

use crate::db::history::History;
use crate::db::rows::{SessionMessage, Snapshot};
use crate::delivery::audience::{Audience, Turn};
use crate::delivery::heard::HeardEntry;
use crate::delivery::positions::Positions;
use crate::delivery::rooms::Saved;
use crate::metrics::METRICS;

/// Pauses between tries while Postgres does not answer.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Reads what was missed. Cheap to clone.
#[derive(Clone)]
pub struct Recovery {
    history: History,
    positions: Arc<Positions>,
    audience: Audience,
    turns: Arc<Semaphore>,
}

/// How far a recovery is.
struct Progress {
    /// Up to here messages were emitted.
    emitted: Position,
    /// Up to here sessions were ended. It is ahead: what is left of a session that ended is not read.
    ended: Position,
    /// Up to here agents were told what was decided about sessions; ahead too.
    decided: Position,
}

impl Progress {
    fn from(position: Position) -> Self {
        Self { emitted: position, ended: position, decided: position }
    }
}

impl Recovery {
    /// For the rooms of this gateway.
    pub fn new(history: History, positions: Arc<Positions>, audience: Audience) -> Self {
        Self { history, positions, audience, turns: Arc::new(Semaphore::new(1)) }
    }

    /// Emits what a partition stored after its position, until Postgres answers.
    ///
    /// `false` if Postgres does not have everything up to the announced position: it was restored from
    /// an older backup, or a worker that was fenced had a last word. What is stored yet, its owner
    /// announces.
    pub async fn read_up_to(&self, partition: Partition, announced: Position) -> bool {
        METRICS.gaps_recovered.inc();
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        loop {
            let known = self.positions.of_or_begin(partition, announced);
            tracing::info!(%partition, from = known.sequence, to = announced.sequence, "reading what was missed");
            match self.read_missing(partition, known, announced).await {
                Ok(stored) => return self.is_complete(partition, announced, stored),
                Err(error) => tracing::warn!(%error, "what was missed cannot be read yet"),
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Nothing is stored between the last message and the announced position, if that is stored.
    fn is_complete(&self, partition: Partition, announced: Position, stored: Position) -> bool {
        let is_complete = announced.is_within(stored);
        if is_complete && !announced.is_within(self.positions.of_or_begin(partition, announced)) {
            self.positions.advance(partition, announced);
        }
        is_complete
    }

    /// Emits everything that a partition stored after a known position; up to where it is stored.
    async fn read_missing(
        &self,
        partition: Partition,
        known: Position,
        announced: Position,
    ) -> sqlx::Result<Position> {
        let mut progress = Progress::from(known);
        let mut is_another = false;
        loop {
            // Held until the stretch is emitted. It is never closed.
            let _turn = self.turns.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
            let Snapshot { stored, rows } =
                self.history.stored_after(partition, progress.emitted).await?;
            // Only Postgres says so: an announcement may be old, or anybody's.
            if stored.epoch != known.epoch && !std::mem::replace(&mut is_another, true) {
                self.audience.note_another_log();
            }
            // Read later than the rows: who ended meanwhile is heard of twice.
            self.end_missing(partition, &mut progress.ended, stored).await?;
            self.tell_decided(partition, &mut progress.decided, stored).await?;
            if let Some(last) = rows.last().and_then(|last| last.message.position()) {
                progress.emitted = last;
            } else if let Some(next) = self.epoch_after(partition, progress.emitted, stored).await?
            {
                progress.emitted = next;
            } else if progress.emitted.epoch != stored.epoch && announced.epoch == stored.epoch {
                // Postgres, restored from before our epoch, knows only another one, and all of it is
                // news to us.
                progress = Progress::from(Position { sequence: 0, ..stored });
            } else {
                return Ok(stored);
            }
            self.positions.advance(partition, progress.emitted);
            emit_in_turns(&rows, |message| self.emit(message)).await;
        }
    }

    /// Ends every session that a partition ended after a known position, and moves that.
    async fn end_missing(
        &self,
        partition: Partition,
        known: &mut Position,
        stored: Position,
    ) -> sqlx::Result<()> {
        loop {
            let ended = self.history.erased_after(*known).await?;
            if let Some((_, last)) = ended.last() {
                *known = *last;
                self.audience.end_all(&ended.into_iter().map(|(digest, _)| digest).collect());
            } else if let Some(next) = self.epoch_after(partition, *known, stored).await? {
                *known = next;
            } else {
                return Ok(());
            }
        }
    }

    /// Tells of everything that a partition decided about sessions after a known position, and moves that.
    async fn tell_decided(
        &self,
        partition: Partition,
        known: &mut Position,
        stored: Position,
    ) -> sqlx::Result<()> {
        loop {
            let decided = self.history.changed_after(*known).await?;
            if let Some(last) = decided.last() {
                known.sequence = last.sequence();
                for change in decided.iter().filter(|change| change.is_applied) {
                    if let Ok(session) = SessionId::parse(&change.session_id) {
                        self.audience.inboxes.decided(session, &change.to_change());
                    }
                }
            } else if let Some(next) = self.epoch_after(partition, *known, stored).await? {
                *known = next;
            } else {
                return Ok(());
            }
        }
    }

    /// Where the epoch begins that followed the one of a position, unless that is the one that is stored now.
    async fn epoch_after(
        &self,
        partition: Partition,
        position: Position,
        stored: Position,
    ) -> sqlx::Result<Option<Position>> {
        if position.epoch == stored.epoch {
            return Ok(None);
        }
        let next = self.history.epoch_after(partition, position.epoch).await?;
        Ok(next.map(|epoch| Position { epoch, sequence: 0 }))
    }

    /// What it cost, in messages of ordinary size.
    fn emit(&self, stored: &SessionMessage) -> usize {
        let session = stored.session_id.as_deref().and_then(|id| SessionId::parse(id).ok());
        let json = to_raw_value(&stored.message.to_message()).ok();
        if let (Some(session), Some(json), Some(position)) =
            (session, json, stored.message.position())
        {
            METRICS.recovered_messages.inc();
            return self.audience.tell(&HeardEntry {
                position,
                session,
                recorded_at: stored.message.recorded_at(),
                fate: Fate::Stored,
                id: MessageId::try_from(stored.message.id.clone()).ok(),
                saved: Some(Saved::new(position, json)),
                change: None,
            });
        }
        1
    }
}

/// Emits a stretch; the rest of the process has its turn meanwhile.
async fn emit_in_turns<T>(stretch: &[T], emit: impl Fn(&T) -> usize) {
    let mut turn = Turn::default();
    for message in stretch {
        turn.count(emit(message)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn what_is_recovered_for_full_rooms_leaves_turns_to_others() {
        let (emitted, others, is_done) = (Cell::new(0), Cell::new(0), Cell::new(false));
        let emitting = async {
            emit_in_turns(&[200; 1_024], |cost| {
                emitted.set(emitted.get() + cost);
                *cost
            })
            .await;
            is_done.set(true);
        };
        let other = async {
            while !is_done.get() {
                others.set(others.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(emitting, other);
        assert_eq!(emitted.get(), 1_024 * 200);
        assert!(others.get() >= 40, "{} turns", others.get());
    }
}
