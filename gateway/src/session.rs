//! `init_session`: opens a session or comes back to one.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::announcement::Position;
use shared::ids::{ChatSessionId, MessageId, SessionId};
use shared::message::Message;
use shared::request::{NewSession, Request};

use crate::Gateway;
use crate::auth::Action;
use crate::client_info;
use crate::connection::{Answer, Connection, ReadJob};
use crate::error::ClientError;
use crate::history::{Snapshot, StoredMessage};
use crate::known::Known;
use crate::lane::Job;
use crate::limits::Place;
use crate::metrics::METRICS;
use crate::payload::RawEvent;
use crate::publisher::Publisher;

/// Longest wait, after a session is in the log, until it can be read over REST.
const OPENED_TIMEOUT: Duration = Duration::from_secs(1);

/// Most messages in the ack of a client that comes back; the rest is read over REST.
const MISSED_MAX: u16 = 500;

/// What a client asks for; anything else counts as nothing asked for.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Payload {
    session_id: Option<serde_json::Value>,
    after: Option<serde_json::Value>,
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
pub fn refuse(event: &RawEvent, answer: Answer, error: &ClientError) {
    let payload: Payload = event.object().ok().flatten().unwrap_or_default();
    let given = payload.session_id.as_ref().and_then(serde_json::Value::as_str);
    NotJoined { session_id: given, error }.tell(answer);
}

/// The session could not be opened; the client keeps the id it gave.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NotJoined<'a> {
    session_id: Option<&'a str>,
    error: &'a ClientError,
}

impl NotJoined<'_> {
    fn tell(self, answer: Answer) {
        answer.refuse_with(self.error, &self);
    }
}

/// An `init_session` that waits for its turn.
pub struct SessionJob {
    connection: Arc<Connection>,
    answer: Answer,
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
pub fn on_init_session(connection: &Arc<Connection>, event: &RawEvent, answer: Answer) {
    let payload: Payload = event.object().ok().flatten().unwrap_or_default();
    let given = payload.session_id.and_then(|id| id.as_str().map(str::to_owned));
    if let Err(error) = connection.caller.may(Action::InitSession) {
        return NotJoined { session_id: given.as_deref(), error: &error }.tell(answer);
    }
    if connection.gateway.stop.is_cancelled() {
        let error = ClientError::stopping();
        return NotJoined { session_id: given.as_deref(), error: &error }.tell(answer);
    }
    let session = given.as_deref().and_then(|text| SessionId::parse(text).ok());
    if let Err(error) = connection.room(session) {
        return NotJoined { session_id: given.as_deref(), error: &error }.tell(answer);
    }
    let after = payload.after.map(|after| after.as_str().unwrap_or_default().to_owned());
    if let Some(session) = session {
        match after {
            Some(_) => connection.join_held(session, &answer.socket),
            None => connection.join(session, &answer.socket),
        };
    }
    let job = SessionJob { connection: Arc::clone(connection), answer, given, session, after };
    if let Err(job) = connection.reads.push(ReadJob::Session(job), event.bytes()) {
        job.give_up(&ClientError::overloaded());
    }
}

impl Job for SessionJob {
    async fn run(self) {
        let Some(session) = self.session else { return self.open().await };
        match (self.connection.gateway.known.check(session).await, &self.after) {
            (Known::Yes, Some(_)) => self.resume(session).await,
            // A returning visitor never loses the conversation to an outage: sends to a session that
            // cannot be checked are refused until it can.
            (Known::Yes | Known::Unsure, None) => self.joined(session, true),
            (Known::Unsure, Some(_)) => self.give_up(&ClientError::unavailable()),
            (Known::No, _) => {
                self.connection.leave(session, &self.answer.socket);
                self.open().await;
            }
        }
    }
}

impl SessionJob {
    /// Opens a new session.
    async fn open(self) {
        let place = Place::of(&self.answer.socket);
        let room = self.connection.room(None);
        if let Err(error) = room.and_then(|()| place.map_or(Ok(()), Place::new_session)) {
            return self.refuse(&error);
        }
        let gateway = &self.connection.gateway;
        let session = SessionId::random();
        let stored = gateway.opened.wait(session);
        self.connection.join(session, &self.answer.socket);
        match self.ask_for(session).await {
            Ok(()) => {
                gateway.known.remember(session);
                METRICS.sessions_opened.inc();
                self.connection.visit(session);
                tokio::time::timeout(OPENED_TIMEOUT, stored).await.ok();
                gateway.opened.forget(session);
                self.joined(session, false);
            }
            Err(error) => {
                gateway.opened.forget(session);
                self.connection.leave(session, &self.answer.socket);
                self.refuse(&error);
            }
        }
    }

