//! All SQL of the gateway: it only reads, from the primary, by a pool of its own.

use std::ops::Range;
use std::sync::Arc;

use shared::announcement::{Epoch, Position};
use shared::database::{self, Database, Extent, StoredSession, Unusable, answered};
use shared::ids::{SessionDigest, SessionId};
use shared::partition::Partition;
use shared::pool::Pool;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::{QueryAs, QueryScalar};
use sqlx::{FromRow, Postgres};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::db::rows::{
    CHUNK_BYTES, Cursor, Found, LAST_CHARS, ListedSession, MessageOf, Offset, SessionMessage,
    Snapshot, Sought, Storage, StoredMessage, Words,
};

/// What Postgres lists connections of gateways as.
const APPLICATION: &str = "chat-gateway";
/// Connections unless the URL's `connection_limit` says otherwise; delivery has one more.
const CONNECTIONS: u32 = 8;
/// [`CHUNK_BYTES`] as Postgres counts.
#[allow(clippy::cast_possible_wrap)]
const CHUNK: i64 = CHUNK_BYTES as i64;
/// A content of more bytes is read by itself: more than twice as many as one has that can be sent unless a setting says
/// otherwise. A sum over the page would cost each of its rows more than reading it.
const LONG_BYTES: i32 = 64 * 1024;
/// Most bytes of an inbox's page of a history: 500 messages as long as they may be unless a setting says otherwise, of
/// four bytes a character.
const LATEST_BYTES_MAX: i64 = 16 * 1024 * 1024;
/// Characters of a last message that are read: one more than shown tells that it was cut.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
const LAST_CHARS_READ: i32 = LAST_CHARS as i32 + 1;

/// Whether a session is stored, and whether it was erased.
const SESSION_EXISTS: &str = r#"
    SELECT EXISTS (SELECT FROM "ChatSession" WHERE "sessionId" = $1),
           EXISTS (SELECT FROM "ErasedSession" WHERE "digest" = $2)"#;

/// A session, whatever its id is.
const SESSION: &str = r#"
    SELECT "id", "sessionId", "ip", "userAgent", "createdAt" FROM "ChatSession" WHERE "sessionId" = $1"#;

/// A page of a session's messages, oldest first: the first of those asked for. Beside the first one long ones come without
/// their content: an adopter's message may be as long as Postgres takes it.
const MESSAGES: &str = r#"
    SELECT m."id", m."sender", CASE WHEN m."isWithheld" THEN '' ELSE m."content" END AS "content", m."createdAt",
           m."isAI", m."chatSessionId", m."seq", m."logEpoch", m."logSequence", m."isWithheld"
    FROM (
        SELECT c.*, octet_length(c."content") > $5 AND c."seq" <> (
            SELECT f."seq" FROM "Message" f
            WHERE f."chatSessionId" = (SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = $1)
              AND f."seq" >= $2 AND f."seq" < $3
            ORDER BY f."seq" LIMIT 1
        ) AS "isWithheld"
        FROM "Message" c
        WHERE c."chatSessionId" = (SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = $1)
          AND c."seq" >= $2 AND c."seq" < $3
        ORDER BY c."seq" LIMIT $4
    ) m
    ORDER BY m."seq""#;

/// The same, the last of those asked for; all long ones come without their content.
const LAST_MESSAGES: &str = r#"
    SELECT m."id", m."sender", CASE WHEN m."isWithheld" THEN '' ELSE m."content" END AS "content", m."createdAt",
           m."isAI", m."chatSessionId", m."seq", m."logEpoch", m."logSequence", m."isWithheld"
    FROM (
        SELECT c.*, octet_length(c."content") > $5 AS "isWithheld"
        FROM "Message" c
        WHERE c."chatSessionId" = (SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = $1)
          AND c."seq" >= $2 AND c."seq" < $3
        ORDER BY c."seq" DESC LIMIT $4
    ) m
    ORDER BY m."seq""#;

/// Where a message stands in its session, if it is of this one.
const SEQ: &str = r#"
    SELECT m."seq" FROM "Message" m JOIN "ChatSession" s ON s."id" = m."chatSessionId"
    WHERE m."id" = $2 AND s."sessionId" = $1"#;

