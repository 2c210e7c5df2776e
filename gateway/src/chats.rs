//! `GET /api/chats` and `GET /api/chats/:sessionId`.
//!
//! Without a limit they answer everything, as the seed does, but page by page: the memory does not
//! grow with the answer, and no connection to Postgres is held between pages. A failure midway
//! aborts the HTTP connection; it never closes the array, which would look complete.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use shared::timestamp::Timestamp;

use crate::Gateway;
use crate::history::{History, StoredMessage, StoredSession};
use crate::problem::Problem;

/// As Express writes it.
pub const JSON: &str = "application/json; charset=utf-8";

/// Sessions read at a time.
const SESSIONS_PAGE: u16 = 200;
/// Messages read at a time; with the longest content a page takes 32 MB, usually 300 KB.
const MESSAGES_PAGE: u16 = 1_000;

/// A session without its messages, which follow it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionHead<'a> {
    id: &'a str,
    session_id: &'a str,
    ip: Option<&'a str>,
    user_agent: Option<&'a str>,
    created_at: Timestamp,
}

/// All sessions with their messages, newest first.
pub async fn list(State(gateway): State<Arc<Gateway>>) -> Result<Response, Problem> {
    let mut answer = AllChats::new(gateway.history.clone());
    // The first page is read before the status is sent.
    let first = answer.next_chunk().await?;
    Ok(streamed(first, answer, |mut answer| async move {
        let chunk = answer.next_chunk().await?;
        Ok((chunk, answer))
    }))
}

/// The messages of a session, oldest first.
pub async fn messages(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let (Ok(Path(session)), true) = (path, is_decodable(uri.path())) else {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "sessionId: cannot be decoded"));
    };
    let mut answer =
        OneChat { history: gateway.history.clone(), session, seq: Some(-1), first: true };
    let first = answer.next_chunk().await?;
    Ok(streamed(first, answer, |mut answer| async move {
        let chunk = answer.next_chunk().await?;
        Ok((chunk, answer))
    }))
}

/// Whether two hexadecimal digits follow every `%`, as Express demands; the router takes anything.
fn is_decodable(path: &str) -> bool {
    let is_escape = |part: &str| {
        part.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    };
    path.split('%').skip(1).all(is_escape)
}

/// A part of an answer; the last one ends it.
enum Chunk {
    More(Vec<u8>),
    Last(Vec<u8>),
}

/// An answer of one chunk as a whole, a longer one as a stream.
fn streamed<S, F, Next>(first: Chunk, state: S, next: F) -> Response
where
    S: Send + 'static,
    F: Fn(S) -> Next + Send + 'static,
    Next: Future<Output = Result<(Chunk, S), sqlx::Error>> + Send + 'static,
{
    let body = match first {
        Chunk::Last(bytes) => Body::from(bytes),
        Chunk::More(bytes) => {
            let first = stream::iter([Ok(Bytes::from(bytes))]);
            let rest = stream::try_unfold(Some((state, next)), |state| async move {
                let Some((state, next)) = state else { return Ok(None) };
                match next(state).await {
                    Ok((Chunk::More(bytes), state)) => {
                        Ok(Some((Bytes::from(bytes), Some((state, next)))))
                    }
                    Ok((Chunk::Last(bytes), _)) => Ok(Some((Bytes::from(bytes), None))),
                    Err(error) => {
                        tracing::warn!(%error, "a history answer is aborted");
                        Err(io::Error::other(error))
                    }
                }
            });
            Body::from_stream(futures_util::StreamExt::chain(first, rest))
        }
    };
    ([(header::CONTENT_TYPE, JSON)], body).into_response()
}

/// Writes one session's messages.
struct OneChat {
    history: History,
    session: String,
    /// After which message the next page begins; none once the last was read.
    seq: Option<i64>,
    first: bool,
}

impl OneChat {
    async fn next_chunk(&mut self) -> Result<Chunk, sqlx::Error> {
        let mut json = if self.first { b"[".to_vec() } else { Vec::new() };
        let page = self.page().await?;
        for message in &page {
            separate(&mut json, &mut self.first);
            write(&mut json, &message.to_message());
        }
        match page.last() {
            Some(last) if page.len() == usize::from(MESSAGES_PAGE) => {
                self.seq = Some(last.seq);
                Ok(Chunk::More(json))
            }
            _ => {
                json.push(b']');
                Ok(Chunk::Last(json))
            }
        }
    }

