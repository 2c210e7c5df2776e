//! What is known of the sessions that a batch says something about: see [`crate::batch::fold`].

use std::collections::HashSet;

use shared::change::{SessionState, Status};
use shared::ids::SessionId;

use crate::batch::Batch;
use crate::batch::fold::{Known, concerned};
use crate::store::Store;

/// What these sessions are, of those that are stored.
const KNOWN_STATES: &str = r#"
    SELECT s."sessionId", s."status", s."aiEnabled", s."assignee"
    FROM unnest($1::text[]) AS x ("sessionId")
    CROSS JOIN LATERAL (
        SELECT c."sessionId", c."status", c."aiEnabled", c."assignee" FROM "ChatSession" c
        WHERE c."sessionId" = x."sessionId" LIMIT 1
    ) s"#;

/// Which of these messages are stored.
const KNOWN_MESSAGES: &str = r#"SELECT "id" FROM "Message" WHERE "id" = ANY ($1)"#;

/// Which of these changes were decided, and whether they count.
const KNOWN_CHANGES: &str =
    r#"SELECT "id", "isApplied" FROM "SessionChange" WHERE "id" = ANY ($1)"#;

/// Which of these messages were refused, and when the log took them, in microseconds.
const KNOWN_REFUSED: &str = r#"
    SELECT "id", (extract(epoch FROM "recordedAt") * 1000000)::bigint FROM "RefusedMessage" WHERE "id" = ANY ($1)"#;

type StateRow = (String, String, bool, Option<String>);

impl Store {
    /// What is known of what a batch is about. Nearly always nothing has to be asked for, or the sessions alone.
    pub(super) async fn known(&self, batch: &Batch) -> sqlx::Result<Known> {
        let mut known = Known::default();
        let sessions = concerned(batch);
        if sessions.is_empty() {
            return Ok(known);
        }
        let texts: Vec<_> = sessions.iter().map(SessionId::to_string).collect();
        let rows: Vec<StateRow> =
            self.pool.fetch_all(sqlx::query(KNOWN_STATES).bind(texts)).await?;
        known.states = rows.into_iter().filter_map(state).collect();
        let ids = batch.messages.iter().filter(|row| row.new.is_ai);
        let ids: Vec<_> = ids.map(|row| row.new.id.as_str().to_owned()).collect();
        if !ids.is_empty() {
            let rows: Vec<_> = self.pool.fetch_all(sqlx::query(KNOWN_REFUSED).bind(ids)).await?;
            known.refused = rows.into_iter().collect();
        }
        let changed: HashSet<_> = batch.changes.iter().map(|row| row.session).collect();
        let is_ordinary = |session: &SessionId| {
            !changed.contains(session)
                && known.states.get(session).is_none_or(|it| *it == SessionState::default())
        };
        let others: HashSet<_> = sessions.into_iter().filter(|it| !is_ordinary(it)).collect();
        if !others.is_empty() {
            self.add_decided(batch, &others, &mut known).await?;
        }
        Ok(known)
    }

    /// Asks for nothing: an error if it could not be asked for something.
    pub(super) async fn knows_nothing(&self) -> sqlx::Result<()> {
        for sql in [KNOWN_STATES, KNOWN_MESSAGES, KNOWN_CHANGES, KNOWN_REFUSED] {
            self.pool.execute(sqlx::query(sql).bind(Vec::<String>::new())).await?;
        }
        Ok(())
    }

    async fn add_decided(
        &self,
        batch: &Batch,
        sessions: &HashSet<SessionId>,
        known: &mut Known,
    ) -> sqlx::Result<()> {
        let messages = batch.messages.iter().filter(|row| sessions.contains(&row.session));
        let ids: Vec<_> = messages.map(|row| row.new.id.as_str().to_owned()).collect();
        if !ids.is_empty() {
            let rows: Vec<(String,)> =
                self.pool.fetch_all(sqlx::query(KNOWN_MESSAGES).bind(ids)).await?;
            known.messages = rows.into_iter().map(|(id,)| id).collect();
        }
        let ids: Vec<_> = batch.changes.iter().map(|row| row.new.id.as_str().to_owned()).collect();
        if !ids.is_empty() {
            let rows: Vec<_> = self.pool.fetch_all(sqlx::query(KNOWN_CHANGES).bind(ids)).await?;
            known.changes = rows.into_iter().collect();
        }
        Ok(())
    }
}

/// A status that is neither was put there by somebody's own SQL: such a session is open.
fn state((session, status, ai_enabled, assignee): StateRow) -> Option<(SessionId, SessionState)> {
    let session = SessionId::parse(&session).ok()?;
    let status = Status::parse(&status).unwrap_or(Status::Open);
    Some((session, SessionState { status, assignee, ai_enabled }))
}
