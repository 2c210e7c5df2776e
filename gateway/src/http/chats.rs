//! `GET /api/chats`, `GET /api/chats/:sessionId` and its export: whole, or by the page ([`crate::http::pagination`]).
//!
//! Without a limit they answer everything, as the seed does, but page by page: the memory does not
//! grow with the answer, and no connection to Postgres is held between pages. A failure midway
//! aborts the HTTP connection; it never closes the array, which would look complete. An export is all that
//! was stored when it began: if it is erased meanwhile, that counts as a failure too.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use shared::ids::SessionId;
use shared::message::SessionHead;
use shared::timestamp::Timestamp;
use tokio::task::JoinSet;

use crate::app::Gateway;
use crate::db::history::{Cursor, History, MessageOf, StoredMessage, StoredSession};
use crate::error::ClientError;
use crate::http::pagination::{self, Parameters};
use crate::log::session_lookup::Existence;
use crate::problem::Problem;

/// As Express writes it.
pub const JSON: &str = "application/json; charset=utf-8";

/// Ends what [`begin_session`] begins.
const SESSION_END: &[u8] = b"]}";

/// Sessions read at a time.
const SESSIONS_PAGE: u16 = 200;
/// Most messages read at a time.
const MESSAGES_PAGE: u16 = 1_000;
/// Messages read at first, when nobody knows how long they are.
const FIRST_PAGE: u16 = 100;
/// Most bytes of JSON at a time, unless one message has more: what a client costs that does not read.
const CHUNK_BYTES: usize = 256 * 1024;
/// What a message has in JSON beside its content, at most.
const AROUND_CONTENT_BYTES: usize = 256;
/// Messages written before everybody else has a turn.
const WRITTEN_AT_A_TIME: usize = 100;
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
        let backwards = after.is_none() && before.is_some();
        return page(&gateway.history, &session, start..end, limit, (backwards, before)).await;
    }
    OneChat::new(&gateway.history, session, start..end).answer().await
}

/// What ends an answer before its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// Postgres does not answer.
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    /// Something that was there when an export began is not there any more.
    #[error("the session was erased meanwhile")]
    Erased,
}

impl From<Broken> for Problem {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Postgres(error) => error.into(),
            Broken::Erased => ClientError::session_not_found().into(),
        }
    }
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
    begin_session(&mut chat.opening, &extent.session);
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

