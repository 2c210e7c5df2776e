//! Up to which message each side has read a session.

use shared::ids::{MessageId, SessionId};
use shared::message::Sender;
use shared::reading::ReadMark;

use crate::store::Store;

/// Moves the marks of sessions forward. A row that somebody else is changing is passed over: two statements that wait
/// for several rows of each other would do so until Postgres notices, and one of them may be storing messages. What
/// is not of the session says nothing.
const MARK_READ: &str = r#"
    WITH wanted AS (
        SELECT x."ord", s."id" AS "chat", x."reader", m."seq"
        FROM unnest($1::text[], $2::text[], $3::text[])
            WITH ORDINALITY AS x ("sessionId", "reader", "message", "ord")
        CROSS JOIN LATERAL (
            SELECT c."id" FROM "ChatSession" c WHERE c."sessionId" = x."sessionId" LIMIT 1
        ) s
        CROSS JOIN LATERAL (
            SELECT k."seq" FROM "Message" k WHERE k."id" = x."message" AND k."chatSessionId" = s."id" LIMIT 1
        ) m
    ), locked AS (
        SELECT s."id", s."userReadSeq", s."adminReadSeq" FROM "ChatSession" s
        WHERE s."id" = ANY (ARRAY(SELECT "chat" FROM wanted))
        FOR NO KEY UPDATE SKIP LOCKED
    ), furthest AS (
        SELECT l."id", max(w."seq") FILTER (WHERE w."reader" = 'user') AS "user",
               max(w."seq") FILTER (WHERE w."reader" = 'admin') AS "admin"
        FROM wanted w JOIN locked l ON l."id" = w."chat"
        WHERE w."seq" > coalesce(CASE w."reader" WHEN 'user' THEN l."userReadSeq" ELSE l."adminReadSeq" END, -1)
        GROUP BY l."id"
    ), moved AS (
        UPDATE "ChatSession" s
        SET "userReadSeq" = greatest(s."userReadSeq", f."user"),
            "adminReadSeq" = greatest(s."adminReadSeq", f."admin")
        FROM furthest f WHERE s."id" = f."id" AND s."id" = ANY (ARRAY(SELECT "id" FROM furthest))
    )
    SELECT w."ord", l."id" IS NULL AS "isBusy",
           coalesce(w."seq" = CASE w."reader" WHEN 'user' THEN f."user" ELSE f."admin" END, false) AS "isMoved"
    FROM wanted w LEFT JOIN locked l ON l."id" = w."chat" LEFT JOIN furthest f ON f."id" = w."chat""#;

/// Marks that moved.
pub type Kept = Vec<ReadMark>;
/// Marks whose sessions are being changed.
pub type Busy = Vec<ReadMark>;

impl Store {
    /// Keeps those of these marks that are further than what is known, and tells which these are; and which could not
    /// be looked at.
    pub async fn mark_read(&self, marks: &[ReadMark]) -> sqlx::Result<(Kept, Busy)> {
        let query = sqlx::query(MARK_READ)
            .bind(marks.iter().map(|it| SessionId::to_string(&it.session)).collect::<Vec<_>>())
            .bind(marks.iter().map(|it| Sender::as_str(it.reader).to_owned()).collect::<Vec<_>>())
            .bind(
                marks
                    .iter()
                    .map(|it| MessageId::as_str(&it.message).to_owned())
                    .collect::<Vec<_>>(),
            );
        let rows: Vec<(i64, bool, bool)> = self.pool.fetch_all(query).await?;
        let (mut kept, mut busy) = (Vec::new(), Vec::new());
        for (ord, is_busy, is_moved) in rows {
            let mark = usize::try_from(ord - 1).ok().and_then(|place| marks.get(place));
            match mark {
                Some(mark) if is_busy => busy.push(mark.clone()),
                Some(mark) if is_moved => kept.push(mark.clone()),
                _ => {}
            }
        }
        Ok((kept, busy))
    }
}
