//! `GET /api/chats`, `GET /api/chats/:sessionId` and its export: whole, or by the page ([`crate::http::pagination`]).
//!
//! Without a limit they answer everything, as the seed does, but page by page: the memory does not
//! grow with the answer, and no connection to Postgres is held between pages. A failure midway
//! aborts the HTTP connection; it never closes the array, which would look complete. An export is all that
//! was stored when it began: if it is erased meanwhile, that counts as a failure too.

use std::ops::Range;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use shared::ids::SessionId;

use crate::app::Gateway;
use crate::db::history::History;
use crate::db::rows::{CHUNK_BYTES, HistoryRow};
use crate::error::ClientError;
use crate::http::all_chats::{AllChats, SESSIONS_PAGE};
use crate::http::json_stream::{
    Broken, Chunk, JSON, MESSAGES_PAGE, PageSize, SESSION_END, begin_session, long_content,
    separate, streamed, write_message,
};
use crate::http::pagination::{self, Parameters};
use crate::log::session_lookup::Existence;
use crate::problem::Problem;

/// Most sessions that `limit` may ask for.
pub const SESSIONS_MAX: u16 = SESSIONS_PAGE;
/// Most messages that `limit` may ask for.
pub const MESSAGES_MAX: u16 = MESSAGES_PAGE;

/// Sessions with their messages, newest first.
pub async fn list(State(gateway): State<Arc<Gateway>>, uri: Uri) -> Result<Response, Problem> {
    let parameters = Parameters::of(&uri);
    let limit = parameters.limit(SESSIONS_MAX)?;
    let mut answer = AllChats::new(gateway.history.clone(), parameters.cursor()?);
    let next = match limit {
        Some(limit) => answer.only(limit).await?,
        None => None,
    };
    let link = next.zip(limit).map(|(cursor, limit)| {
        pagination::next(
            "/api/chats",
            &[("limit", &limit.to_string()), ("cursor", &cursor.to_string())],
        )
    });
    // The first page is read before the status is sent.
    let first = answer.next_chunk().await?;
    let body = streamed(first, answer, |mut answer| async move {
        let chunk = answer.next_chunk().await?;
        Ok((chunk, answer))
    });
    Ok(([(header::CONTENT_TYPE, JSON)], link, body).into_response())
}

/// The messages of a session, oldest first.
pub async fn messages(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let session = session_of(path, &uri)?;
    let parameters = Parameters::of(&uri);
    let limit = parameters.limit(MESSAGES_MAX)?;
    let (after, before) = (parameters.text("after")?, parameters.text("before")?);
    let seq = |name, id| seq_of(&gateway.history, &session, name, id);
    let start = seq("after", after.as_deref()).await?.map_or(0, |seq| seq + 1);
    let end = seq("before", before.as_deref()).await?.unwrap_or(i64::MAX);
    if let Some(limit) = limit {
        let direction = match before {
            Some(_) if after.is_none() => Direction::Backward,
            before => Direction::Forward { before },
        };
        return page(&gateway.history, &session, start..end, limit, &direction).await;
    }
    OneChat::new(&gateway.history, session, start..end).answer().await
}

/// A session with its messages: what is stored of a person.
pub async fn export(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let session_id = session_of(path, &uri)?;
    // An erasure takes more than one statement where much was said: what is left in between is no export.
    if let Ok(session) = SessionId::parse(&session_id)
        && gateway.lookup.check(session).await == Existence::Absent
    {
        return Err(ClientError::session_not_found().into());
    }
    let extent = gateway.history.extent(&session_id).await?;
    let extent = extent.ok_or_else(ClientError::session_not_found)?;
    let mut chat = OneChat::new(&gateway.history, session_id, 0..extent.last + 1);
    chat.opening.clear();
    let head = extent.to_head().map_err(|error| sqlx::Error::Decode(error.into()))?;
    begin_session(&mut chat.opening, &head);
    chat.closing = SESSION_END;
    chat.missing = Some(extent.count);
    chat.answer().await
}

/// The session's id as the path gives it.
pub fn session_of(path: Result<Path<String>, PathRejection>, uri: &Uri) -> Result<String, Problem> {
    match path {
        Ok(Path(session)) if is_decodable(uri.path()) => Ok(session),
        _ => Err(Problem::new(StatusCode::BAD_REQUEST, "sessionId: cannot be decoded")),
    }
}

/// Where the message stands that a parameter names.
async fn seq_of(
    history: &History,
    session: &str,
    name: &str,
    id: Option<&str>,
) -> Result<Option<i64>, Problem> {
    let Some(id) = id else { return Ok(None) };
    // Postgres refuses U+0000 in a text: no session and no message can have such an id.
    let possible = !session.contains('\0') && !id.contains('\0');
    let seq = if possible { history.seq_of(session, id).await? } else { None };
    // An unknown session answers as one without this message.
    seq.map(Some).ok_or_else(|| pagination::wrong(name, "the session has no message with this id"))
}

/// Which way pages follow each other.
enum Direction {
    /// To what was said later, up to a message if one is named.
    Forward { before: Option<String> },
    /// To what was said before.
    Backward,
}