    async fn ask_for(&self, session: SessionId) -> Result<(), ClientError> {
        let handshake = self.answer.socket.req_parts();
        let new = NewSession {
            id: ChatSessionId::random(),
            ip: client_info::address(handshake).map(|address| address.to_string()),
            user_agent: client_info::user_agent(handshake),
        };
        let publisher = &self.connection.gateway.publisher;
        publisher
            .publish(session, &Request::Session(new), Publisher::deadline())
            .await?
            .accepted()
            .await
            .map(drop)
    }

    /// Gives the socket what it missed; what was said meanwhile follows behind.
    async fn resume(self, session: SessionId) {
        let after = self.after.as_deref().unwrap_or_default();
        match missed(&self.connection.gateway, session, after).await {
            Ok(Some(missed)) => {
                let connection = Arc::clone(&self.connection);
                connection.visit(session);
                let socket = self.answer.socket.clone();
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
        self.answer.send(&Joined { session_id, resumed: true, messages, reset, more });
    }

    fn joined(self, session_id: SessionId, resumed: bool) {
        METRICS.sessions_resumed.inc_by(resumed.into());
        self.connection.visit(session_id);
        self.answer.send(&Joined {
            session_id,
            resumed,
            messages: Vec::new(),
            reset: false,
            more: false,
        });
    }

    /// Answers with an error; the socket is in the room if it was before.
    pub fn give_up(self, error: &ClientError) {
        if let (Some(session), Some(_)) = (self.session, &self.after) {
            self.connection.release(session, &self.answer.socket);
        }
        self.refuse(error);
    }

    fn refuse(self, error: &ClientError) {
        NotJoined { session_id: self.given.as_deref(), error }.tell(self.answer);
    }
}

/// Reads what a session has after a message, or all of it if the message is not of this session.
///
/// `None` while Postgres lacks what clients were shown: it was restored from an older backup and
/// catches up. What is replayed is not emitted again, so it must be there when it is read.
async fn missed(
    gateway: &Gateway,
    session: SessionId,
    after: &str,
) -> sqlx::Result<Option<Missed>> {
    let partition = gateway.config.log.partitions.partition_of(session);
    // Read before Postgres is: what is emitted later is held back.
    let emitted = gateway.positions.of(partition);
    // Postgres refuses U+0000 in a text: no message can have such an id.
    let id = if after.contains('\0') { "" } else { after };
    let Snapshot { stored, rows: mut messages } =
        gateway.history.messages_from(partition, session, id, MISSED_MAX + 2).await?;
    if emitted.is_some_and(|emitted| !emitted.is_within(stored)) {
        return Ok(None);
    }
    let reset = messages.first().is_none_or(|first| first.id != after);
    // Another gateway may have shown it before the restore.
    let may_come = MessageId::try_from(after.to_owned()).is_ok();
    if reset && may_come && gateway.known.may_be_pending(session, stored.sequence).await {
        return Ok(None);
    }
    // The first is the one that the client has.
    let first = usize::from(!reset);
    let end = first + usize::from(MISSED_MAX);
    let more = messages.len() > end;
    messages.truncate(end);
    // Rows that did not come through the log have no position, and are never emitted.
    let has = messages.iter().filter_map(StoredMessage::position).next_back();
    Ok(Some(Missed { messages: messages.split_off(first), reset, more, has }))
}