/// One page: of the messages with these `seq`s the first, or the last.
async fn page(
    history: &History,
    session: &str,
    seqs: Range<i64>,
    limit: u16,
    (backwards, before): (bool, Option<String>),
) -> Result<Response, Problem> {
    let mut messages = if session.contains('\0') || seqs.is_empty() {
        Vec::new()
    } else {
        let _turn = history.turn().await?;
        // One more tells whether there is a next page.
        if backwards {
            history.last_messages(session, seqs, limit + 1).await?
        } else {
            history.messages(session, seqs, limit + 1).await?
        }
    };
    let more = messages.len() > usize::from(limit);
    if more {
        messages.remove(if backwards { 0 } else { usize::from(limit) });
    }
    let last = if backwards { messages.first() } else { messages.last() };
    let link = last.filter(|_| more).map(|last| {
        let limit = limit.to_string();
        let mut query = vec![("limit", limit.as_str())];
        match before.as_deref() {
            _ if backwards => query.push(("before", &last.id)),
            before => {
                query.push(("after", &last.id));
                query.extend(before.map(|before| ("before", before)));
            }
        }
        pagination::next(&format!("/api/chats/{}", pagination::encoded(session)), &query)
    });
    let seqs = messages.first().zip(messages.last()).map_or(0..0, |(a, z)| a.seq..z.seq + 1);
    if fitting(messages.iter(), CHUNK_BYTES) < messages.len() {
        // Too much to wait for a client as a whole.
        drop(messages);
        let answer = OneChat::new(history, session.to_owned(), seqs).answer().await?;
        return Ok((link, answer).into_response());
    }
    let mut json = b"[".to_vec();
    let mut first = true;
    for message in &messages {
        separate(&mut json, &mut first);
        write(&mut json, &message.to_message());
    }
    json.push(b']');
    Ok(([(header::CONTENT_TYPE, JSON)], link, json).into_response())
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
fn streamed<S, F, Next>(first: Chunk, state: S, next: F) -> Body
where
    S: Send + 'static,
    F: Fn(S) -> Next + Send + 'static,
    Next: Future<Output = Result<(Chunk, S), Broken>> + Send + 'static,
{
    match first {
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
    }
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

/// How many messages to read at a time, so that they make a chunk.
#[derive(Clone, Copy)]
struct PageSize {
    asked: u16,
}

impl PageSize {
    fn first() -> Self {
        Self { asked: FIRST_PAGE }
    }

    /// Leaves of a page what fits into so much room; `true` if no others follow. As many as fitted are asked for next
    /// time, and some more.
    fn fit<T>(
        &mut self,
        page: &mut Vec<T>,
        room: usize,
        message: impl Fn(&T) -> &StoredMessage,
    ) -> bool {
        let kept = fitting(page.iter().map(message), room);
        let is_last = page.len() < usize::from(self.asked) && kept == page.len();
        let next =
            if kept < page.len() { kept + kept / 4 + 1 } else { 4 * usize::from(self.asked) };
        page.truncate(kept);
        self.asked = u16::try_from(next).unwrap_or(MESSAGES_PAGE).min(MESSAGES_PAGE);
        is_last
    }
}

/// How many of these messages fit into so many bytes; at least one, if there is one.
fn fitting<'a>(messages: impl Iterator<Item = &'a StoredMessage>, room: usize) -> usize {
    let mut bytes = 0;
    let mut fitting = 0;
    for message in messages {
        bytes += message.json_bytes() + AROUND_CONTENT_BYTES;
        if bytes > room && fitting > 0 {
            break;
        }
        fitting += 1;
    }
    fitting
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
            let read = i64::try_from(page.len()).unwrap_or(i64::MAX);
            self.missing = self.missing.map(|missing| missing - read);
            for message in &page {
                separate(&mut json, &mut self.first);
                write(&mut json, &message.to_message());
            }
            match page.last() {
                Some(last) if !is_last => self.start = last.seq + 1,
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
    async fn page(&mut self, room: usize) -> Result<(Vec<StoredMessage>, bool), sqlx::Error> {
        // Postgres refuses U+0000 in a text: no session can have such an id.
        if self.session.contains('\0') {
            return Ok((Vec::new(), true));
        }
        let _turn = self.history.turn().await?;
        let seqs = self.start..self.end;
        let mut page = self.history.messages(&self.session, seqs, self.size.asked).await?;
        let is_last = self.size.fit(&mut page, room, |message| message);
        Ok((page, is_last))
    }
}

/// A page of messages.
struct Page {
    /// The sessions that it begins with, unless it goes on with those of the page before.
    sessions: Option<Vec<StoredSession>>,
    messages: Vec<MessageOf>,
    /// Whether these sessions have no more messages.
    is_last: bool,
    /// Whether nothing follows at all.
    ends: bool,
}

/// Reads sessions with their messages.
struct Pages {
    history: History,
    /// Behind which session the next page of sessions begins; none before the first.
    behind: Option<Cursor>,
    /// The only page of sessions, before it is read from.
    only: Option<Vec<StoredSession>>,
    /// Whether no other sessions follow.
    is_last: bool,
    /// Keys of the sessions at hand, as they are asked for.
    ids: Vec<String>,
    /// Behind which message the next page begins: the number of its session, from 1, and its `seq`.
    from: (i64, i64),
    size: PageSize,
}

impl Pages {
    async fn next(&mut self) -> sqlx::Result<Option<Page>> {
        let _turn = self.history.turn().await?;
        let sessions = if self.ids.is_empty() { Some(self.sessions().await?) } else { None };
        if self.ids.is_empty() {
            return Ok(None);
        }
        let asked = self.size.asked;
        let mut messages = self.history.messages_of(&self.ids, self.from, asked).await?;
        let is_last = self.size.fit(&mut messages, CHUNK_BYTES, |row| &row.message);
        if let Some(last) = messages.last() {
            self.from = (last.ord, last.message.seq);
        }
        if is_last {
            self.ids.clear();
        }
        Ok(Some(Page { sessions, messages, is_last, ends: is_last && self.is_last }))
    }

    /// The next page of sessions; empty if there is none.
    async fn sessions(&mut self) -> sqlx::Result<Vec<StoredSession>> {
        let sessions = match self.only.take() {
            Some(only) => only,
            None if self.is_last => Vec::new(),
            None => self.history.sessions(self.behind.as_ref(), SESSIONS_PAGE).await?,
        };
        self.is_last |= sessions.len() < usize::from(SESSIONS_PAGE);
        self.behind = sessions.last().map(StoredSession::cursor);
        self.ids = sessions.iter().map(|session| session.id.clone()).collect();
        self.from = (1, -1);
        Ok(sessions)
    }
}

/// Writes sessions with their messages. While a page is written Postgres looks for the next one.
struct AllChats {
    /// Those that nobody reads from at present.
    pages: Option<Pages>,
    reading: JoinSet<(Pages, sqlx::Result<Option<Page>>)>,
    /// Sessions of the present page.
    sessions: Vec<StoredSession>,
    /// Sessions of the page whose JSON was begun.
    begun: usize,
    first_session: bool,
    first_message: bool,
    started: bool,
}

impl AllChats {
    fn new(history: History, behind: Option<Cursor>) -> Self {
        let (only, is_last, ids, from) = (None, false, Vec::new(), (1, -1));
        Self {
            pages: Some(Pages {
                history,
                behind,
                only,
                is_last,
                ids,
                from,
                size: PageSize::first(),
            }),
            reading: JoinSet::new(),
            sessions: Vec::new(),
            begun: 0,
            first_session: true,
            first_message: true,
            started: false,
        }
    }

    /// Writes one page of so many sessions; gives its last one if others are behind it.
    async fn only(&mut self, limit: u16) -> Result<Option<Cursor>, sqlx::Error> {
        let Some(pages) = &mut self.pages else { return Ok(None) };
        // One more tells whether there is a next page.
        let mut sessions = pages.history.sessions(pages.behind.as_ref(), limit + 1).await?;
        let more = sessions.len() > usize::from(limit);
        sessions.truncate(limit.into());
        let next = sessions.last().map(StoredSession::cursor).filter(|_| more);
        (pages.only, pages.is_last) = (Some(sessions), true);
        Ok(next)
    }

    async fn next_chunk(&mut self) -> Result<Chunk, sqlx::Error> {
        let mut json =
            if std::mem::replace(&mut self.started, true) { Vec::new() } else { b"[".to_vec() };
        let Some(page) = self.next_page().await? else {
            json.push(b']');
            return Ok(Chunk::Last(json));
        };
        if let Some(sessions) = page.sessions {
            (self.sessions, self.begun) = (sessions, 0);
        }
        for rows in page.messages.chunks(WRITTEN_AT_A_TIME) {
            // Meanwhile the next page is asked for, and everybody else has a turn.
            tokio::task::yield_now().await;
            for row in rows {
                self.begin_sessions(&mut json, usize::try_from(row.ord).unwrap_or_default());
                separate(&mut json, &mut self.first_message);
                write(&mut json, &row.message.to_message());
            }
        }
        if page.is_last {
            self.begin_sessions(&mut json, self.sessions.len());
            end_session(&mut json);
        }
        if page.ends {
            json.push(b']');
            return Ok(Chunk::Last(json));
        }
        Ok(Chunk::More(json))
    }

    /// The next page; reading the one behind it begins.
    async fn next_page(&mut self) -> sqlx::Result<Option<Page>> {
        if let Some(pages) = self.pages.take() {
            self.read(pages);
        }
        let Some(read) = self.reading.join_next().await else { return Ok(None) };
        let (pages, page) = read.map_err(|_| sqlx::Error::WorkerCrashed)?;
        let page = page?;
        if page.as_ref().is_some_and(|page| !page.ends) {
            self.read(pages);
        }
        Ok(page)
    }

    fn read(&mut self, mut pages: Pages) {
        self.reading.spawn(async move {
            let page = pages.next().await;
            (pages, page)
        });
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
    json.extend_from_slice(SESSION_END);
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