/// A session's messages from one of them on, or from the first if that one is not of this session; with them, as of
/// the same moment, how far the session's partition is stored. Beside that one they are so many and so long at
/// most, but two in any case: the second tells that there is more.
const MESSAGES_FROM: &str = r#"
    WITH session AS (SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = $2)
    SELECT p."epoch", p."sequence", m.*
    FROM "LogPartition" p
    LEFT JOIN LATERAL (
        SELECT n.*,
               row_number() OVER (ORDER BY n."seq") AS "nth",
               sum(octet_length(n."content")) FILTER (WHERE n."id" <> $3) OVER (
                   ORDER BY n."seq" ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
               ) AS "bytesBefore"
        FROM (
            SELECT m."id", m."sender", m."content", m."createdAt", m."isAI", m."chatSessionId", m."seq",
                   m."logEpoch", m."logSequence"
            FROM "Message" m
            WHERE m."chatSessionId" = (SELECT "id" FROM session)
              AND m."seq" >= coalesce((
                  SELECT known."seq" FROM "Message" known
                  WHERE known."id" = $3 AND known."chatSessionId" = (SELECT "id" FROM session)
              ), 0)
            ORDER BY m."seq" LIMIT $4
        ) n
    ) m ON m."nth" <= 3 OR m."bytesBefore" <= $5
    WHERE p."partition" = $1
    ORDER BY m."seq""#;

/// A page of sessions, newest first. Of a parameter as the limit the planner assumes a tenth of all sessions, and
/// might well read all of them: the number tells it how few they are at most. The first page has no bound: nothing
/// is later than a session of `infinity`, which an adopter's may be.
const SESSIONS: &str = r#"
    SELECT s.* FROM (
        (SELECT "id", "sessionId", "ip", "userAgent", "createdAt" FROM "ChatSession"
         WHERE $1::timestamp IS NULL
         ORDER BY "createdAt" DESC, "id" DESC LIMIT 501)
        UNION ALL
        (SELECT "id", "sessionId", "ip", "userAgent", "createdAt" FROM "ChatSession"
         WHERE ("createdAt", "id") < ($1, $2)
         ORDER BY "createdAt" DESC, "id" DESC LIMIT 501)
    ) s
    ORDER BY s."createdAt" DESC, s."id" DESC LIMIT $3"#;

/// A page of the messages of some sessions, session by session, oldest first; of long ones see `MESSAGES`.
const MESSAGES_OF: &str = r#"
    SELECT m."ord", m."id", m."sender", CASE WHEN m."isWithheld" THEN '' ELSE m."content" END AS "content",
           m."createdAt", m."isAI", m."chatSessionId", m."seq", m."logEpoch", m."logSequence", m."isWithheld"
    FROM (
        SELECT s."ord", c.*, octet_length(c."content") > $5 AND (s."ord", c."seq") <> (
            SELECT f."ord", g."seq"
            FROM unnest($1::text[]) WITH ORDINALITY AS f ("id", "ord")
            CROSS JOIN LATERAL (
                SELECT g."seq" FROM "Message" g
                WHERE g."chatSessionId" = f."id" AND g."seq" > CASE WHEN f."ord" = $2 THEN $3 ELSE -1 END
                ORDER BY g."seq" LIMIT 1
            ) g
            WHERE f."ord" >= $2
            ORDER BY f."ord" LIMIT 1
        ) AS "isWithheld"
        FROM unnest($1::text[]) WITH ORDINALITY AS s ("id", "ord")
        CROSS JOIN LATERAL (
            SELECT * FROM "Message" c
            WHERE c."chatSessionId" = s."id" AND c."seq" > CASE WHEN s."ord" = $2 THEN $3 ELSE -1 END
            ORDER BY c."seq" LIMIT $4
        ) c
        WHERE s."ord" >= $2
        ORDER BY s."ord", c."seq" LIMIT $4
    ) m
    ORDER BY m."ord", m."seq""#;

