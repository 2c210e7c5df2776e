//! A session as it is stored.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::pool::Pool;
use crate::timestamp::Timestamp;

/// A session, what was decided about it, and the extent of what is said in it, at one moment.
const EXTENT: &str = r#"
    SELECT s."id", s."sessionId", s."ip", s."userAgent", s."createdAt", s."status", s."assignee", s."aiEnabled",
           said."count", said."last", coalesce((
               SELECT json_agg(json_strip_nulls(json_build_object(
                   'status', c."status", 'aiEnabled', c."aiEnabled", 'assignee', c."assignee",
                   'isRelease', CASE WHEN c."isRelease" THEN true END, 'isApplied', c."isApplied",
                   'createdAt', to_char(c."createdAt", 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
               )) ORDER BY c."createdAt", c."logSequence")
               FROM (
                   SELECT * FROM "SessionChange" a WHERE a."chatSessionId" = s."id" ORDER BY a."createdAt" DESC LIMIT 10000
               ) c
           ), '[]')::text AS "changes"
    FROM "ChatSession" s
    CROSS JOIN LATERAL (
        SELECT count(*) AS "count", coalesce(max(m."seq"), -1) AS "last"
        FROM "Message" m WHERE m."chatSessionId" = s."id"
    ) said
    WHERE s."sessionId" = $1"#;

/// A session in REST answers, in this order; its messages follow as the last key.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionHead<'a> {
    pub id: &'a str,
    /// What clients call it.
    pub session_id: &'a str,
    /// The visitor's address, where it is known.
    pub ip: Option<&'a str>,
    /// The visitor's browser, where it said so.
    pub user_agent: Option<&'a str>,
    /// When the log took it.
    pub created_at: Timestamp,
}

/// A session as it is stored.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct StoredSession {
    pub id: String,
    /// What clients call it.
    pub session_id: String,
    pub ip: Option<String>,
    pub user_agent: Option<String>,
    /// When it was opened.
    pub created_at: Timestamp,
}

impl StoredSession {
    /// As answers have it.
    pub fn to_head(&self) -> SessionHead<'_> {
        SessionHead {
            id: &self.id,
            session_id: &self.session_id,
            ip: self.ip.as_deref(),
            user_agent: self.user_agent.as_deref(),
            created_at: self.created_at,
        }
    }
}

/// A session that is exported, in this order; its messages follow as the last key.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportHead<'a> {
    #[serde(flatten)]
    session: SessionHead<'a>,
    status: &'a str,
    assignee: Option<&'a str>,
    ai_enabled: bool,
    /// What was decided about it, oldest first: the last 10,000, which is more than anybody does by hand.
    changes: &'a RawValue,
}

/// A session, and what is said in it at one moment.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct Extent {
    #[sqlx(flatten)]
    pub session: StoredSession,
    status: String,
    assignee: Option<String>,
    ai_enabled: bool,
    /// As JSON.
    changes: String,
    pub count: i64,
    /// `seq` of the last of them; -1 without any.
    pub last: i64,
}

impl Extent {
    /// As exports have it.
    ///
    /// # Errors
    /// If Postgres did not write JSON.
    pub fn to_head(&self) -> serde_json::Result<ExportHead<'_>> {
        Ok(ExportHead {
            session: self.session.to_head(),
            status: &self.status,
            assignee: self.assignee.as_deref(),
            ai_enabled: self.ai_enabled,
            changes: serde_json::from_str(&self.changes)?,
        })
    }
}

/// A session and the extent of what is said in it, at one moment, if it is stored.
///
/// # Errors
/// As [`Pool::fetch_all`].
pub async fn extent(pool: &Pool, session_id: &str) -> sqlx::Result<Option<Extent>> {
    pool.fetch_optional(sqlx::query(EXTENT).bind(session_id.to_owned())).await
}
