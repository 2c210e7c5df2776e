//! The events of an agent's inbox.

use std::borrow::Cow;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::ids::SessionId;
use shared::message::Sender;
use shared::timestamp::Timestamp;

use crate::access::rights::Action;
use crate::db::rows::{Cursor, StoredMessage};
use crate::emitted::Emitted;
use crate::error::{ClientError, ErrorCode};
use crate::fields::{Field, Fields, Kind};
use crate::inbox::lists::{NEWEST, NoList, Wanted};
use crate::log::session_lookup::Existence;
use crate::socket::ack::Ack;
use crate::socket::connection::Connection;
use crate::socket::payload::RawEvent;

/// Most messages of `messages-history`; older ones are asked for with `before`.
const MESSAGES_MAX: u16 = 500;
/// Most sessions of a page.
const PAGE_MAX: u16 = 500;

/// What is asked for in `get-all-sessions`.
#[derive(Deserialize)]
struct Page {
    limit: Option<u16>,
    cursor: Option<String>,
}

impl Fields for Page {
    const FIELDS: &'static [Field] =
        &[Field::optional("limit", Kind::Number(PAGE_MAX)), Field::optional("cursor", Kind::Text)];
}

/// `admin-connect`.
#[derive(Deserialize)]
struct Connect {
    deltas: Option<bool>,
}

impl Fields for Connect {
    const FIELDS: &'static [Field] = &[Field::optional("deltas", Kind::Flag)];
}

/// What most of these events name.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    session_id: String,
}

impl Fields for Named {
    const FIELDS: &'static [Field] = &[Field::required("sessionId", Kind::Text)];
}

/// `get-messages`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    session_id: String,
    before: Option<String>,
}

impl Fields for Read {
    const FIELDS: &'static [Field] =
        &[Field::required("sessionId", Kind::Text), Field::optional("before", Kind::Text)];
}

/// The session that the socket is in, or not any more.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JoinedSession {
    session_id: SessionId,
}

/// A message of `messages-history`: exactly these keys, in this order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HistoryMessage<'a> {
    id: &'a str,
    message: &'a str,
    is_admin: bool,
    #[serde(rename = "isAI")]
    is_ai: bool,
    sender: &'a str,
    timestamp: Timestamp,
}

/// The ack of a list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    sessions: &'a RawValue,
    next_cursor: Option<String>,
}

/// The ack of `get-session`.
#[derive(Serialize)]
struct Shown<'a> {
    session: &'a RawValue,
}

/// The ack of `get-messages`.
#[derive(Serialize)]
struct Messages<'a> {
    messages: &'a [HistoryMessage<'a>],
}

/// An event of an inbox that waits for its turn.
struct Waiting {
    connection: Arc<Connection>,
    ack: Ack,
    task: Task,
}

enum Task {
    List(Wanted),
    Messages { session: SessionId, before: Option<String> },
    Join { session: SessionId, new: bool },
    Session(SessionId),
}

/// `admin-connect`: this socket becomes an inbox, at once, and is given the active sessions. With `deltas` it is told
/// of each session that changes from there on, and is given no more lists.
pub fn on_connect(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    if let Err(error) = connection.caller.may(Action::Inbox) {
        return ack.refuse(&error);
    }
    // It took no payload once: whatever else comes is passed over.
    let wanted = event.object::<Connect>().ok().flatten();
    let deltas = wanted.and_then(|wanted| wanted.deltas).unwrap_or_default();
    connection.become_inbox(&ack.socket, deltas);
    push(connection, event, ack, Task::List(Wanted::Active));
}

/// `get-sessions`: gives the active sessions.
pub fn on_get_sessions(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    match connection.caller.may(Action::Inbox) {
        Ok(()) => push(connection, event, ack, Task::List(Wanted::Active)),
        Err(error) => ack.refuse(&error),
    }
}

/// `get-all-sessions`: gives the active and the newest sessions, or a page of all.
pub fn on_get_all_sessions(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    let wanted = optional(connection, event, Action::Inbox).and_then(|page| match page {
        None | Some(Page { limit: None, cursor: None }) => Ok(Wanted::All),
        Some(Page { limit, cursor }) => Ok(Wanted::Page {
            after: cursor.map(|text| text.parse()).transpose().map_err(invalid)?,
            limit: limit.map_or(Ok(NEWEST), check_limit)?,
        }),
    });
    match wanted {
        Ok(wanted) => push(connection, event, ack, Task::List(wanted)),
        Err(error) => ack.refuse(&error),
    }
}

/// `get-messages`: gives the newest messages of a session, or those before one of them.
pub fn on_get_messages(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    let read = optional::<Read>(connection, event, Action::ReadSession).and_then(named);
    match read.and_then(|read| Ok((parse(&read.session_id)?, read.before))) {
        Ok((session, before)) => {
            push(connection, event, ack, Task::Messages { session, before });
        }
        Err(error) => ack.refuse(&error),
    }
}

/// `get-session`: gives the session as lists show it, and what was read of it.
pub fn on_get_session(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    let named = optional::<Named>(connection, event, Action::ReadSession).and_then(named);
    match named.and_then(|named| parse(&named.session_id)) {
        Ok(session) => push(connection, event, ack, Task::Session(session)),
        Err(error) => ack.refuse(&error),
    }
}

/// `admin-join-session`: the room is joined at once, what the agent sends next must find it there.
pub fn on_join(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    let named = optional::<Named>(connection, event, Action::JoinSession).and_then(named);
    let session = named.and_then(|named| parse(&named.session_id));
    match session.and_then(|session| connection.room(Some(session)).map(|()| session)) {
        Ok(session) => {
            connection.become_agent(&ack.socket);
            let new = connection.join(session, &ack.socket);
            push(connection, event, ack, Task::Join { session, new });
        }
        Err(error) => ack.refuse(&error),
    }
}