/// The newest messages of a session, or the newest before one of them, oldest first: so many and so long at most, but
/// one in any case.
const LATEST: &str = r#"
    SELECT latest.* FROM (
        SELECT n.*, row_number() OVER page AS "nth", sum(octet_length(n."content")) OVER page AS "bytes"
        FROM (
            SELECT m."id", m."sender", m."content", m."createdAt", m."isAI", m."chatSessionId", m."seq",
                   m."logEpoch", m."logSequence"
            FROM "Message" m
            WHERE m."chatSessionId" = (SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = $1)
              AND m."seq" < CASE WHEN $2::text IS NULL THEN 9223372036854775807 ELSE (
                  SELECT known."seq" FROM "Message" known
                  JOIN "ChatSession" s ON s."id" = known."chatSessionId"
                  WHERE known."id" = $2 AND s."sessionId" = $1
              ) END
            ORDER BY m."seq" DESC LIMIT $3
        ) n
        WINDOW page AS (ORDER BY n."seq" DESC ROWS UNBOUNDED PRECEDING)
    ) latest
    WHERE latest."nth" = 1 OR latest."bytes" <= $4
    ORDER BY latest."seq""#;

/// These sessions as inboxes list them, in this order. `LIMIT` keeps it at one look into an index per
/// session, however many are stored.
pub const LISTED: &str = r#"
    SELECT s."id", s."sessionId", s."createdAt", last."lastSender", last."lastContent", last."lastAt"
    FROM unnest($1::text[]) WITH ORDINALITY AS wanted ("sessionId", "ord")
    CROSS JOIN LATERAL (
        SELECT c."id", c."sessionId", c."createdAt" FROM "ChatSession" c
        WHERE c."sessionId" = wanted."sessionId" LIMIT 1
    ) s
    LEFT JOIN LATERAL (
        SELECT m."sender" AS "lastSender", substr(m."content", 1, $2) AS "lastContent", m."createdAt" AS "lastAt"
        FROM "Message" m WHERE m."chatSessionId" = s."id" ORDER BY m."seq" DESC LIMIT 1
    ) last ON true
    ORDER BY wanted."ord""#;

/// A page of sessions as inboxes list them, newest first; of its two limits see `SESSIONS`.
pub const NEWEST: &str = r#"
    SELECT s."id", s."sessionId", s."createdAt", last."lastSender", last."lastContent", last."lastAt"
    FROM (
        SELECT n.* FROM (
            (SELECT "id", "sessionId", "createdAt" FROM "ChatSession"
             WHERE $1::timestamp IS NULL
             ORDER BY "createdAt" DESC, "id" DESC LIMIT 501)
            UNION ALL
            (SELECT "id", "sessionId", "createdAt" FROM "ChatSession"
             WHERE ("createdAt", "id") < ($1, $2)
             ORDER BY "createdAt" DESC, "id" DESC LIMIT 501)
        ) n
        ORDER BY n."createdAt" DESC, n."id" DESC LIMIT $3
    ) s
    LEFT JOIN LATERAL (
        SELECT m."sender" AS "lastSender", substr(m."content", 1, $4) AS "lastContent", m."createdAt" AS "lastAt"
        FROM "Message" m WHERE m."chatSessionId" = s."id" ORDER BY m."seq" DESC LIMIT 1
    ) last ON true
    ORDER BY s."createdAt" DESC, s."id" DESC"#;

/// Where each partition stands.
const POSITIONS: &str = r#"SELECT "partition", "epoch", "sequence" FROM "LogPartition""#;

/// What became of requests: what is stored under the ids of messages, whether their sessions are stored or were
/// erased, and whether their records were set aside.
const FATES: &str = r#"
    SELECT m."sender", m."content", m."sessionId", o."id" IS NOT NULL, z."digest" IS NOT NULL,
           d."logSequence" IS NOT NULL
    FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[], $5::bigint[])
        WITH ORDINALITY AS w ("id", "sessionId", "digest", "epoch", "sequence", "ord")
    LEFT JOIN LATERAL (
        SELECT m."sender", m."content", s."sessionId"
        FROM "Message" m JOIN "ChatSession" s ON s."id" = m."chatSessionId"
        WHERE m."id" = w."id" LIMIT 1
    ) m ON true
    LEFT JOIN LATERAL (
        SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = w."sessionId" LIMIT 1
    ) o ON true
    LEFT JOIN LATERAL (
        SELECT e."digest" FROM "ErasedSession" e WHERE e."digest" = w."digest" LIMIT 1
    ) z ON true
    LEFT JOIN LATERAL (
        SELECT l."logSequence" FROM "DeadLetter" l
        WHERE l."logEpoch" = w."epoch" AND l."logSequence" = w."sequence"
            AND w."id" <> '' AND position(convert_to(w."id", 'UTF8') IN l."payload") > 0 LIMIT 1
    ) d ON true
    ORDER BY w."ord""#;

