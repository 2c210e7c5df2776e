//! What partitions stored, as feeds read it where they were not told: messages, and what happened to sessions, all in
//! the order of the log.

use shared::announcement::{Epoch, Position};
use shared::ids::{SessionDigest, SessionId};
use shared::partition::Partition;
use shared::timestamp::Timestamp;

use crate::db::history::History;
use crate::db::rows::{CHUNK_BYTES, SessionMessage, StoredMessage};

/// Rows of each kind in a page; it stands in the statements as a number, for the planner.
const PAGE: usize = 200;

/// Messages that a partition stored, with their sessions. Those beyond a quarter of a megabyte come without their
/// contents, but one comes whole in any case.
const FEED_MESSAGES: &str = r#"
    SELECT (SELECT s."sessionId" FROM "ChatSession" s WHERE s."id" = n."chatSessionId") AS "sessionId", n."id",
           n."sender", CASE WHEN n."isWhole" THEN n."content" ELSE '' END AS "content", n."createdAt", n."isAI",
           n."chatSessionId", n."seq", n."logEpoch", n."logSequence", n."isWhole"
    FROM (
        SELECT p.*, row_number() OVER page = 1 OR sum(octet_length(p."content")) OVER page <= $3 AS "isWhole"
        FROM (
            SELECT m."id", m."sender", m."content", m."createdAt", m."isAI", m."chatSessionId", m."seq", m."logEpoch",
                   m."logSequence"
            FROM "Message" m WHERE m."logEpoch" = $1 AND m."logSequence" > $2
            ORDER BY m."logSequence" LIMIT 200
        ) p
        WINDOW page AS (ORDER BY p."logSequence" ROWS UNBOUNDED PRECEDING)
    ) n
    ORDER BY n."logSequence""#;

/// Sessions that were opened.
const FEED_OPENED: &str = r#"
    SELECT "sessionId", "createdAt", "logSequence" FROM "ChatSession"
    WHERE "logEpoch" = $1 AND "logSequence" > $2
    ORDER BY "logSequence" LIMIT 200"#;

/// Sessions about which something was decided that counts.
const FEED_UPDATED: &str = r#"
    SELECT s."sessionId", c."logSequence", c."isApplied"
    FROM (
        SELECT "chatSessionId", "logSequence", "isApplied" FROM "SessionChange"
        WHERE "logEpoch" = $1 AND "logSequence" > $2
        ORDER BY "logSequence" LIMIT 200
    ) c
    LEFT JOIN "ChatSession" s ON s."id" = c."chatSessionId"
    ORDER BY c."logSequence""#;

/// Sessions that were erased.
const FEED_ERASED: &str = r#"
    SELECT "digest", "lastSequence" FROM "ErasedSession"
    WHERE "logEpoch" = $1 AND "lastSequence" > $2
    ORDER BY "lastSequence" LIMIT 200"#;

/// Which of these epochs the database knows, and of which partitions.
const FEED_KNOWN_EPOCHS: &str =
    r#"SELECT "partition", "epoch" FROM "LogEpoch" WHERE "epoch" = ANY ($1)"#;

/// Where a partition stands.
const FEED_POSITION: &str =
    r#"SELECT "epoch", "sequence" FROM "LogPartition" WHERE "partition" = $1"#;

/// The epoch that followed another one of a partition; its first one behind 0, which is no partition's.
const FEED_EPOCH: &str = r#"
    SELECT "epoch" FROM "LogEpoch"
    WHERE "partition" = $1 AND "ordinal" > coalesce(
        (SELECT e."ordinal" FROM "LogEpoch" e WHERE e."epoch" = $2), CASE $2 WHEN 0 THEN 0 END
    )
    ORDER BY "ordinal" LIMIT 1"#;

/// Before the first epoch of a partition: none has this one.
pub const BEGINNING: Position = Position { epoch: Epoch(0), sequence: 0 };

/// Bytes of the contents of a page, as Postgres counts.
#[allow(clippy::cast_possible_wrap)]
const CHUNK: i64 = CHUNK_BYTES as i64;

