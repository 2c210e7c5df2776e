//! `init_session`: opens a session or comes back to one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shared::announcement::Position;
use shared::ids::{ChatSessionId, MessageId, SessionId};
use shared::message::Message;
use shared::record::{NewSession, Record};

use crate::access::client_address;
use crate::access::limits::SocketSlot;
use crate::access::rights::Action;
use crate::app::Gateway;
use crate::db::history::{MISSED_MAX, Resume};
use crate::db::rows::{CHUNK_BYTES, Snapshot, StoredMessage, fitting};
use crate::db::together::Answered;
use crate::error::ClientError;
use crate::fields::{Field, Fields, Kind, echo, lenient};
use crate::log::accept_message;
use crate::log::pending_sends::Key;
use crate::log::session_lookup::Existence;
use crate::metrics::METRICS;
use crate::socket::ack::Ack;
use crate::socket::connection::Connection;
use crate::socket::handshake;
use crate::socket::payload::{RawEvent, Text};

/// What a client asks for; anything else counts as nothing asked for.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Payload {
    session_id: Option<Text>,
    after: Option<Text>,
}

impl Fields for Payload {
    const FIELDS: &'static [Field] =
        &[Field::optional("sessionId", Kind::Text), Field::optional("after", Kind::Text)];
}

/// The id of the session and that of the last message as they are given; empty where it was no text.
fn read(event: &RawEvent) -> (Option<String>, Option<String>) {
    if let Ok(payload) = event.object::<Payload>() {
        let Payload { session_id, after } = payload.unwrap_or_default();
        let after = after.map(|after| after.into_string().unwrap_or_default());
        return (session_id.and_then(Text::into_string), after);
    }
    // One field that cannot be read makes none of the others nothing.
    let json = event.argument().unwrap_or_default();
    let after = lenient(json, "after").map(Option::unwrap_or_default);
    (lenient(json, "sessionId").flatten(), after)
}

/// The session that the socket is in now.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Joined<'a> {
    session_id: SessionId,
    resumed: bool,
    messages: Vec<Message<'a>>,
    reset: bool,
    more: bool,
}

/// Answers an `init_session` that is not taken.
pub fn refuse(event: &RawEvent, ack: Ack, error: &ClientError) {
    let (given, _) = read(event);
    NotJoined { session_id: given.as_deref(), error }.tell(ack);
}

/// The session could not be opened; the client keeps the id it gave.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NotJoined<'a> {
    session_id: Option<&'a str>,
    error: &'a ClientError,
}

impl NotJoined<'_> {
    fn tell(self, ack: Ack) {
        let told = Self { session_id: self.session_id.map(echo), ..self };
        ack.refuse_with(told.error, &told);
    }
}

/// An `init_session` that waits for its turn.
struct Waiting {
    connection: Arc<Connection>,
    ack: Ack,
    /// The id as the client gave it.
    given: Option<String>,
    session: Option<SessionId>,
    /// Id of the last message that a client that comes back has; empty if it was no text.
    after: Option<String>,
}

/// What a client missed.
struct Missed {
    messages: Vec<StoredMessage>,
    reset: bool,
    more: bool,
    /// Up to where the client has everything with these.
    has: Option<Position>,
}

/// Takes an `init_session` from the socket's read loop.
///
/// The room is joined at once: what the client sends next must find it there. An id that turns out
/// to be unknown names a room in which nothing is ever said.
pub fn on_init_session(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    let (given, after) = read(event);
    if let Err(error) = connection.caller.may(Action::InitSession) {
        return NotJoined { session_id: given.as_deref(), error: &error }.tell(ack);
    }
    if connection.gateway.stop.is_cancelled() {
        let error = ClientError::stopping();
        return NotJoined { session_id: given.as_deref(), error: &error }.tell(ack);
    }
    let session = given.as_deref().and_then(|text| SessionId::parse(text).ok());
    if let Err(error) = connection.room(session) {
        return NotJoined { session_id: given.as_deref(), error: &error }.tell(ack);
    }
    if let Some(session) = session {
        match after {
            Some(_) => connection.join_held(session, &ack.socket),
            None => connection.join(session, &ack.socket),
        };
    }
    let waiting = Waiting { connection: Arc::clone(connection), ack, given, session, after };
    match connection.reads.reserve(event.bytes()) {
        Some(slot) => slot.run(move || waiting.run()),
        None => waiting.give_up(&ClientError::overloaded()),
    }
}

impl Waiting {
    async fn run(self) {
        if !self.connection.backlog.room().await {
            return;
        }
        let Some(session) = self.session else { return self.open().await };
        match (self.connection.gateway.lookup.check(session).await, &self.after) {
            (Existence::Exists, Some(_)) => self.resume(session).await,
            // A returning visitor never loses the conversation to an outage: sends to a session that
            // cannot be checked are refused until it can.
            (Existence::Exists | Existence::Unknown, None) => self.joined(session, true),
            (Existence::Unknown, Some(_)) => self.give_up(&ClientError::unavailable()),
            (Existence::Absent, _) => {
                self.connection.leave(session, &self.ack.socket);
                self.open().await;
            }
        }
    }

