//! Rows as the gateway reads them.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use shared::announcement::{Epoch, Fate, Position};
use shared::change::{Agent, Assignment, Change, Status};
use shared::content::json_bytes;
use shared::ids::{SessionDigest, SessionId};
use shared::message::Message;
use shared::partition::Partition;
use shared::session::StoredSession;
use shared::timestamp::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row, ValueRef};
use time::OffsetDateTime;

/// Most characters of a last message that are shown.
pub const LAST_CHARS: usize = 50;
/// Most bytes of JSON that are read for a client at a time, unless one message has more: what one costs that does
/// not take them.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// What a message has in JSON beside its content, at most.
const AROUND_CONTENT_BYTES: usize = 256;
/// What stands in a cursor for the infinities, which have no milliseconds.
const INFINITE: [(Timestamp, &str); 2] =
    [(Timestamp::INFINITY, "infinity"), (Timestamp::MINUS_INFINITY, "-infinity")];

/// What Postgres has of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    Stored,
    /// Nothing but that it was erased.
    Erased,
    Missing,
}

/// A message as it is stored.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct StoredMessage {
    pub id: String,
    sender: String,
    content: String,
    created_at: Timestamp,
    #[sqlx(rename = "isAI")]
    is_ai: bool,
    chat_session_id: String,
    /// Orders the messages of a session.
    pub seq: i64,
    log_epoch: Option<i64>,
    log_sequence: Option<i64>,
}

impl StoredMessage {
    /// Where it stood in the log, if it came through the log.
    pub fn position(&self) -> Option<Position> {
        let sequence = self.log_sequence?.cast_unsigned();
        Some(Position { epoch: Epoch(self.log_epoch?), sequence })
    }

    /// The time of the log, in whole milliseconds, unless somebody changed it to one that no log has.
    pub fn recorded_at(&self) -> Option<OffsetDateTime> {
        self.created_at.to_time()
    }

    /// As every client sees it.
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

/// How many of these messages fit into so many bytes; at least one, if there is one.
pub fn fitting<'a>(messages: impl Iterator<Item = &'a StoredMessage>, room: usize) -> usize {
    let mut bytes = 0;
    let fits = |message: &&StoredMessage| {
        let is_first = bytes == 0;
        bytes += json_bytes(&message.content) + AROUND_CONTENT_BYTES;
        is_first || bytes <= room
    };
    messages.take_while(fits).count()
}

/// A message of a history as Postgres gave it, read where it lies: histories are long, and are written as they come.
///
/// The statements that give it select in this order: `seq`, and the columns of a [`Message`]; where they are about
/// several sessions, which of them it is in place of the last; a search has two more. So it is not asked column by column of each row whether the types are those.
#[derive(Debug)]
pub struct HistoryRow(PgRow);

impl From<PgRow> for HistoryRow {
    fn from(row: PgRow) -> Self {
        Self(row)
    }
}

impl HistoryRow {
    /// Orders the messages of a session.
    pub fn seq(&self) -> sqlx::Result<i64> {
        self.0.try_get_unchecked(0)
    }

    pub fn id(&self) -> sqlx::Result<&str> {
        self.0.try_get_unchecked(1)
    }

    /// How long it is in JSON, about; `None` if its content is too long to be read with others.
    pub fn bytes(&self) -> sqlx::Result<Option<usize>> {
        let content = self.0.try_get_raw(3)?;
        if content.is_null() {
            return Ok(None);
        }
        let bytes = content.as_bytes().map_err(sqlx::Error::Decode)?.len();
        Ok(Some(bytes + AROUND_CONTENT_BYTES))
    }

    /// As every client sees it; `long` in place of a content that was too long to be read with others.
    pub fn to_message<'a>(&'a self, long: Option<&'a str>) -> sqlx::Result<Message<'a>> {
        self.to_message_of(self.0.try_get_unchecked(6)?, long)
    }