/// One page: of the messages with these `seq`s the first, or the last.
async fn page(
    history: &History,
    session: &str,
    seqs: Range<i64>,
    limit: u16,
    direction: &Direction,
) -> Result<Response, Problem> {
    // One more tells whether there is a next page.
    let mut messages = read_page(history, session, seqs, limit + 1, direction).await?;
    let more = messages.len() > usize::from(limit);
    let last = match direction {
        Direction::Forward { .. } => {
            messages.truncate(limit.into());
            messages.last()
        }
        Direction::Backward => {
            messages.drain(..usize::from(more));
            messages.first()
        }
    };
    let link = match last {
        Some(last) if more => Some(link(session, limit, direction, last.id()?)),
        _ => None,
    };
    if is_long(&messages)? {
        let seqs = match (messages.first(), messages.last()) {
            (Some(first), Some(last)) => first.seq()?..last.seq()? + 1,
            _ => 0..0,
        };
        // Too much to wait for a client as a whole.
        drop(messages);
        let answer = OneChat::new(history, session.to_owned(), seqs).answer().await?;
        return Ok((link, answer).into_response());
    }
    let mut json = b"[".to_vec();
    let mut first = true;
    for message in &messages {
        separate(&mut json, &mut first);
        write_message(&mut json, &message.to_message(None)?);
    }
    json.push(b']');
    Ok(([(header::CONTENT_TYPE, JSON)], link, json).into_response())
}

/// Whether they are more than is read for a client at a time.
fn is_long(messages: &[HistoryRow]) -> sqlx::Result<bool> {
    let mut bytes = 0;
    for message in messages {
        let Some(more) = message.bytes()? else { return Ok(true) };
        bytes += more;
    }
    Ok(bytes > CHUNK_BYTES)
}

async fn read_page(
    history: &History,
    session: &str,
    seqs: Range<i64>,
    limit: u16,
    direction: &Direction,
) -> sqlx::Result<Vec<HistoryRow>> {
    if session.contains('\0') || seqs.is_empty() {
        return Ok(Vec::new());
    }
    let _permit = history.read_permit().await?;
    match direction {
        Direction::Forward { .. } => history.messages(session, seqs, limit).await,
        Direction::Backward => history.last_messages(session, seqs, limit).await,
    }
}

/// Names the page behind this message.
fn link(session: &str, limit: u16, direction: &Direction, last: &str) -> [(HeaderName, String); 1] {
    let limit = limit.to_string();
    let mut query = vec![("limit", limit.as_str())];
    match direction {
        Direction::Forward { before } => {
            query.push(("after", last));
            query.extend(before.as_deref().map(|before| ("before", before)));
        }
        Direction::Backward => query.push(("before", last)),
    }
    pagination::next(&format!("/api/chats/{}", pagination::encoded(session)), &query)
}

/// Whether two hexadecimal digits follow every `%`, as Express demands; the router takes anything.
fn is_decodable(path: &str) -> bool {
    let is_escape = |part: &str| {
        part.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    };
    path.split('%').skip(1).all(is_escape)
}

/// Writes one session's messages.
struct OneChat {
    history: History,
    session: String,
    /// What stands before the first message and was not written yet.
    opening: Vec<u8>,
    /// What stands behind the last one.
    closing: &'static [u8],
    /// The `seq` from which on the next page begins.
    start: i64,
    /// The `seq` before which the last page ends.
    end: i64,
    first: bool,
    /// Messages that the answer must still have, where that is known.
    missing: Option<i64>,
    size: PageSize,
}

impl OneChat {
    /// The messages with these `seq`s as an array.
    fn new(history: &History, session: String, seqs: Range<i64>) -> Self {
        Self {
            history: history.clone(),
            session,
            opening: b"[".to_vec(),
            closing: b"]",
            start: seqs.start,
            end: seqs.end,
            first: true,
            missing: None,
            size: PageSize::first(),
        }
    }

    async fn answer(mut self) -> Result<Response, Problem> {
        // The first page is read before the status is sent.
        let first = self.next_chunk().await?;
        let body = streamed(first, self, |mut chat| async move {
            let chunk = chat.next_chunk().await?;
            Ok((chunk, chat))
        });
        Ok(([(header::CONTENT_TYPE, JSON)], body).into_response())
    }

    /// Reads until there is enough for a chunk: what fits into one is an answer as a whole.
    async fn next_chunk(&mut self) -> Result<Chunk, Broken> {
        let mut json = std::mem::take(&mut self.opening);
        while json.len() < CHUNK_BYTES / 2 {
            let (page, is_last) = self.page(CHUNK_BYTES - json.len()).await?;
            let long = long_content(&self.history, &page).await?;
            let read = i64::try_from(page.len()).unwrap_or(i64::MAX);
            self.missing = self.missing.map(|missing| missing - read);
            for message in &page {
                separate(&mut json, &mut self.first);
                write_message(&mut json, &message.to_message(long.as_deref())?);
            }
            match page.last() {
                Some(last) if !is_last => self.start = last.seq()? + 1,
                _ if self.missing.is_some_and(|missing| missing > 0) => return Err(Broken::Erased),
                _ => {
                    json.extend_from_slice(self.closing);
                    return Ok(Chunk::Last(json));
                }
            }
        }
        Ok(Chunk::More(json))
    }

    /// The next messages, and whether they are the last.
    async fn page(&mut self, room: usize) -> sqlx::Result<(Vec<HistoryRow>, bool)> {
        // Postgres refuses U+0000 in a text: no session can have such an id.
        if self.session.contains('\0') {
            return Ok((Vec::new(), true));
        }
        let _permit = self.history.read_permit().await?;
        let seqs = self.start..self.end;
        let asked = self.size.asked;
        let mut page = self.history.messages(&self.session, seqs, asked).await?;
        let is_last = self.size.fit(&mut page, asked, room)?;
        Ok((page, is_last))
    }
}