/// Something that happened, as it is stored.
#[derive(Debug)]
pub enum StoredEvent {
    Opened { session: SessionId, created_at: Timestamp },
    Message { session: SessionId, message: StoredMessage },
    Updated { session: SessionId },
    Erased { digest: SessionDigest },
}

/// What follows a position in its partition.
#[derive(Debug)]
pub struct EventsPage {
    /// In the order of the log.
    pub events: Vec<StoredEvent>,
    /// Up to where that is everything.
    pub upto: Position,
    /// Whether the partition is stored no further.
    pub is_last: bool,
}

/// A message of a page.
#[derive(sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
struct FeedMessage {
    #[sqlx(flatten)]
    of: SessionMessage,
    is_whole: bool,
}

/// An event, by its sequence and by what comes first of one record.
type Placed = (u64, u8, StoredEvent);
/// What comes last.
const ERASED: u8 = 3;

impl History {
    /// Where a partition stands; `None` if nothing was ever stored of it.
    pub async fn stands_at(&self, partition: Partition) -> sqlx::Result<Option<Position>> {
        let query = sqlx::query(FEED_POSITION).bind(partition.to_column());
        let row: Option<(i64, i64)> = self.pool().fetch_optional(query).await?;
        Ok(row.map(|(epoch, sequence)| Position {
            epoch: Epoch(epoch),
            sequence: sequence.cast_unsigned(),
        }))
    }

    /// Which of these epochs are of which partitions.
    pub async fn known_epochs(&self, epochs: &[Epoch]) -> sqlx::Result<Vec<(Partition, Epoch)>> {
        let epochs: Vec<_> = epochs.iter().map(|epoch| epoch.0).collect();
        let query = sqlx::query(FEED_KNOWN_EPOCHS).bind(epochs);
        let rows: Vec<(i16, i64)> = self.pool().fetch_all(query).await?;
        let known = |(partition, epoch): (i16, i64)| {
            (Partition::new(partition.unsigned_abs()), Epoch(epoch))
        };
        Ok(rows.into_iter().map(known).collect())
    }

    /// What a partition stored behind a position.
    pub async fn events_after(
        &self,
        partition: Partition,
        position: Position,
    ) -> sqlx::Result<EventsPage> {
        let _permit = self.read_permit().await?;
        // Read first: everything up to there is in what is read then.
        let Some(stored) = self.stands_at(partition).await? else {
            return Ok(EventsPage { events: Vec::new(), upto: position, is_last: true });
        };
        let is_of_epoch = stored.epoch == position.epoch;
        let end = if is_of_epoch { stored.sequence } else { u64::MAX };
        let mut placed = Vec::new();
        let mut whole = end;
        for kind in [
            self.opened_after(position).await?,
            self.messages_after(position).await?,
            self.updated_after(position).await?,
            self.erased_after_for_feed(position).await?,
        ] {
            whole = whole.min(kind.whole);
            placed.extend(kind.events);
        }
        // What is refused of a session that was erased moves its end on, behind where the partition stood a moment ago.
        let is_due = |sequence, rank| sequence <= whole || rank == ERASED && whole == end;
        placed.retain(|(sequence, rank, _)| is_due(*sequence, *rank));
        placed.sort_by_key(|(sequence, rank, _)| (*sequence, *rank));
        let events = placed.into_iter().map(|(.., event)| event).collect();
        if whole < end {
            return Ok(EventsPage {
                events,
                upto: Position { sequence: whole, ..position },
                is_last: false,
            });
        }
        if is_of_epoch {
            // The database may be an older one than the one that the position is of.
            let sequence = end.max(position.sequence);
            return Ok(EventsPage {
                events,
                upto: Position { sequence, ..position },
                is_last: true,
            });
        }
        let next = self.epoch_behind(partition, position.epoch).await?;
        // Of an epoch that the database does not know, what it knows is all new.
        let beginning = if position == BEGINNING { stored.epoch } else { BEGINNING.epoch };
        let upto = Position { epoch: next.unwrap_or(beginning), sequence: 0 };
        Ok(EventsPage { events, upto, is_last: false })
    }

