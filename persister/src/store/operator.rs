//! What operators' commands ask for. They own nothing, and so store nothing.

use shared::database::Database;
use shared::message::Message;
use shared::partition::Partition;
use shared::pool::Pool;
use shared::session::{self, Extent};
use shared::timestamp::Timestamp;
use time::OffsetDateTime;

use crate::store::{connect, counts};

const DEAD_LETTERS: &str = r#"
    SELECT "id", "subject", "payload", "reason", "recordedAt" FROM "DeadLetter"
    WHERE $1::bigint IS NULL OR "id" = $1
    ORDER BY "id" LIMIT $2"#;

const DROP_DEAD_LETTER: &str = r#"DELETE FROM "DeadLetter" WHERE "id" = $1"#;

/// Whether anything of a session is stored.
const KNOWS_SESSION: &str = r#"
    SELECT EXISTS (SELECT FROM "ChatSession" WHERE "sessionId" = $1)
        OR EXISTS (SELECT FROM "DeadLetter" WHERE split_part("subject", '.', 4) = $1)"#;

const COUNT_SESSIONS: &str = r#"SELECT count(*) FROM "ChatSession" WHERE "sessionId" = ANY ($1)"#;

/// A page of a session's messages, oldest first.
const MESSAGES_BETWEEN: &str = r#"
    SELECT "id", "sender", "content", "createdAt", "isAI", "chatSessionId", "seq" FROM "Message"
    WHERE "chatSessionId" = $1 AND "seq" > coalesce($2, -1) AND "seq" <= $3 ORDER BY "seq" LIMIT $4"#;

/// A page of the sessions older than a time, oldest first, and whether nothing was said since then.
const SESSION_AGES: &str = r#"
    SELECT s."id", s."sessionId", s."createdAt", coalesce(last."createdAt" < $3, true) AS "isQuiet"
    FROM (
        SELECT "id", "sessionId", "createdAt" FROM "ChatSession"
        WHERE ("createdAt", "id") > (coalesce($1::timestamp, '-infinity'), $2) AND "createdAt" < $3
        ORDER BY "createdAt", "id" LIMIT $4
    ) s
    LEFT JOIN LATERAL (
        SELECT m."createdAt" FROM "Message" m WHERE m."chatSessionId" = s."id" ORDER BY m."seq" DESC LIMIT 1
    ) last ON true
    ORDER BY s."createdAt", s."id""#;

/// A command's hold on Postgres.
pub struct OperatorStore {
    pool: Pool,
}

/// A record that could not be stored.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct DeadLetter {
    pub id: i64,
    pub subject: String,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Why it could not be stored.
    pub reason: String,
    /// When the log took it.
    pub recorded_at: OffsetDateTime,
}

/// A message as it is stored.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct StoredMessage {
    id: String,
    sender: String,
    content: String,
    created_at: Timestamp,
    #[sqlx(rename = "isAI")]
    is_ai: bool,
    chat_session_id: String,
    /// Orders the messages of a session.
    pub seq: i64,
}

impl StoredMessage {
    /// As REST answers have it.
    pub fn to_message(&self) -> Message<'_> {
        Message {
            id: &self.id,
            sender: &self.sender,
            content: &self.content,
            created_at: self.created_at,
            is_ai: self.is_ai,
            chat_session_id: &self.chat_session_id,
        }
    }
}

/// How old a session is.
#[derive(Debug, Clone, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct SessionAge {
    id: String,
    /// What clients call it.
    pub session_id: String,
    /// When it was opened.
    pub created_at: Timestamp,
    /// Whether nothing was said in it since the time that was asked for.
    pub is_quiet: bool,
}

impl OperatorStore {
    /// Prepares the pool; connects when first used.
    pub fn connect(database: &Database) -> Self {
        Self { pool: connect(database).patient() }
    }

    /// How far every partition is stored, also those of other workers.
    pub async fn stored_sequences(&self) -> sqlx::Result<Vec<(Partition, u64)>> {
        counts::stored_sequences(&self.pool).await
    }

    /// The oldest dead letters.
    pub async fn dead_letters(&self, limit: u32) -> sqlx::Result<Vec<DeadLetter>> {
        let query = sqlx::query(DEAD_LETTERS).bind(None::<i64>).bind(i64::from(limit));
        self.pool.fetch_all(query).await
    }

    pub async fn dead_letter(&self, id: i64) -> sqlx::Result<Option<DeadLetter>> {
        self.pool.fetch_optional(sqlx::query(DEAD_LETTERS).bind(id).bind(1_i64)).await
    }

    /// Forgets a dead letter.
    pub async fn drop_dead_letter(&self, id: i64) -> sqlx::Result<()> {
        self.pool.execute(sqlx::query(DROP_DEAD_LETTER).bind(id)).await.map(drop)
    }

    /// Whether anything of a session is stored.
    pub async fn knows_session(&self, session_id: &str) -> sqlx::Result<bool> {
        let query = sqlx::query(KNOWS_SESSION).bind(session_id.to_owned());
        self.pool.fetch_one(query).await.map(|(value,)| value)
    }

    /// How many of these sessions are stored.
    pub async fn count_sessions(&self, session_ids: &[String]) -> sqlx::Result<i64> {
        let query = sqlx::query(COUNT_SESSIONS).bind(session_ids.to_vec());
        self.pool.fetch_one(query).await.map(|(value,)| value)
    }

    /// A session and what is said in it now, if it is stored.
    pub async fn extent(&self, session_id: &str) -> sqlx::Result<Option<Extent>> {
        session::extent(&self.pool, session_id).await
    }

    /// At most `limit` messages of the session with this key behind a `seq` and up to another one, oldest
    /// first.
    pub async fn messages_between(
        &self,
        id: &str,
        after: Option<i64>,
        last: i64,
        limit: u16,
    ) -> sqlx::Result<Vec<StoredMessage>> {
        let query = sqlx::query(MESSAGES_BETWEEN)
            .bind(id.to_owned())
            .bind(after)
            .bind(last)
            .bind(i64::from(limit));
        self.pool.fetch_all(query).await
    }

    /// At most `limit` sessions behind the given one that were opened before a time, oldest first.
    pub async fn session_ages(
        &self,
        behind: Option<&SessionAge>,
        before: OffsetDateTime,
        limit: u16,
    ) -> sqlx::Result<Vec<SessionAge>> {
        let query = sqlx::query(SESSION_AGES)
            .bind(behind.map(|session| session.created_at))
            .bind(behind.map(|session| session.id.clone()).unwrap_or_default())
            .bind(Timestamp::truncate(before))
            .bind(i64::from(limit));
        self.pool.fetch_all(query).await
    }
}
