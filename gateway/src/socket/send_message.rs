//! `user_message` and `admin_message`: check, ask the log, ack.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shared::content::{ClientOffset, Content};
use shared::ids::{MessageId, SessionId};
use shared::message::Sender;
use shared::record::NewMessage;
use tokio::time::Instant;

use crate::access::rights::Action;
use crate::error::{ClientError, ErrorCode};
use crate::log::accept_message::{self, Accepted};
use crate::log::publisher::{Publisher, SendPermit};
use crate::socket::ack::Ack;
use crate::socket::connection::Connection;
use crate::socket::payload::{RawEvent, echo};

/// What a client sends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    session_id: String,
    content: String,
    client_offset: Option<String>,
}

/// The event that tells of a send that nobody waits for an ack to.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MessageError<'a> {
    event: &'a str,
    session_id: Option<&'a str>,
    client_offset: Option<&'a str>,
    error: &'a ClientError,
}

/// A send that was checked and waits for its turn.
struct Waiting {
    connection: Arc<Connection>,
    session: SessionId,
    message: NewMessage,
    deadline: Instant,
    asked: Asked,
    _permit: SendPermit,
}

/// Who asked, and with which words.
struct Asked {
    ack: Ack,
    sender: Sender,
    session_id: Option<String>,
    client_offset: Option<String>,
}

/// Takes a send from the socket's read loop: checks it and queues it.
pub fn on_send(connection: &Arc<Connection>, sender: Sender, event: &RawEvent, ack: Ack) {
    if connection.gateway.stop.is_cancelled() {
        return refuse(sender, event, ack, &ClientError::stopping());
    }
    // Before it is read: the more there is to refuse, the less time it may take from what is not.
    let Some(permit) = connection.gateway.publisher.send_permit() else {
        return refuse(sender, event, ack, &ClientError::overloaded());
    };
    let mut asked = Asked { ack, sender, session_id: None, client_offset: None };
    match parse(event, &mut asked, connection) {
        Ok((session, message)) => {
            let deadline = Publisher::deadline();
            let owner = Arc::clone(connection);
            match connection.sends.reserve(event.bytes()) {
                Some(slot) => {
                    let waiting = Waiting {
                        connection: owner,
                        session,
                        message,
                        deadline,
                        asked,
                        _permit: permit,
                    };
                    slot.run(move || waiting.run());
                }
                None => asked.refuse(&ClientError::overloaded()),
            }
        }
        Err(error) => asked.refuse(&error),
    }
}

/// Answers a send that is not taken.
pub fn refuse(sender: Sender, event: &RawEvent, ack: Ack, error: &ClientError) {
    let mut asked = Asked { ack, sender, session_id: None, client_offset: None };
    if !asked.ack.wanted {
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

impl Waiting {
    async fn run(self) {
        let Self { connection, session, message, deadline, asked, _permit } = self;
        let id = message.id.clone();
        let gateway = &connection.gateway;
        let partition = gateway.config.log.partitions.partition_of(session);
        match accept_message::put(&gateway.lookup, &gateway.publisher, session, message, deadline)
            .await
        {
            // The next send need not wait for this one's ack: the log keeps their order.
            Ok(pending) => drop(tokio::spawn(async move {
                match pending.accepted().await {
                    Ok(sequence) => {
                        accept_message::tell_accepted(&id, session, partition, sequence);
                        asked.ack.send(&Accepted::new(&id));
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

    /// Answers with an error, or emits it where no ack is waited for.
    fn refuse(self, error: &ClientError) {
        if self.ack.wanted {
            return self.ack.refuse(error);
        }
        let message_error = MessageError {
            event: match self.sender {
                Sender::User => "user_message",
                Sender::Admin => "admin_message",
            },
            session_id: self.session_id.as_deref().map(echo),
            client_offset: self.client_offset.as_deref().map(echo),
            error,
        };
        self.ack.refuse_by_event(error, "message_error", &message_error);
    }
}
