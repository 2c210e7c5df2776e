//! All SQL of the gateway: it only reads, from the primary, by a pool of its own.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use futures_util::FutureExt;
use shared::announcement::{Epoch, Fate, Position};
use shared::database::{Database, Unusable, answered};
use shared::ids::{SessionDigest, SessionId};
use shared::partition::Partition;
use shared::pool::Pool;
use shared::session::{self, Extent, StoredSession};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::db::rows::{
    CHUNK_BYTES, Cursor, Found, HistoryRow, LAST_CHARS, ListedSession, Offset, ReadUpTo,
    SessionMessage, Snapshot, Sought, Storage, StoredChange, StoredMessage, Words,
};
use crate::db::together::{Answered, Together};

/// What Postgres lists connections of gateways as.
const APPLICATION: &str = "chat-gateway";
/// Connections unless the URL's `connection_limit` says otherwise; delivery has one more.
const CONNECTIONS: u32 = 8;
/// No page is so much work that other processes of Postgres should be started for it: that takes longer than the page.
const NOT_PARALLEL: (&str, &str) = ("max_parallel_workers_per_gather", "0");
/// [`CHUNK_BYTES`] as Postgres counts.
#[allow(clippy::cast_possible_wrap)]
const CHUNK: i64 = CHUNK_BYTES as i64;
/// A content of more bytes is read by itself: more than twice as many as one has that can be sent unless a setting says
/// otherwise.
pub const LONG_BYTES: i32 = 64 * 1024;
/// Most bytes of an inbox's page of a history: 500 messages as long as they may be unless a setting says otherwise, of
/// four bytes a character.
const LATEST_BYTES_MAX: i64 = 16 * 1024 * 1024;
/// Characters of a last message that are read: one more than shown tells that it was cut.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
const LAST_CHARS_READ: i32 = LAST_CHARS as i32 + 1;

/// Sessions that are asked about together.
const STORAGES_MAX: usize = 256;
/// Clients that come back together. What they missed is in memory at once: [`CHUNK_BYTES`] of each.
const RESUMES_MAX: usize = 16;
/// Most messages that a client missed and is given at once, fewer where they are long; the rest is read over REST.
pub const MISSED_MAX: u16 = 500;

/// Whether sessions are stored, and whether they were erased.
const SESSIONS_EXIST: &str = r#"
    SELECT s."id" IS NOT NULL, e."digest" IS NOT NULL
    FROM unnest($1::text[], $2::bytea[]) WITH ORDINALITY AS w ("sessionId", "digest", "ord")
    LEFT JOIN LATERAL (
        SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = w."sessionId" LIMIT 1
    ) s ON true
    LEFT JOIN LATERAL (
        SELECT e."digest" FROM "ErasedSession" e WHERE e."digest" = w."digest" LIMIT 1
    ) e ON true
    ORDER BY w."ord""#;

/// A session, whatever its id is.
const SESSION: &str = r#"
    SELECT "id", "sessionId", "ip", "userAgent", "createdAt" FROM "ChatSession" WHERE "sessionId" = $1"#;

/// A page of a session's messages, oldest first: the first of those asked for. Long ones come without their content:
/// an adopter's message may be as long as Postgres takes it.
const MESSAGES: &str = r#"
    SELECT m."seq", m."id", m."sender", CASE WHEN octet_length(m."content") <= $5 THEN m."content" END,
           m."createdAt", m."isAI", m."chatSessionId"
    FROM "Message" m
    WHERE m."chatSessionId" = (SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = $1)
      AND m."seq" >= $2 AND m."seq" < $3
    ORDER BY m."seq" LIMIT $4"#;

/// The same, the last of those asked for.
const LAST_MESSAGES: &str = r#"
    SELECT last.* FROM (
        SELECT m."seq", m."id", m."sender", CASE WHEN octet_length(m."content") <= $5 THEN m."content" END,
               m."createdAt", m."isAI", m."chatSessionId"
        FROM "Message" m
        WHERE m."chatSessionId" = (SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = $1)
          AND m."seq" >= $2 AND m."seq" < $3
        ORDER BY m."seq" DESC LIMIT $4
    ) last
    ORDER BY last."seq""#;