    async fn epoch_behind(
        &self,
        partition: Partition,
        epoch: Epoch,
    ) -> sqlx::Result<Option<Epoch>> {
        let query = sqlx::query(FEED_EPOCH).bind(partition.to_column()).bind(epoch.0);
        Ok(self.pool().fetch_optional(query).await?.map(|(epoch,)| Epoch(epoch)))
    }

    async fn opened_after(&self, position: Position) -> sqlx::Result<Kind> {
        let rows: Vec<(String, Timestamp, i64)> = self.rows_after(FEED_OPENED, position).await?;
        Ok(Kind::of(rows, |(session, created_at, sequence)| {
            let event = SessionId::parse(&session);
            let event = event.map(|session| StoredEvent::Opened { session, created_at });
            (sequence.cast_unsigned(), 0, event.ok())
        }))
    }

    async fn messages_after(&self, position: Position) -> sqlx::Result<Kind> {
        let query = sqlx::query(FEED_MESSAGES)
            .bind(position.epoch.0)
            .bind(position.sequence.cast_signed())
            .bind(CHUNK);
        let mut rows: Vec<FeedMessage> = self.pool().fetch_all(query).await?;
        let whole = rows.iter().take_while(|row| row.is_whole).count();
        let is_cut = whole < rows.len();
        rows.truncate(whole);
        let mut kind =
            Kind::of(rows, |FeedMessage { of: SessionMessage { session_id, message }, .. }| {
                let sequence = message.position().map_or(0, |position| position.sequence);
                let session = session_id.and_then(|id| SessionId::parse(&id).ok());
                (sequence, 1, session.map(|session| StoredEvent::Message { session, message }))
            });
        if is_cut {
            kind.whole = kind.last;
        }
        Ok(kind)
    }

    async fn updated_after(&self, position: Position) -> sqlx::Result<Kind> {
        let rows: Vec<(Option<String>, i64, bool)> =
            self.rows_after(FEED_UPDATED, position).await?;
        Ok(Kind::of(rows, |(session, sequence, is_applied)| {
            let session = session.filter(|_| is_applied).and_then(|id| SessionId::parse(&id).ok());
            let event = session.map(|session| StoredEvent::Updated { session });
            (sequence.cast_unsigned(), 2, event)
        }))
    }

    async fn erased_after_for_feed(&self, position: Position) -> sqlx::Result<Kind> {
        let rows: Vec<(Vec<u8>, i64)> = self.rows_after(FEED_ERASED, position).await?;
        Ok(Kind::of(rows, |(digest, sequence)| {
            let digest = SessionDigest::from_column(&digest);
            (sequence.cast_unsigned(), ERASED, digest.map(|digest| StoredEvent::Erased { digest }))
        }))
    }

    async fn rows_after<Row>(&self, sql: &'static str, position: Position) -> sqlx::Result<Vec<Row>>
    where
        Row: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
    {
        let query = sqlx::query(sql).bind(position.epoch.0).bind(position.sequence.cast_signed());
        self.pool().fetch_all(query).await
    }
}

/// Events of one kind.
struct Kind {
    events: Vec<Placed>,
    /// Up to where these are all.
    whole: u64,
    /// The last one.
    last: u64,
}

impl Kind {
    fn of<Row>(rows: Vec<Row>, place: impl Fn(Row) -> (u64, u8, Option<StoredEvent>)) -> Self {
        let is_full = rows.len() >= PAGE;
        let placed: Vec<_> = rows.into_iter().map(place).collect();
        let last = placed.last().map_or(u64::MAX, |(sequence, ..)| *sequence);
        let whole = if is_full { last } else { u64::MAX };
        let events = placed.into_iter();
        let events = events.filter_map(|(sequence, rank, event)| Some((sequence, rank, event?)));
        Self { events: events.collect(), whole, last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_long_as_its_statements_say() {
        for statement in [FEED_MESSAGES, FEED_OPENED, FEED_UPDATED, FEED_ERASED] {
            assert!(statement.contains(&format!("LIMIT {PAGE}")), "{statement}");
        }
    }
}
