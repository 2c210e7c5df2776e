//! `user_message` and `admin_message`: check, ask the log, answer.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shared::content::{ClientOffset, Content};
use shared::ids::{MessageId, SessionId};
use shared::message::Sender;
use shared::partition::Partition;
use shared::request::{NewMessage, Request};
use tokio::time::Instant;

use crate::Gateway;
use crate::auth::Action;
use crate::connection::{Answer, Connection};
use crate::error::{ClientError, ErrorCode};
use crate::known::Known;
use crate::lane::Job;
use crate::payload::RawEvent;
use crate::publisher::{OnItsWay, Publisher, Turn};

/// What a client sends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    session_id: String,
    content: String,
    client_offset: Option<String>,
}

/// The answer to a send that is in the log.
#[derive(Serialize)]
pub struct Accepted<'a> {
    id: &'a MessageId,
    status: &'static str,
}

impl<'a> Accepted<'a> {
    /// The message with this id is in the log.
    pub fn new(id: &'a MessageId) -> Self {
        Self { id, status: "accepted" }
    }
}

/// The event that tells of a send that nobody waits for an answer to.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MessageError<'a> {
    event: &'a str,
    session_id: Option<&'a str>,
    client_offset: Option<&'a str>,
    error: &'a ClientError,
}

/// A send that was checked and waits for its turn.
pub struct SendJob {
    connection: Arc<Connection>,
    session: SessionId,
    message: NewMessage,
    deadline: Instant,
    asked: Asked,
    turn: Turn,
}

/// Who asked, and with which words.
struct Asked {
    answer: Answer,
    sender: Sender,
    session_id: Option<String>,
    client_offset: Option<String>,
}

/// Takes a send from the socket's read loop: checks it and queues it.
pub fn on_send(connection: &Arc<Connection>, sender: Sender, event: &RawEvent, answer: Answer) {
    if connection.gateway.stop.is_cancelled() {
        return refuse(sender, event, answer, &ClientError::stopping());
    }
    // Before it is read: the more there is to refuse, the less time it may take from what is not.
    let Some(turn) = connection.gateway.publisher.turn() else {
        return refuse(sender, event, answer, &ClientError::overloaded());
    };
    let mut asked = Asked { answer, sender, session_id: None, client_offset: None };
    match parse(event, &mut asked, connection) {
        Ok((session, message)) => {
            let deadline = Publisher::deadline();
            let owner = Arc::clone(connection);
            let job = SendJob { connection: owner, session, message, deadline, asked, turn };
            if let Err(job) = connection.sends.push(job, event.bytes()) {
                job.asked.refuse(&ClientError::overloaded());
            }
        }
        Err(error) => asked.refuse(&error),
    }
}

/// Answers a send that is not taken.
pub fn refuse(sender: Sender, event: &RawEvent, answer: Answer, error: &ClientError) {
    let mut asked = Asked { answer, sender, session_id: None, client_offset: None };
    if !asked.answer.wanted {
        asked.echo(event);
    }
    asked.refuse(error);
}

fn parse(
    event: &RawEvent,
    asked: &mut Asked,
    connection: &Connection,
) -> Result<(SessionId, NewMessage), ClientError> {
    let invalid = |text: String| ClientError::new(ErrorCode::InvalidPayload, text);
    let payload = event.object::<Payload>().map_err(|error| {
        asked.echo(event);
        invalid(error.to_string())
    })?;
    let payload =
        payload.ok_or_else(|| invalid("an object with sessionId and content is missing".into()))?;
    let session = SessionId::parse(&payload.session_id);
    asked.session_id = Some(payload.session_id);
    asked.client_offset.clone_from(&payload.client_offset);
    connection.caller.may(match asked.sender {
        Sender::User => Action::SendAsUser,
        Sender::Admin => Action::SendAsAdmin,
    })?;
    let content = Content::parse(payload.content, connection.gateway.config.max_content_chars)?;
    let offset = payload.client_offset.map(ClientOffset::parse).transpose();
    let offset = offset.map_err(|error| invalid(error.to_string()))?;
    let session = session.map_err(|_| ClientError::session_not_found())?;
    let id = match offset {
        Some(offset) => {
            let subject = connection.caller.subject.as_deref();
            MessageId::derived(session, asked.sender, subject, &offset)
        }
        None => MessageId::random(),
    };
    Ok((session, NewMessage { id, sender: asked.sender, content, is_ai: false }))
}

/// Puts a message on its way into the log, if its session exists.
pub async fn put(
    gateway: &Gateway,
    session: SessionId,
    message: NewMessage,
    deadline: Instant,
) -> Result<OnItsWay, ClientError> {
    match tokio::time::timeout_at(deadline, gateway.known.check(session)).await {
        Ok(Known::Yes) => {}
        Ok(Known::No) => return Err(ClientError::session_not_found()),
        Ok(Known::Unsure) => return Err(ClientError::unavailable()),
        Err(_) => return Err(ClientError::overloaded()),
    }
    gateway.publisher.publish(session, &Request::Message(message), deadline).await
}

/// So that one message can be followed by its id.
pub fn tell_accepted(id: &MessageId, session: SessionId, partition: Partition, sequence: u64) {
    tracing::debug!(
        message_id = %id, session = session.short(), %partition, sequence, "accepted"
    );
}

impl Job for SendJob {
    async fn run(self) {
        let Self { connection, session, message, deadline, asked, turn: _turn } = self;
        let id = message.id.clone();
        let partition = connection.gateway.config.log.partitions.partition_of(session);
        match put(&connection.gateway, session, message, deadline).await {
            // The next send need not wait for this one's ack: the log keeps their order.
            Ok(on_its_way) => drop(tokio::spawn(async move {
                match on_its_way.accepted().await {
                    Ok(sequence) => {
                        tell_accepted(&id, session, partition, sequence);
                        asked.answer.send(&Accepted::new(&id));
                    }
                    Err(error) => asked.refuse(&error),
                }
            })),
            Err(error) => asked.refuse(&error),
        }
    }
}

impl Asked {
    /// Keeps what can be read of a payload that is wrong, so that the client knows its own words.
    fn echo(&mut self, event: &RawEvent) {
        let fields = event.object::<serde_json::Map<String, serde_json::Value>>().ok().flatten();
        let text = |name| fields.as_ref()?.get(name)?.as_str().map(str::to_owned);
        self.session_id = text("sessionId");
        self.client_offset = text("clientOffset");
    }

    /// Answers with an error, or emits it where no answer is waited for.
    fn refuse(self, error: &ClientError) {
        if self.answer.wanted {
            return self.answer.refuse(error);
        }
        let message_error = MessageError {
            event: match self.sender {
                Sender::User => "user_message",
                Sender::Admin => "admin_message",
            },
            session_id: self.session_id.as_deref(),
            client_offset: self.client_offset.as_deref(),
            error,
        };
        self.answer.refuse_by_event(error, "message_error", &message_error);
    }
}