/// What a message says, however long.
const CONTENT: &str = r#"SELECT "content" FROM "Message" WHERE "id" = $1"#;

/// Where a message stands in its session, if it is of this one.
const SEQ: &str = r#"
    SELECT m."seq" FROM "Message" m JOIN "ChatSession" s ON s."id" = m."chatSessionId"
    WHERE m."id" = $2 AND s."sessionId" = $1"#;

/// The messages of some sessions, of each from one of them on, or from the first if that one is not of this session;
/// with them, as of the same moment, how far the session's partition is stored. Beside that one they are so many and so
/// long at most, but two in any case: the second tells that there is more.
const MESSAGES_FROM: &str = r#"
    SELECT w."ord", p."epoch", p."sequence", m.*
    FROM unnest($1::smallint[], $2::text[], $3::text[])
        WITH ORDINALITY AS w ("partition", "sessionId", "from", "ord")
    JOIN "LogPartition" p ON p."partition" = w."partition"
    LEFT JOIN LATERAL (
        SELECT s."id" FROM "ChatSession" s WHERE s."sessionId" = w."sessionId" LIMIT 1
    ) s ON true
    LEFT JOIN LATERAL (
        SELECT f."seq" FROM "Message" f WHERE f."id" = w."from" AND f."chatSessionId" = s."id" LIMIT 1
    ) f ON true
    LEFT JOIN LATERAL (
        SELECT n.*,
               row_number() OVER (ORDER BY n."seq") AS "nth",
               sum(octet_length(n."content")) FILTER (WHERE n."id" <> w."from") OVER (
                   ORDER BY n."seq" ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
               ) AS "bytesBefore"
        FROM (
            SELECT m."id", m."sender", m."content", m."createdAt", m."isAI", m."chatSessionId", m."seq",
                   m."logEpoch", m."logSequence"
            FROM "Message" m
            WHERE m."chatSessionId" = s."id" AND m."seq" >= coalesce(f."seq", 0)
            ORDER BY m."seq" LIMIT $4
        ) n
    ) m ON m."nth" <= 3 OR m."bytesBefore" <= $5
    ORDER BY w."ord", m."seq""#;

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

/// A page of the messages of some sessions, session by session, oldest first; of long ones see `MESSAGES`. By `ord`
/// alone: Postgres knows that they come in this order, and sorts nothing. Those of a session come as its own part of
/// the statement orders them; that they do so here too is no promise of SQL, and is looked at.
const MESSAGES_OF: &str = r#"
    SELECT m."seq", m."id", m."sender", m."content", m."createdAt", m."isAI", s."ord"
    FROM unnest($1::text[]) WITH ORDINALITY AS s ("id", "ord")
    CROSS JOIN LATERAL (
        SELECT c."seq", c."id", c."sender", CASE WHEN octet_length(c."content") <= $4 THEN c."content" END AS "content",
               c."createdAt", c."isAI"
        FROM "Message" c
        WHERE c."chatSessionId" = s."id" AND c."seq" > CASE WHEN s."ord" = 1 THEN $2 ELSE -1 END
        ORDER BY c."seq" LIMIT $3
    ) m
    ORDER BY s."ord" LIMIT $3"#;

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

/// What inboxes list of a session `s`.
const ENTRY_COLUMNS: &str = r#"
    SELECT s."id", s."sessionId", s."createdAt", last."lastSender", last."lastContent", last."lastAt", s."status",
           s."assignee", s."aiEnabled", waiting."unread""#;

/// These sessions. `LIMIT` keeps it at one look into an index per session, however many are stored.
const OF_THESE: &str = r#"
    FROM unnest($2::text[]) WITH ORDINALITY AS wanted ("sessionId", "ord")
    CROSS JOIN LATERAL (
        SELECT c."id", c."sessionId", c."createdAt", c."status", c."assignee", c."aiEnabled", c."adminReadSeq"
        FROM "ChatSession" c WHERE c."sessionId" = wanted."sessionId" LIMIT 1
    ) s"#;