/// How far each partition is stored, and by whom.
const STORED_BY: &str = r#"SELECT "partition", "sequence", "owner"::text FROM "LogPartition""#;

/// Rows of `STORED_AFTER` and of `ERASED_AFTER` at most. It stands there as a number: of a parameter the
/// planner assumes a tenth of everything that is stored, and prepares for so many rows.
pub const STRETCH: usize = 500;

/// What a partition stored after a position in the same epoch, in the order of the log; with it, as of the
/// same moment, how far the partition is stored. The limit holds before the sessions are looked up.
const STORED_AFTER: &str = r#"
    SELECT p."epoch", p."sequence", m.*
    FROM "LogPartition" p
    LEFT JOIN LATERAL (
        SELECT (SELECT s."sessionId" FROM "ChatSession" s WHERE s."id" = n."chatSessionId") AS "sessionId", n.*
        FROM (
            SELECT m."id", m."sender", m."content", m."createdAt", m."isAI", m."chatSessionId", m."seq",
                   m."logEpoch", m."logSequence"
            FROM "Message" m
            WHERE m."logEpoch" = $2 AND m."logSequence" > $3
            ORDER BY m."logSequence" LIMIT 500
        ) n
    ) m ON true
    WHERE p."partition" = $1
    ORDER BY m."logSequence""#;

/// Sessions that ended after a position in the same epoch, in the order of the log.
const ERASED_AFTER: &str = r#"
    SELECT "digest", "lastSequence" FROM "ErasedSession"
    WHERE "logEpoch" = $1 AND "lastSequence" > $2
    ORDER BY "lastSequence" LIMIT 500"#;

/// The epoch that followed another one of a partition.
const EPOCH_AFTER: &str = r#"
    SELECT "epoch" FROM "LogEpoch"
    WHERE "partition" = $1 AND "ordinal" > (SELECT e."ordinal" FROM "LogEpoch" e WHERE e."epoch" = $2)
    ORDER BY "ordinal" LIMIT 1"#;

const PING: &str = "SELECT 1";

/// Whether this is a replica.
const IS_REPLICA: &str = "SELECT pg_is_in_recovery()";

/// Whether any migration ever ran.
const MIGRATED: &str = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";

/// The newest migration that is applied; null where there is none.
const SCHEMA_VERSION: &str = r#"SELECT max("version") FROM "_sqlx_migrations" WHERE "success""#;

/// Reads what is stored. Cheap to clone.
#[derive(Clone)]
pub struct History {
    pool: Pool,
    /// One connection for what delivery missed: rooms must not wait for those who come back.
    delivery: Pool,
    read_permits: Arc<Semaphore>,
    database: Database,
}

impl History {
    /// Prepares the connections; connects when first used.
    pub fn connect(database: &Database) -> Self {
        let connections = database.connection_limit.unwrap_or(CONNECTIONS).max(1);
        let read_permits = Arc::new(Semaphore::new((connections / 2).max(1) as usize));
        let pool = |connections| Pool::new(database, APPLICATION, connections, &[]);
        let database = database.clone();
        Self { pool: pool(connections), delivery: pool(1), read_permits, database }
    }