/// `admin-leave-session`.
pub fn on_leave(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    let named = optional::<Named>(connection, event, Action::JoinSession).and_then(named);
    match named.and_then(|named| parse(&named.session_id)) {
        Ok(session_id) => {
            connection.leave(session_id, &ack.socket);
            ack.send(&JoinedSession { session_id });
        }
        Err(error) => ack.refuse(&error),
    }
}

fn optional<T: DeserializeOwned + Fields>(
    connection: &Connection,
    event: &RawEvent,
    action: Action,
) -> Result<Option<T>, ClientError> {
    connection.caller.may(action)?;
    event.object()
}

fn named<T>(object: Option<T>) -> Result<T, ClientError> {
    object.ok_or_else(|| invalid("an object with sessionId is missing"))
}

fn parse(session: &str) -> Result<SessionId, ClientError> {
    SessionId::parse(session).map_err(|_| ClientError::session_not_found())
}

fn check_limit(limit: u16) -> Result<u16, ClientError> {
    match limit {
        1..=PAGE_MAX => Ok(limit),
        _ => Err(invalid(format!("limit must be {}", Kind::Number(PAGE_MAX)))),
    }
}

fn invalid(text: impl Into<Cow<'static, str>>) -> ClientError {
    ClientError::new(ErrorCode::InvalidPayload, text)
}

fn push(connection: &Arc<Connection>, event: &RawEvent, ack: Ack, task: Task) {
    let waiting = Waiting { connection: Arc::clone(connection), ack, task };
    match connection.reads.reserve(event.bytes()) {
        Some(slot) => slot.run(move || waiting.run()),
        None => waiting.give_up(&ClientError::overloaded()),
    }
}

impl Waiting {
    async fn run(self) {
        let Self { connection, ack, task } = self;
        if !connection.backlog.room().await {
            return;
        }
        match task {
            Task::List(wanted) => list(&connection, wanted, ack).await,
            Task::Messages { session, before } => {
                messages(&connection, ack, session, before).await;
            }
            Task::Join { session, new } => match connection.gateway.lookup.check(session).await {
                Existence::Exists | Existence::Unknown => {
                    ack.send(&JoinedSession { session_id: session });
                }
                Existence::Absent => {
                    if new {
                        connection.leave(session, &ack.socket);
                    }
                    ack.refuse(&ClientError::session_not_found());
                }
            },
            Task::Session(session) => show(&connection, session, ack).await,
        }
    }

    /// Answers with an error; the socket is in the room if it was before.
    fn give_up(self, error: &ClientError) {
        if let Task::Join { session, new: true } = self.task {
            self.connection.leave(session, &self.ack.socket);
        }
        self.ack.refuse(error);
    }
}

/// Gives a list: as an event, and in the ack.
async fn list(connection: &Connection, wanted: Wanted, ack: Ack) {
    let (event, is_kept_up) = match wanted {
        Wanted::Active => (Emitted::SessionsList, true),
        Wanted::All | Wanted::Page { .. } => (Emitted::AllSessionsList, false),
    };
    match connection.gateway.lists.list(wanted).await {
        Ok(list) => {
            ack.emit(event, &*list.sessions);
            if is_kept_up {
                connection.gateway.inboxes.given(&ack.socket, list.revision);
            }
            let next_cursor = list.next_cursor.as_ref().map(Cursor::to_string);
            ack.send(&Listed { sessions: &list.sessions, next_cursor });
        }
        Err(NoList::Unreadable) => ack.refuse(&ClientError::unavailable()),
        Err(NoList::Stopping) => {}
    }
}

/// Gives a session.
async fn show(connection: &Connection, session: SessionId, ack: Ack) {
    match connection.gateway.entries.with_read(session).await {
        Ok(Some(session)) => ack.send(&Shown { session: &session }),
        Ok(None) => ack.refuse(&ClientError::session_not_found()),
        Err(error) => {
            tracing::warn!(%error, "a session cannot be read");
            ack.refuse(&ClientError::unavailable());
        }
    }
}

/// Gives a history. To a socket in the room what is said meanwhile comes behind, and nothing twice.
async fn messages(connection: &Connection, ack: Ack, session: SessionId, before: Option<String>) {
    let (rooms, socket) = (&connection.gateway.rooms, ack.socket.clone());
    let holds = before.is_none() && rooms.hold(session, &socket);
    let read = connection.gateway.history.latest(session, before.as_deref(), MESSAGES_MAX).await;
    match read {
        Ok(messages) if holds => {
            let has = messages.iter().filter_map(StoredMessage::position).next_back();
            rooms.resume(session, &socket, has, || give(ack, &messages));
        }
        Ok(messages) => give(ack, &messages),
        Err(error) => {
            tracing::warn!(%error, "a history cannot be read");
            if holds {
                rooms.release(session, &socket);
            }
            ack.refuse(&ClientError::unavailable());
        }
    }
}

fn give(ack: Ack, messages: &[StoredMessage]) {
    let messages: Vec<_> = messages.iter().map(HistoryMessage::new).collect();
    ack.emit(Emitted::MessagesHistory, &messages);
    ack.send(&Messages { messages: &messages });
}

impl<'a> HistoryMessage<'a> {
    fn new(stored: &'a StoredMessage) -> Self {
        let message = stored.to_message();
        Self {
            id: message.id,
            message: message.content,
            is_admin: message.sender == Sender::Admin.as_str(),
            is_ai: message.is_ai,
            sender: message.sender,
            timestamp: message.created_at,
        }
    }
}