/// A page of sessions, newest first; of its two limits see `SESSIONS`.
const OF_NEWEST: &str = r#"
    FROM (
        SELECT n.* FROM (
            (SELECT "id", "sessionId", "createdAt", "status", "assignee", "aiEnabled", "adminReadSeq" FROM "ChatSession"
             WHERE $2::timestamp IS NULL
             ORDER BY "createdAt" DESC, "id" DESC LIMIT 501)
            UNION ALL
            (SELECT "id", "sessionId", "createdAt", "status", "assignee", "aiEnabled", "adminReadSeq" FROM "ChatSession"
             WHERE ("createdAt", "id") < ($2, $3)
             ORDER BY "createdAt" DESC, "id" DESC LIMIT 501)
        ) n
        ORDER BY n."createdAt" DESC, n."id" DESC LIMIT $4
    ) s"#;

/// What was said last, and how much of it waits: only where the visitor spoke last anything is looked at, back to what
/// somebody else said, and not beyond as many as are shown.
const LAST_AND_UNREAD: &str = r#"
    LEFT JOIN LATERAL (
        SELECT m."sender" AS "lastSender", substr(m."content", 1, $1) AS "lastContent", m."createdAt" AS "lastAt", m."seq"
        FROM "Message" m WHERE m."chatSessionId" = s."id" ORDER BY m."seq" DESC LIMIT 1
    ) last ON true
    CROSS JOIN LATERAL (
        SELECT count(*) AS "unread" FROM (
            SELECT count(*) FILTER (WHERE n."sender" <> 'user') OVER (
                ORDER BY n."seq" DESC ROWS UNBOUNDED PRECEDING
            ) AS "others"
            FROM (
                SELECT w."sender", w."seq" FROM "Message" w
                WHERE last."lastSender" = 'user' AND last."seq" > coalesce(s."adminReadSeq", -1)
                  AND w."chatSessionId" = s."id" AND w."seq" > coalesce(s."adminReadSeq", -1)
                ORDER BY w."seq" DESC LIMIT 99
            ) n
        ) said
        WHERE said."others" < 1
    ) waiting"#;

const AS_WANTED: &str = r#"
    ORDER BY wanted."ord""#;

const AS_NEWEST: &str = r#"
    ORDER BY s."createdAt" DESC, s."id" DESC"#;

/// These sessions as inboxes list them, in this order.
pub static LISTED: LazyLock<String> =
    LazyLock::new(|| [ENTRY_COLUMNS, OF_THESE, LAST_AND_UNREAD, AS_WANTED].concat());

/// A page of sessions as inboxes list them, newest first.
pub static NEWEST: LazyLock<String> =
    LazyLock::new(|| [ENTRY_COLUMNS, OF_NEWEST, LAST_AND_UNREAD, AS_NEWEST].concat());

/// Up to which message each side has read a session.
const READ_UP_TO: &str = r#"
    SELECT u."id" AS "user", a."id" AS "admin"
    FROM "ChatSession" s
    LEFT JOIN LATERAL (
        SELECT m."id" FROM "Message" m WHERE m."chatSessionId" = s."id" AND m."seq" = s."userReadSeq" LIMIT 1
    ) u ON true
    LEFT JOIN LATERAL (
        SELECT m."id" FROM "Message" m WHERE m."chatSessionId" = s."id" AND m."seq" = s."adminReadSeq" LIMIT 1
    ) a ON true
    WHERE s."sessionId" = $1"#;

/// Where each partition stands.
const POSITIONS: &str = r#"SELECT "partition", "epoch", "sequence" FROM "LogPartition""#;