    fn query_as<O>(&self, sql: &'static str) -> QueryAs<'static, Postgres, O, PgArguments>
    where
        O: for<'r> FromRow<'r, PgRow>,
    {
        sqlx::query_as(sql).persistent(self.pool.keeps_statements())
    }

    fn query_scalar<O>(&self, sql: &'static str) -> QueryScalar<'static, Postgres, O, PgArguments>
    where
        (O,): for<'r> FromRow<'r, PgRow>,
    {
        sqlx::query_scalar(sql).persistent(self.pool.keeps_statements())
    }

    /// The connections that all share, to be counted.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What is wrong with the database, or with the way to it, that waiting does not mend.
    pub async fn look(&self) -> sqlx::Result<Option<Unusable>> {
        self.database.look(&mut *self.pool.get().await?).await
    }

    pub async fn ping(&self) -> sqlx::Result<()> {
        answered(
            sqlx::query(PING)
                .persistent(self.pool.keeps_statements())
                .execute(&mut *self.pool.get().await?),
        )
        .await
        .map(drop)
    }

    /// Whether this is a replica, whose answers may be of the past.
    pub async fn is_replica(&self) -> sqlx::Result<bool> {
        answered(self.query_scalar(IS_REPLICA).fetch_one(&mut *self.pool.get().await?)).await
    }

    /// The newest migration that is applied, if any ever was.
    pub async fn schema_version(&self) -> sqlx::Result<Option<i64>> {
        if !answered(self.query_scalar::<bool>(MIGRATED).fetch_one(&mut *self.pool.get().await?))
            .await?
        {
            return Ok(None);
        }
        answered(self.query_scalar(SCHEMA_VERSION).fetch_one(&mut *self.pool.get().await?)).await
    }

    /// Whether a session is stored, or was erased.
    pub async fn storage_of(&self, session: SessionId) -> sqlx::Result<Storage> {
        let query = self
            .query_as(SESSION_EXISTS)
            .bind(session.to_string())
            .bind(session.digest().as_bytes().to_vec());
        Ok(match answered(query.fetch_one(&mut *self.pool.get().await?)).await? {
            (_, true) => Storage::Erased,
            (true, false) => Storage::Stored,
            (false, false) => Storage::Missing,
        })
    }

    /// A session, if it is stored. An adopter's may have any text as its id.
    pub async fn session(&self, session: &str) -> sqlx::Result<Option<StoredSession>> {
        // Postgres refuses U+0000 in a text: no session can have such an id.
        if session.contains('\0') {
            return Ok(None);
        }
        let query = self.query_as(SESSION).bind(session.to_owned());
        answered(query.fetch_optional(&mut *self.pool.get().await?)).await
    }

    /// The same, and what is said in it now.
    pub async fn extent(&self, session: &str) -> sqlx::Result<Option<Extent>> {
        if session.contains('\0') {
            return Ok(None);
        }
        database::extent(&mut *self.pool.get().await?, self.pool.keeps_statements(), session).await
    }

    /// At most `limit` messages of a session, oldest first: the first with these `seq`s. Beside the first those of more
    /// than 64 KiB come without their content. An adopter's session may have any text as its id.
    pub async fn messages(
        &self,
        session: &str,
        seqs: Range<i64>,
        limit: u16,
    ) -> sqlx::Result<Vec<StoredMessage>> {
        self.messages_by(MESSAGES, session, seqs, limit).await
    }

    /// The same, the last with these `seq`s.
    pub async fn last_messages(
        &self,
        session: &str,
        seqs: Range<i64>,
        limit: u16,
    ) -> sqlx::Result<Vec<StoredMessage>> {
        self.messages_by(LAST_MESSAGES, session, seqs, limit).await
    }

    async fn messages_by(
        &self,
        sql: &'static str,
        session: &str,
        seqs: Range<i64>,
        limit: u16,
    ) -> sqlx::Result<Vec<StoredMessage>> {
        let query = self
            .query_as(sql)
            .bind(session.to_owned())
            .bind(seqs.start)
            .bind(seqs.end)
            .bind(i64::from(limit))
            .bind(LONG_BYTES);
        answered(query.fetch_all(&mut *self.pool.get().await?)).await
    }

    /// The `seq` of a message, if it is stored and of this session.
    pub async fn seq_of(&self, session: &str, id: &str) -> sqlx::Result<Option<i64>> {
        let query = self.query_scalar(SEQ).bind(session.to_owned()).bind(id.to_owned());
        answered(query.fetch_optional(&mut *self.pool.get().await?)).await
    }

    /// Waits for leave to read much. A read without a limit asks before each statement, and
    /// all of them together never take every connection.
    pub async fn read_permit(&self) -> sqlx::Result<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.read_permits).acquire_owned();
        answered(async { permit.await.map_err(|_| sqlx::Error::PoolClosed) }).await
    }