    /// The same where its session is known.
    pub fn to_message_of<'a>(
        &'a self,
        chat_session_id: &'a str,
        long: Option<&'a str>,
    ) -> sqlx::Result<Message<'a>> {
        let row = &self.0;
        let content = row.try_get_unchecked::<Option<&str>, _>(3)?;
        Ok(Message {
            id: row.try_get_unchecked(1)?,
            sender: row.try_get_unchecked(2)?,
            content: content.or(long).unwrap_or_default(),
            created_at: row.try_get_unchecked(4)?,
            is_ai: row.try_get_unchecked(5)?,
            chat_session_id,
        })
    }

    /// What clients call its session, of those that a search found.
    pub fn session_id(&self) -> sqlx::Result<&str> {
        self.0.try_get_unchecked(7)
    }

    /// How many the search found that it is of.
    pub fn found(&self) -> sqlx::Result<i64> {
        self.0.try_get_unchecked(8)
    }

    /// Which of the sessions that were asked for it is of, from 1.
    pub fn ord(&self) -> sqlx::Result<i64> {
        self.0.try_get_unchecked(6)
    }
}

/// A message with its session.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct SessionMessage {
    /// Its session, as the client names it; none if its row was deleted past all constraints.
    pub session_id: Option<String>,
    #[sqlx(flatten)]
    pub message: StoredMessage,
}

/// A change of a session that was decided.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct StoredChange {
    pub id: String,
    /// Its session, as clients name it.
    pub session_id: String,
    /// Whether it counts.
    pub is_applied: bool,
    status: Option<String>,
    ai_enabled: Option<bool>,
    assignee: Option<String>,
    is_release: bool,
    log_sequence: i64,
}

impl StoredChange {
    /// Its stream sequence.
    pub fn sequence(&self) -> u64 {
        self.log_sequence.cast_unsigned()
    }

    /// What it changed.
    pub fn to_change(&self) -> Change {
        let claim = self.assignee.clone().and_then(|agent| Agent::try_from(agent).ok());
        let assignment = match claim {
            Some(agent) => Some(Assignment::Claim(agent)),
            None => self.is_release.then_some(Assignment::Release),
        };
        let status = self.status.as_deref().and_then(Status::parse);
        Change { status, ai_enabled: self.ai_enabled, assignment }
    }
}

/// Rows, and how far their partition was stored when they were read.
#[derive(Debug)]
pub struct Snapshot<T> {
    /// The last stored record.
    pub stored: Position,
    pub rows: Vec<T>,
}

/// A row of a snapshot; one that has no rows is told by a row without a message.
pub struct SnapshotRow<T> {
    stored: Position,
    row: Option<T>,
}

impl<'r, T: FromRow<'r, PgRow>> FromRow<'r, PgRow> for SnapshotRow<T> {
    fn from_row(row: &'r PgRow) -> sqlx::Result<Self> {
        let sequence = row.try_get::<i64, _>("sequence")?.cast_unsigned();
        let stored = Position { epoch: Epoch(row.try_get("epoch")?), sequence };
        let has_message = row.try_get::<Option<String>, _>("id")?.is_some();
        Ok(Self { stored, row: has_message.then(|| T::from_row(row)).transpose()? })
    }
}

/// A row of one of several [`Snapshot`]s.
#[derive(FromRow)]
pub struct Numbered<T> {
    ord: i64,
    #[sqlx(flatten)]
    row: SnapshotRow<T>,
}

impl<T> Snapshot<T> {
    /// An error if the partition has no row: nothing was ever stored from this log.
    pub fn of(rows: Vec<SnapshotRow<T>>) -> sqlx::Result<Self> {
        let stored = rows.first().ok_or(sqlx::Error::RowNotFound)?.stored;
        Ok(Self { stored, rows: rows.into_iter().filter_map(|row| row.row).collect() })
    }

    /// The same of several at once, numbered from 1; `None` where there is no row of it.
    pub fn each(rows: Vec<Numbered<T>>, count: usize) -> sqlx::Result<Vec<Option<Self>>> {
        let mut all: Vec<Option<Self>> = (0..count).map(|_| None).collect();
        for Numbered { ord, row } in rows {
            let place = usize::try_from(ord - 1).ok().and_then(|index| all.get_mut(index));
            let place = place.ok_or_else(|| sqlx::Error::Protocol("nobody asked for it".into()))?;
            let found = place.get_or_insert(Self { stored: row.stored, rows: Vec::new() });
            found.rows.extend(row.row);
        }
        Ok(all)
    }
}