/// What became of requests: what is stored under the ids of messages, whether their sessions are stored or were
/// erased, and whether their records were set aside.
const FATES: &str = r#"
    SELECT m."sender", m."content", m."sessionId", o."id" IS NOT NULL, z."digest" IS NOT NULL,
           r."id" IS NOT NULL, g."isApplied", d."logSequence" IS NOT NULL
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
        SELECT n."id" FROM "RefusedMessage" n WHERE n."id" = w."id" LIMIT 1
    ) r ON true
    LEFT JOIN LATERAL (
        SELECT h."isApplied" FROM "SessionChange" h WHERE h."id" = w."id" LIMIT 1
    ) g ON true
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

/// Changes that were decided after a position in the same epoch and count, in the order of the log.
const CHANGED_AFTER: &str = r#"
    SELECT s."sessionId", c.*
    FROM (
        SELECT "id", "chatSessionId", "isApplied", "status", "aiEnabled", "assignee", "isRelease", "createdAt",
               "logSequence"
        FROM "SessionChange" WHERE "logEpoch" = $1 AND "logSequence" > $2
        ORDER BY "logSequence" LIMIT 500
    ) c
    JOIN "ChatSession" s ON s."id" = c."chatSessionId"
    ORDER BY c."logSequence""#;

/// The epoch that followed another one of a partition.
const EPOCH_AFTER: &str = r#"
    SELECT "epoch" FROM "LogEpoch"
    WHERE "partition" = $1 AND "ordinal" > (SELECT e."ordinal" FROM "LogEpoch" e WHERE e."epoch" = $2)
    ORDER BY "ordinal" LIMIT 1"#;

const PING: &str = "SELECT 1";

/// Persisters that live and do not know the records that changes are.
const OLDER_WORKERS: &str = r#"
    SELECT count(*) FROM "Worker" WHERE "version" < $1 AND "aliveUntil" > now()"#;

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
    storages: Together<Pool, SessionId, Storage>,
    missed: Together<Pool, Resume, Option<Snapshot<StoredMessage>>>,
    database: Database,
}

/// A client that comes back.
#[derive(Debug)]
pub struct Resume {
    pub partition: Partition,
    pub session: SessionId,
    /// The last message that it has.
    pub id: String,
}

impl History {
    /// Prepares the connections; connects when first used.
    pub fn connect(database: &Database) -> Self {
        let connections = database.connection_limit.unwrap_or(CONNECTIONS).max(1);
        let read_permits = Arc::new(Semaphore::new((connections / 2).max(1) as usize));
        let pool = |connections| Pool::new(database, APPLICATION, connections, &[NOT_PARALLEL]);
        let (delivery, database) = (pool(1), database.clone());
        let pool = pool(connections);
        let storages =
            Together::new(pool.clone(), STORAGES_MAX, |pool, all| storages(pool, all).boxed());
        let missed =
            Together::new(pool.clone(), RESUMES_MAX, |pool, all| messages_from(pool, all).boxed());
        Self { pool, delivery, read_permits, storages, missed, database }
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
        self.pool.execute(sqlx::query(PING)).await.map(drop)
    }

    /// How many persisters live that were built before the newest migration.
    pub async fn older_workers(&self) -> sqlx::Result<i64> {
        let query = sqlx::query(OLDER_WORKERS).bind(shared::SCHEMA_VERSION);
        self.pool.fetch_one(query).await.map(|(count,)| count)
    }

    /// Whether this is a replica, whose answers may be of the past.
    pub async fn is_replica(&self) -> sqlx::Result<bool> {
        self.pool.fetch_one(sqlx::query(IS_REPLICA)).await.map(|(is_replica,)| is_replica)
    }

    /// The newest migration that is applied, if any ever was.
    pub async fn schema_version(&self) -> sqlx::Result<Option<i64>> {
        let (is_migrated,): (bool,) = self.pool.fetch_one(sqlx::query(MIGRATED)).await?;
        if !is_migrated {
            return Ok(None);
        }
        self.pool.fetch_one(sqlx::query(SCHEMA_VERSION)).await.map(|(version,)| version)
    }

    /// Whether a session is stored, or was erased.
    pub async fn storage_of(&self, session: SessionId) -> Answered<Storage> {
        self.storages.answer(session).await
    }