    /// At most `limit` messages of a session from the one with this id on, or from the first if that
    /// one is not stored or of another session. Of long ones fewer: enough for a [`CHUNK_BYTES`], and one more.
    pub async fn messages_from(
        &self,
        partition: Partition,
        session: SessionId,
        id: &str,
        limit: u16,
    ) -> sqlx::Result<Snapshot<StoredMessage>> {
        let query = self
            .query_as(MESSAGES_FROM)
            .bind(partition.to_column())
            .bind(session.to_string())
            .bind(id.to_owned())
            .bind(i64::from(limit))
            .bind(CHUNK);
        Snapshot::of(answered(query.fetch_all(&mut *self.pool.get().await?)).await?)
    }

    /// At most `limit` sessions behind the given one, newest first; never more than 501.
    pub async fn sessions(
        &self,
        behind: Option<&Cursor>,
        limit: u16,
    ) -> sqlx::Result<Vec<StoredSession>> {
        let query = self
            .query_as(SESSIONS)
            .bind(behind.map(|cursor| cursor.created_at))
            .bind(behind.map(|cursor| cursor.id.clone()).unwrap_or_default())
            .bind(i64::from(limit));
        answered(query.fetch_all(&mut *self.pool.get().await?)).await
    }

    /// At most `limit` messages of the sessions with these keys: from the `ord`th session on (from 1),
    /// of that one after `seq`. Of long ones see [`History::messages`].
    pub async fn messages_of(
        &self,
        ids: &[String],
        (ord, seq): (i64, i64),
        limit: u16,
    ) -> sqlx::Result<Vec<MessageOf>> {
        let query = self
            .query_as(MESSAGES_OF)
            .bind(ids.to_vec())
            .bind(ord)
            .bind(seq)
            .bind(i64::from(limit))
            .bind(LONG_BYTES);
        answered(query.fetch_all(&mut *self.pool.get().await?)).await
    }

    /// At most `limit` messages of a session, the newest or those before one of them, oldest first. Of long ones fewer:
    /// 16 MiB of them, but one in any case.
    pub async fn latest(
        &self,
        session: SessionId,
        before: Option<&str>,
        limit: u16,
    ) -> sqlx::Result<Vec<StoredMessage>> {
        // Postgres refuses U+0000 in a text: no message can have such an id.
        let before = before.map(|id| if id.contains('\0') { "" } else { id }.to_owned());
        let query = self
            .query_as(LATEST)
            .bind(session.to_string())
            .bind(before)
            .bind(i64::from(limit))
            .bind(LATEST_BYTES_MAX);
        answered(query.fetch_all(&mut *self.pool.get().await?)).await
    }

    /// Those of these sessions that are stored, in this order, as inboxes list them.
    pub async fn listed(&self, sessions: &[SessionId]) -> sqlx::Result<Vec<ListedSession>> {
        let sessions: Vec<_> = sessions.iter().map(SessionId::to_string).collect();
        let query = self.query_as(LISTED).bind(sessions).bind(LAST_CHARS_READ);
        answered(query.fetch_all(&mut *self.pool.get().await?)).await
    }

    /// At most `limit` sessions after the given one, newest first, as inboxes list them; never more than 501.
    pub async fn newest(
        &self,
        after: Option<&Cursor>,
        limit: u16,
    ) -> sqlx::Result<Vec<ListedSession>> {
        let query = self
            .query_as(NEWEST)
            .bind(after.map(|cursor| cursor.created_at))
            .bind(after.map(|cursor| cursor.id.clone()).unwrap_or_default())
            .bind(i64::from(limit))
            .bind(LAST_CHARS_READ);
        answered(query.fetch_all(&mut *self.pool.get().await?)).await
    }

    /// Where every partition stands.
    pub async fn positions(&self) -> sqlx::Result<Vec<(Partition, Position)>> {
        let rows: Vec<(i16, i64, i64)> =
            answered(self.query_as(POSITIONS).fetch_all(&mut *self.pool.get().await?)).await?;
        let position = |(partition, epoch, sequence): (i16, i64, i64)| {
            let position = Position { epoch: Epoch(epoch), sequence: sequence.cast_unsigned() };
            (Partition::new(partition.unsigned_abs()), position)
        };
        Ok(rows.into_iter().map(position).collect())
    }

