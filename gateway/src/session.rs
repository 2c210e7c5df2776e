//! `init_session`: opens a session or comes back to one.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::ids::{ChatSessionId, SessionId};
use shared::request::{NewSession, Request};

use crate::client_info;
use crate::connection::{Answer, Connection};
use crate::error::ClientError;
use crate::known::Known;
use crate::lane::Job;
use crate::payload::RawEvent;

/// Longest wait, after a session is in the log, until it can be read over REST.
const OPENED_TIMEOUT: Duration = Duration::from_secs(1);

/// What a client asks for; anything else counts as nothing asked for.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Payload {
    session_id: Option<serde_json::Value>,
}

/// The session that the socket is in now.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Joined<'a> {
    session_id: SessionId,
    resumed: bool,
    messages: &'a [Box<RawValue>],
    reset: bool,
    more: bool,
}

/// The session could not be opened; the client keeps the id it gave.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NotJoined<'a> {
    session_id: Option<&'a str>,
    error: &'a ClientError,
}

/// An `init_session` that waits for its turn.
pub struct SessionJob {
    connection: Arc<Connection>,
    answer: Answer,
    /// The id as the client gave it.
    given: Option<String>,
    session: Option<SessionId>,
}

/// Takes an `init_session` from the socket's read loop.
pub fn on_init_session(connection: &Arc<Connection>, event: &RawEvent, answer: Answer) {
    let payload: Payload = event.object().ok().flatten().unwrap_or_default();
    let given = payload.session_id.and_then(|id| id.as_str().map(str::to_owned));
    let session = given.as_deref().and_then(|text| SessionId::parse(text).ok());
    if let Some(session) = session {
        // At once: what the client sends next must find it in the room. An id that turns out to be
        // unknown names a room in which nothing is ever said.
        connection.join(session, &answer.socket);
    }
    let job = SessionJob { connection: Arc::clone(connection), answer, given, session };
    if let Err(job) = connection.sessions.push(job, event.bytes()) {
        job.refuse(&ClientError::overloaded());
    }
}

impl Job for SessionJob {
    async fn run(self) {
        let Some(session) = self.session else { return self.open().await };
        match self.connection.gateway.known.check(session).await {
            // A returning visitor never loses the conversation to an outage: sends to a session that
            // cannot be checked are refused until it can.
            Known::Yes | Known::Unsure => self.joined(session, true),
            Known::No => {
                self.connection.leave(session, &self.answer.socket);
                self.open().await;
            }
        }
    }
}

impl SessionJob {
    /// Opens a new session.
    async fn open(self) {
        let gateway = &self.connection.gateway;
        let session = SessionId::random();
        let stored = gateway.opened.wait(session);
        self.connection.join(session, &self.answer.socket);
        match self.ask_for(session).await {
            Ok(()) => {
                gateway.known.remember(session);
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
        publisher.publish(session, &Request::Session(new)).await?.accepted().await
    }

    fn joined(self, session_id: SessionId, resumed: bool) {
        self.answer.send(&Joined { session_id, resumed, messages: &[], reset: false, more: false });
    }

    fn refuse(self, error: &ClientError) {
        self.answer.send(&NotJoined { session_id: self.given.as_deref(), error });
    }
}