    /// A session, if it is stored. An adopter's may have any text as its id.
    pub async fn session(&self, session: &str) -> sqlx::Result<Option<StoredSession>> {
        // Postgres refuses U+0000 in a text: no session can have such an id.
        if session.contains('\0') {
            return Ok(None);
        }
        let query = sqlx::query(SESSION).bind(session.to_owned());
        self.pool.fetch_optional(query).await
    }

    /// The same, and what is said in it now.
    pub async fn extent(&self, session: &str) -> sqlx::Result<Option<Extent>> {
        if session.contains('\0') {
            return Ok(None);
        }
        session::extent(&self.pool, session).await
    }

    /// At most `limit` messages of a session, oldest first: the first with these `seq`s. Those of more than 64 KiB
    /// come without their content. An adopter's session may have any text as its id.
    pub async fn messages(
        &self,
        session: &str,
        seqs: Range<i64>,
        limit: u16,
    ) -> sqlx::Result<Vec<HistoryRow>> {
        self.messages_by(MESSAGES, session, seqs, limit).await
    }

    /// The same, the last with these `seq`s.
    pub async fn last_messages(
        &self,
        session: &str,
        seqs: Range<i64>,
        limit: u16,
    ) -> sqlx::Result<Vec<HistoryRow>> {
        self.messages_by(LAST_MESSAGES, session, seqs, limit).await
    }

    async fn messages_by(
        &self,
        sql: &'static str,
        session: &str,
        seqs: Range<i64>,
        limit: u16,
    ) -> sqlx::Result<Vec<HistoryRow>> {
        let query = sqlx::query(sql)
            .bind(session.to_owned())
            .bind(seqs.start)
            .bind(seqs.end)
            .bind(i64::from(limit))
            .bind(LONG_BYTES);
        self.pool.fetch_rows(query).await
    }

    /// What a message says, if it is stored.
    pub async fn content(&self, id: &str) -> sqlx::Result<Option<String>> {
        let query = sqlx::query(CONTENT).bind(id.to_owned());
        Ok(self.pool.fetch_optional(query).await?.map(|(content,)| content))
    }

    /// The `seq` of a message, if it is stored and of this session.
    pub async fn seq_of(&self, session: &str, id: &str) -> sqlx::Result<Option<i64>> {
        let query = sqlx::query(SEQ).bind(session.to_owned()).bind(id.to_owned());
        Ok(self.pool.fetch_optional(query).await?.map(|(seq,)| seq))
    }