    /// What became of these requests, in their order.
    pub async fn fates(&self, sought: &[&Sought]) -> sqlx::Result<Vec<Found>> {
        type Row = (Option<String>, Option<String>, Option<String>, bool, bool, bool);
        let query = self
            .query_as(FATES)
            .bind(sought.iter().map(|it| it.id.clone()).collect::<Vec<_>>())
            .bind(sought.iter().map(|it| it.session.to_string()).collect::<Vec<_>>())
            .bind(sought.iter().map(|it| it.digest.as_bytes().to_vec()).collect::<Vec<_>>())
            .bind(sought.iter().map(|it| it.position.epoch.0).collect::<Vec<_>>())
            .bind(sought.iter().map(|it| it.position.sequence.cast_signed()).collect::<Vec<_>>());
        let rows: Vec<Row> = answered(query.fetch_all(&mut *self.pool.get().await?)).await?;
        let found = |(sender, content, session, is_open, is_erased, is_dead_letter): Row| Found {
            words: sender.zip(content).zip(session).map(|((sender, content), session)| Words {
                session,
                sender,
                content,
            }),
            is_open,
            is_erased,
            is_dead_letter,
        };
        Ok(rows.into_iter().map(found).collect())
    }

    /// How far every partition is stored.
    pub async fn offsets(&self) -> sqlx::Result<Vec<Offset>> {
        let rows: Vec<(i16, i64, Option<String>)> =
            answered(self.query_as(STORED_BY).fetch_all(&mut *self.pool.get().await?)).await?;
        let offset = |(partition, sequence, owner): (i16, i64, Option<String>)| Offset {
            partition: Partition::new(partition.unsigned_abs()),
            sequence: sequence.cast_unsigned(),
            owner,
        };
        Ok(rows.into_iter().map(offset).collect())
    }

    /// At most [`STRETCH`] messages that a partition stored after a position in the same epoch, in log order.
    pub async fn stored_after(
        &self,
        partition: Partition,
        position: Position,
    ) -> sqlx::Result<Snapshot<SessionMessage>> {
        let query = self
            .query_as(STORED_AFTER)
            .bind(partition.to_column())
            .bind(position.epoch.0)
            .bind(position.sequence.cast_signed());
        Snapshot::of(answered(query.fetch_all(&mut *self.delivery.get().await?)).await?)
    }

    /// At most [`STRETCH`] sessions that ended after a position in the same epoch, in log order.
    pub async fn erased_after(
        &self,
        position: Position,
    ) -> sqlx::Result<Vec<(SessionDigest, Position)>> {
        let query = self
            .query_as(ERASED_AFTER)
            .bind(position.epoch.0)
            .bind(position.sequence.cast_signed());
        let rows: Vec<(Vec<u8>, i64)> =
            answered(query.fetch_all(&mut *self.delivery.get().await?)).await?;
        let ended = |(digest, sequence): (Vec<u8>, i64)| {
            let position = Position { sequence: sequence.cast_unsigned(), ..position };
            Some((SessionDigest::from_column(&digest)?, position))
        };
        Ok(rows.into_iter().filter_map(ended).collect())
    }

    /// The epoch of a partition that followed this one; `None` if it is the last, or not known here.
    pub async fn epoch_after(
        &self,
        partition: Partition,
        epoch: Epoch,
    ) -> sqlx::Result<Option<Epoch>> {
        let query = self.query_scalar(EPOCH_AFTER).bind(partition.to_column()).bind(epoch.0);
        let next: Option<i64> =
            answered(query.fetch_optional(&mut *self.delivery.get().await?)).await?;
        Ok(next.map(Epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_as_long_as_its_statements_say() {
        for statement in [STORED_AFTER, ERASED_AFTER] {
            let limits: Vec<_> = statement.split("LIMIT ").skip(1).collect();
            let limit = limits[0].split_whitespace().next().unwrap();
            assert_eq!((limits.len(), limit), (1, STRETCH.to_string().as_str()));
        }
    }
}