    /// Opens a new session.
    async fn open(self) {
        let slot = handshake::slot_of(&self.ack.socket);
        let room = self.connection.room(None);
        if let Err(error) = room.and_then(|()| slot.map_or(Ok(()), SocketSlot::new_session)) {
            return self.refuse(&error);
        }
        let gateway = &self.connection.gateway;
        let session = SessionId::random();
        let stored = gateway.stored_sessions.wait(session);
        self.connection.join(session, &self.ack.socket);
        match self.ask_for(session).await {
            Ok(()) => {
                gateway.lookup.remember(session);
                METRICS.sessions_opened.inc();
                self.connection.visit(session);
                tokio::time::timeout(gateway.config.acks.stored_wait, stored).await.ok();
                gateway.stored_sessions.forget(session);
                self.joined(session, false);
            }
            Err(error) => {
                gateway.stored_sessions.forget(session);
                self.connection.leave(session, &self.ack.socket);
                self.refuse(&error);
            }
        }
    }

    async fn ask_for(&self, session: SessionId) -> Result<(), ClientError> {
        let handshake = self.ack.socket.req_parts();
        let new = NewSession {
            id: ChatSessionId::random(),
            ip: client_address::address(handshake).map(|address| address.to_string()),
            user_agent: client_address::user_agent(handshake),
        };
        let way = self.connection.gateway.way_of_sends();
        let opening = Record::Session(new);
        accept_message::request(way, Key::Opening(session), session, &opening).await.map(drop)
    }

    /// Gives the socket what it missed; what was said meanwhile follows behind.
    async fn resume(self, session: SessionId) {
        let after = self.after.as_deref().unwrap_or_default();
        match missed(&self.connection.gateway, session, after).await {
            Ok(Some(missed)) => {
                let connection = Arc::clone(&self.connection);
                connection.visit(session);
                let socket = self.ack.socket.clone();
                connection
                    .gateway
                    .rooms
                    .resume(session, &socket, missed.has, || self.give(session, &missed));
            }
            Ok(None) => {
                tracing::info!(
                    "a client that comes back waits until Postgres has caught up with the log"
                );
                self.give_up(&ClientError::unavailable());
            }
            Err(error) => {
                tracing::warn!(%error, "what a client missed cannot be read");
                self.give_up(&ClientError::unavailable());
            }
        }
    }

    fn give(self, session_id: SessionId, missed: &Missed) {
        METRICS.sessions_resumed.inc();
        let messages = missed.messages.iter().map(StoredMessage::to_message).collect();
        let Missed { reset, more, .. } = *missed;
        self.ack.send(&Joined { session_id, resumed: true, messages, reset, more });
    }

    fn joined(self, session_id: SessionId, resumed: bool) {
        METRICS.sessions_resumed.inc_by(resumed.into());
        self.connection.visit(session_id);
        self.ack.send(&Joined {
            session_id,
            resumed,
            messages: Vec::new(),
            reset: false,
            more: false,
        });
    }

    /// Answers with an error; the socket is in the room if it was before.
    fn give_up(self, error: &ClientError) {
        if let (Some(session), Some(_)) = (self.session, &self.after) {
            self.connection.release(session, &self.ack.socket);
        }
        self.refuse(error);
    }

    fn refuse(self, error: &ClientError) {
        NotJoined { session_id: self.given.as_deref(), error }.tell(self.ack);
    }
}

/// Reads what a session has after a message, or all of it if the message is not of this session.
///
/// `None` while Postgres lacks what clients were shown: it was restored from an older backup and
/// catches up. What is replayed is not emitted again, so it must be there when it is read.
async fn missed(gateway: &Gateway, session: SessionId, after: &str) -> Answered<Option<Missed>> {
    let partition = gateway.config.log.partitions.partition_of(session);
    // Read before Postgres is: what is emitted later is held back.
    let emitted = gateway.positions.of(partition);
    // Postgres refuses U+0000 in a text: no message can have such an id.
    let id = if after.contains('\0') { "" } else { after }.to_owned();
    let resume = Resume { partition, session, id };
    let Snapshot { stored, mut rows } = gateway.history.messages_from(resume).await?;
    if emitted.is_some_and(|emitted| !emitted.is_within(stored)) {
        return Ok(None);
    }
    let reset = rows.first().is_none_or(|first| first.id != after);
    // Another gateway may have shown it before the restore.
    let may_come = MessageId::try_from(after.to_owned()).is_ok();
    if reset && may_come && gateway.lookup.may_be_pending(session, stored.sequence).await {
        return Ok(None);
    }
    // The first is the one that the client has.
    let first = usize::from(!reset);
    let fits = fitting(rows[first..].iter(), CHUNK_BYTES).min(usize::from(MISSED_MAX));
    let more = rows.len() > first + fits;
    rows.truncate(first + fits);
    // That one counts too: this gateway may be about to emit it. Rows that did not come through the log have no
    // position, and are never emitted.
    let has = rows.iter().filter_map(StoredMessage::position).next_back();
    let messages = rows.split_off(first);
    Ok(Some(Missed { messages, reset, more, has }))
}