    /// Waits for leave to read much. A read without a limit asks before each statement, and
    /// all of them together never take every connection.
    pub async fn read_permit(&self) -> sqlx::Result<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.read_permits).acquire_owned();
        answered(async { permit.await.map_err(|_| sqlx::Error::PoolClosed) }).await
    }

    /// The messages of a session from one of them on, or from the first if that one is not stored or of another session:
    /// at most [`MISSED_MAX`] and two. Of long ones fewer: enough for a [`CHUNK_BYTES`], and one more.
    pub async fn messages_from(&self, resume: Resume) -> Answered<Snapshot<StoredMessage>> {
        // Nothing was ever stored from this log.
        let nothing = || Arc::new(sqlx::Error::RowNotFound);
        self.missed.answer(resume).await?.ok_or_else(nothing)
    }

    /// At most `limit` sessions behind the given one, newest first; never more than 501.
    pub async fn sessions(
        &self,
        behind: Option<&Cursor>,
        limit: u16,
    ) -> sqlx::Result<Vec<StoredSession>> {
        let query = sqlx::query(SESSIONS)
            .bind(behind.map(|cursor| cursor.created_at))
            .bind(behind.map(|cursor| cursor.id.clone()).unwrap_or_default())
            .bind(i64::from(limit));
        self.pool.fetch_all(query).await
    }

    /// At most `limit` messages of the sessions with these keys; of the first one those after `seq`. Of long ones see
    /// [`History::messages`].
    pub async fn messages_of(
        &self,
        ids: &[String],
        seq: i64,
        limit: u16,
    ) -> sqlx::Result<Vec<HistoryRow>> {
        let query = sqlx::query(MESSAGES_OF)
            .bind(ids.to_vec())
            .bind(seq)
            .bind(i64::from(limit))
            .bind(LONG_BYTES);
        let rows: Vec<HistoryRow> = self.pool.fetch_rows(query).await?;
        for pair in rows.windows(2) {
            if (pair[0].ord()?, pair[0].seq()?) >= (pair[1].ord()?, pair[1].seq()?) {
                return Err(sqlx::Error::Protocol("messages came out of order".into()));
            }
        }
        Ok(rows)
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
        let query = sqlx::query(LATEST)
            .bind(session.to_string())
            .bind(before)
            .bind(i64::from(limit))
            .bind(LATEST_BYTES_MAX);
        self.pool.fetch_all(query).await
    }

    /// Those of these sessions that are stored, in this order, as inboxes list them.
    pub async fn listed(&self, sessions: &[SessionId]) -> sqlx::Result<Vec<ListedSession>> {
        let sessions: Vec<_> = sessions.iter().map(SessionId::to_string).collect();
        let query = sqlx::query(LISTED.as_str()).bind(LAST_CHARS_READ).bind(sessions);
        self.pool.fetch_all(query).await
    }

    /// At most `limit` sessions after the given one, newest first, as inboxes list them; never more than 501.
    pub async fn newest(
        &self,
        after: Option<&Cursor>,
        limit: u16,
    ) -> sqlx::Result<Vec<ListedSession>> {
        let query = sqlx::query(NEWEST.as_str())
            .bind(LAST_CHARS_READ)
            .bind(after.map(|cursor| cursor.created_at))
            .bind(after.map(|cursor| cursor.id.clone()).unwrap_or_default())
            .bind(i64::from(limit));
        self.pool.fetch_all(query).await
    }

    /// Up to which message each side has read a session.
    pub async fn read_up_to(&self, session: SessionId) -> sqlx::Result<ReadUpTo> {
        let query = sqlx::query(READ_UP_TO).bind(session.to_string());
        Ok(self.pool.fetch_optional(query).await?.unwrap_or_default())
    }

    /// Where every partition stands.
    pub async fn positions(&self) -> sqlx::Result<Vec<(Partition, Position)>> {
        let rows: Vec<(i16, i64, i64)> = self.pool.fetch_all(sqlx::query(POSITIONS)).await?;
        let position = |(partition, epoch, sequence): (i16, i64, i64)| {
            let position = Position { epoch: Epoch(epoch), sequence: sequence.cast_unsigned() };
            (Partition::new(partition.unsigned_abs()), position)
        };
        Ok(rows.into_iter().map(position).collect())
    }

    /// What became of these requests, in their order.
    pub async fn fates(&self, sought: &[&Sought]) -> sqlx::Result<Vec<Found>> {
        type Row =
            (Option<String>, Option<String>, Option<String>, bool, bool, bool, Option<bool>, bool);
        let query = sqlx::query(FATES)
            .bind(sought.iter().map(|it| it.id.clone()).collect::<Vec<_>>())
            .bind(sought.iter().map(|it| it.session.to_string()).collect::<Vec<_>>())
            .bind(sought.iter().map(|it| it.digest.as_bytes().to_vec()).collect::<Vec<_>>())
            .bind(sought.iter().map(|it| it.position.epoch.0).collect::<Vec<_>>())
            .bind(sought.iter().map(|it| it.position.sequence.cast_signed()).collect::<Vec<_>>());
        let rows: Vec<Row> = self.pool.fetch_all(query).await?;
        let found = |(
            sender,
            content,
            session,
            is_open,
            is_erased,
            is_declined,
            is_applied,
            is_dead_letter,
        ): Row| Found {
            words: sender.zip(content).zip(session).map(|((sender, content), session)| Words {
                session,
                sender,
                content,
            }),
            is_open,
            is_erased,
            decided: match is_applied {
                Some(true) => Some(Fate::Changed),
                Some(false) => Some(Fate::Claimed),
                None => is_declined.then_some(Fate::AiOff),
            },
            is_dead_letter,
        };
        Ok(rows.into_iter().map(found).collect())
    }

    /// How far every partition is stored.
    pub async fn offsets(&self) -> sqlx::Result<Vec<Offset>> {
        let rows: Vec<(i16, i64, Option<String>)> =
            self.pool.fetch_all(sqlx::query(STORED_BY)).await?;
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
        let query = sqlx::query(STORED_AFTER)
            .bind(partition.to_column())
            .bind(position.epoch.0)
            .bind(position.sequence.cast_signed());
        Snapshot::of(self.delivery.fetch_all(query).await?)
    }

    /// At most [`STRETCH`] sessions that ended after a position in the same epoch, in log order.
    pub async fn erased_after(
        &self,
        position: Position,
    ) -> sqlx::Result<Vec<(SessionDigest, Position)>> {
        let query =
            sqlx::query(ERASED_AFTER).bind(position.epoch.0).bind(position.sequence.cast_signed());
        let rows: Vec<(Vec<u8>, i64)> = self.delivery.fetch_all(query).await?;
        let ended = |(digest, sequence): (Vec<u8>, i64)| {
            let position = Position { sequence: sequence.cast_unsigned(), ..position };
            Some((SessionDigest::from_column(&digest)?, position))
        };
        Ok(rows.into_iter().filter_map(ended).collect())
    }

    /// At most [`STRETCH`] changes that were decided after a position in the same epoch, in log order.
    pub async fn changed_after(&self, position: Position) -> sqlx::Result<Vec<StoredChange>> {
        let query =
            sqlx::query(CHANGED_AFTER).bind(position.epoch.0).bind(position.sequence.cast_signed());
        self.delivery.fetch_all(query).await
    }

    /// The epoch of a partition that followed this one; `None` if it is the last, or not known here.
    pub async fn epoch_after(
        &self,
        partition: Partition,
        epoch: Epoch,
    ) -> sqlx::Result<Option<Epoch>> {
        let query = sqlx::query(EPOCH_AFTER).bind(partition.to_column()).bind(epoch.0);
        Ok(self.delivery.fetch_optional(query).await?.map(|(epoch,)| Epoch(epoch)))
    }
}