    async fn page(&self) -> Result<Vec<StoredMessage>, sqlx::Error> {
        match self.seq {
            // Postgres refuses U+0000 in a text: no session can have such an id.
            Some(seq) if !self.session.contains('\0') => {
                self.history.messages(&self.session, seq, MESSAGES_PAGE).await
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// Writes every session with its messages.
struct AllChats {
    history: History,
    /// Sessions of the present page.
    sessions: Vec<StoredSession>,
    /// Their keys, as they are asked for.
    ids: Vec<String>,
    /// Sessions of the page whose JSON was begun.
    begun: usize,
    /// After which message of the session begun last the next messages come.
    seq: i64,
    first_session: bool,
    first_message: bool,
    started: bool,
}

impl AllChats {
    fn new(history: History) -> Self {
        Self {
            history,
            sessions: Vec::new(),
            ids: Vec::new(),
            begun: 0,
            seq: -1,
            first_session: true,
            first_message: true,
            started: false,
        }
    }

    async fn next_chunk(&mut self) -> Result<Chunk, sqlx::Error> {
        let mut json =
            if std::mem::replace(&mut self.started, true) { Vec::new() } else { b"[".to_vec() };
        if self.ids.is_empty() && !self.next_sessions().await? {
            json.push(b']');
            return Ok(Chunk::Last(json));
        }
        let from = (i64::try_from(self.begun.max(1)).unwrap_or(i64::MAX), self.seq);
        let page = self.history.messages_of(&self.ids, from, MESSAGES_PAGE).await?;
        for row in &page {
            self.begin_sessions(&mut json, usize::try_from(row.ord).unwrap_or_default());
            separate(&mut json, &mut self.first_message);
            write(&mut json, &row.message.to_message());
            self.seq = row.message.seq;
        }
        if page.len() < usize::from(MESSAGES_PAGE) {
            self.begin_sessions(&mut json, self.sessions.len());
            end_session(&mut json);
            self.ids.clear();
        }
        Ok(Chunk::More(json))
    }

    /// Reads the next page of sessions; `false` if there is none.
    async fn next_sessions(&mut self) -> Result<bool, sqlx::Error> {
        self.sessions = self.history.sessions(self.sessions.last(), SESSIONS_PAGE).await?;
        self.ids = self.sessions.iter().map(|session| session.id.clone()).collect();
        (self.begun, self.seq) = (0, -1);
        Ok(!self.sessions.is_empty())
    }

    /// Begins the sessions of the page up to this one, from 1, and ends those before it.
    fn begin_sessions(&mut self, json: &mut Vec<u8>, up_to: usize) {
        while self.begun < up_to {
            if self.begun > 0 {
                end_session(json);
            }
            let session = &self.sessions[self.begun];
            separate(json, &mut self.first_session);
            begin_session(json, session);
            self.begun += 1;
            self.seq = -1;
            self.first_message = true;
        }
    }
}

fn begin_session(json: &mut Vec<u8>, session: &StoredSession) {
    let head = SessionHead {
        id: &session.id,
        session_id: &session.session_id,
        ip: session.ip.as_deref(),
        user_agent: session.user_agent.as_deref(),
        created_at: Timestamp::from_column(session.created_at),
    };
    write(json, &head);
    // The head is an object: its brace gives way to the messages.
    json.pop();
    json.extend_from_slice(br#","messages":["#);
}

fn end_session(json: &mut Vec<u8>) {
    json.extend_from_slice(b"]}");
}

fn separate(json: &mut Vec<u8>, first: &mut bool) {
    if !std::mem::replace(first, false) {
        json.push(b',');
    }
}

/// Writing these types to memory cannot fail: they have no maps with odd keys.
fn write<T: Serialize>(json: &mut Vec<u8>, value: &T) {
    if let Err(error) = serde_json::to_writer(json, value) {
        tracing::error!(%error, "a row cannot be written as JSON");
    }
}