/// What was sent and may be stored.
pub struct Sought {
    /// Of a message; else empty.
    pub id: String,
    pub session: SessionId,
    /// What is kept of its session where that was erased.
    pub digest: SessionDigest,
    /// Where its record stands; of which life of the log may not be known.
    pub position: Position,
}

/// What Postgres has of it.
#[derive(Default)]
pub struct Found {
    /// Of the message that is stored under its id.
    pub words: Option<Words>,
    /// Whether its session is stored.
    pub is_open: bool,
    /// Whether its session was erased.
    pub is_erased: bool,
    /// Of a change that was decided, and of an AI's message that was refused.
    pub decided: Option<Fate>,
    /// Whether its record was set aside.
    pub is_dead_letter: bool,
}

/// What a message says, and where: by this it is told whether two messages with one id are the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Words {
    /// As clients name it; an adopter's may be any text.
    pub session: String,
    pub sender: String,
    pub content: String,
}

/// How far a partition is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offset {
    pub partition: Partition,
    /// The last stored record; 0 before the first.
    pub sequence: u64,
    /// The persister that stores it, if one does.
    pub owner: Option<String>,
}

/// A session as inboxes list it.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct ListedSession {
    pub id: String,
    /// What clients call it.
    pub session_id: String,
    /// When it was opened.
    pub created_at: Timestamp,
    pub last_sender: Option<String>,
    /// The beginning of what was said last: one character more than is shown.
    pub last_content: Option<String>,
    /// When that was said.
    pub last_at: Option<Timestamp>,
    /// `open` or `closed`.
    pub status: String,
    /// The agent who has claimed it.
    pub assignee: Option<String>,
    pub ai_enabled: bool,
    /// What the visitor said since an agent spoke or read, at most 99.
    pub unread: i64,
}

/// Up to which message each side has read a session.
#[derive(Debug, Default, Serialize, sqlx::FromRow)]
pub struct ReadUpTo {
    /// By the visitor, if that is still stored.
    pub user: Option<String>,
    /// By the agents.
    pub admin: Option<String>,
}

impl ListedSession {
    /// For the page that follows.
    pub fn cursor(&self) -> Cursor {
        Cursor { created_at: self.created_at, id: self.id.clone() }
    }
}

/// Where a page of sessions ended; opaque text for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// When its last session was opened.
    pub created_at: Timestamp,
    /// The key of that session.
    pub id: String,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let infinite = INFINITE.iter().find(|(time, _)| *time == self.created_at);
        match (infinite, self.created_at.unix_millis()) {
            (Some((_, name)), _) => write!(f, "{name}_{}", self.id),
            (None, millis) => write!(f, "{}_{}", millis.unwrap_or_default(), self.id),
        }
    }
}

impl From<&StoredSession> for Cursor {
    /// For the page that follows.
    fn from(session: &StoredSession) -> Self {
        Self { created_at: session.created_at, id: session.id.clone() }
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const INVALID: &str = "cursor must be a nextCursor that was given before";
        let (time, id) = text.split_once('_').ok_or(INVALID)?;
        let finite = || time.parse().ok().and_then(Timestamp::from_unix_millis);
        let infinite = INFINITE.iter().find(|(_, name)| *name == time);
        let created_at = infinite.map(|(time, _)| *time).or_else(finite).ok_or(INVALID)?;
        // Postgres refuses U+0000 in a text.
        if id.contains('\0') {
            return Err(INVALID);
        }
        Ok(Self { created_at, id: id.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_cursor_round_trips_and_nothing_else_is_one() {
        let cursor = Cursor {
            created_at: Timestamp::truncate(datetime!(2024-12-13 09:41:05.999 UTC)),
            id: "cm4_x".into(),
        };
        assert_eq!(cursor.to_string(), "1734082865999_cm4_x");
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for time in ["infinity", "-infinity", "9224318015999999", "-210866803200000"] {
            let text = format!("{time}_a_b");
            assert_eq!(text.parse::<Cursor>().map(|cursor| cursor.to_string()), Ok(text));
        }
        for text in ["", "x", "1734082865999", "x_y", "1_\0", "9224318016000000_x", "-1e3_x"] {
            assert!(text.parse::<Cursor>().is_err(), "{text:?}");
        }
    }
}