async fn storages(pool: Pool, sessions: Vec<SessionId>) -> sqlx::Result<Vec<Storage>> {
    let digest = |session: &SessionId| session.digest().as_bytes().to_vec();
    let query = sqlx::query(SESSIONS_EXIST)
        .bind(sessions.iter().map(SessionId::to_string).collect::<Vec<_>>())
        .bind(sessions.iter().map(digest).collect::<Vec<_>>());
    let rows: Vec<(bool, bool)> = pool.fetch_all(query).await?;
    let storage = |row| match row {
        (_, true) => Storage::Erased,
        (true, false) => Storage::Stored,
        (false, false) => Storage::Missing,
    };
    Ok(rows.into_iter().map(storage).collect())
}

async fn messages_from(
    pool: Pool,
    all: Vec<Resume>,
) -> sqlx::Result<Vec<Option<Snapshot<StoredMessage>>>> {
    let query = sqlx::query(MESSAGES_FROM)
        .bind(all.iter().map(|resume| resume.partition.to_column()).collect::<Vec<_>>())
        .bind(all.iter().map(|resume| resume.session.to_string()).collect::<Vec<_>>())
        .bind(all.iter().map(|resume| resume.id.clone()).collect::<Vec<_>>())
        .bind(i64::from(MISSED_MAX) + 2)
        .bind(CHUNK);
    Snapshot::each(pool.fetch_all(query).await?, all.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_as_long_as_its_statements_say() {
        for statement in [STORED_AFTER, ERASED_AFTER, CHANGED_AFTER] {
            let limits: Vec<_> = statement.split("LIMIT ").skip(1).collect();
            let limit = limits[0].split_whitespace().next().unwrap();
            assert_eq!((limits.len(), limit), (1, STRETCH.to_string().as_str()));
        }
    }
}
