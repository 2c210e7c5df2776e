//! `user_message` and `admin_message`: check, put into the log, ack what becomes of it.

use std::sync::Arc;

use serde::Deserialize;
use shared::content::{ClientOffset, Content};
use shared::ids::{MessageId, SessionId};
use shared::message::Sender;
use shared::record::NewMessage;

use crate::access::rights::Action;
use crate::emitted::Emitted;
use crate::error::{ClientError, ErrorCode};
use crate::fields::{Field, Fields, Kind, echo, echoes};
use crate::log::accept_message::{self, Acked, Send};
use crate::log::pending_sends::{Outcome, Waiter};
use crate::log::send_permits::SendPermit;
use crate::socket::ack::{Ack, MessageError};
use crate::socket::connection::Connection;
use crate::socket::line::Line;
use crate::socket::payload::RawEvent;

/// What a client sends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    session_id: String,
    content: String,
    client_offset: Option<String>,
}

impl Fields for Payload {
    const FIELDS: &'static [Field] = &[
        Field::required("sessionId", Kind::Text),
        Field::required("content", Kind::Text),
        Field::optional("clientOffset", Kind::Text),
    ];
}

/// A send that was checked and waits for its turn.
struct Waiting {
    connection: Arc<Connection>,
    send: Send,
    permit: SendPermit,
    asked: Asked,
}

/// Who asked, and with which words.
struct Asked {
    /// Until it is given.
    ack: Option<Ack>,
    line: Arc<Line>,
    sender: Sender,
    /// The message's, once it has one.
    id: Option<MessageId>,
    session_id: Option<String>,
    client_offset: Option<String>,
}

/// Takes a send from the socket's read loop: checks it and queues it.
pub fn on_send(connection: &Arc<Connection>, sender: Sender, event: &RawEvent, ack: Ack) {
    if connection.gateway.stop.is_cancelled() {
        return refuse(sender, event, ack, &ClientError::stopping());
    }
    // Before it is read: the more there is to refuse, the less time it may take from what is not.
    let Some(permit) = connection.gateway.publisher.send_permit(Some(ack.socket.id)) else {
        return refuse(sender, event, ack, &ClientError::overloaded());
    };
    let mut asked = Asked::new(ack, sender, Arc::clone(&connection.line));
    match parse(event, &mut asked, connection) {
        Ok(send) => {
            let owner = Arc::clone(connection);
            match connection.sends.reserve(event.bytes()) {
                Some(slot) => {
                    let waiting = Waiting { connection: owner, send, permit, asked };
                    slot.run(move || waiting.run());
                }
                None => asked.fail(&ClientError::overloaded()),
            }
        }
        Err(error) => asked.fail(&error),
    }
}

/// Answers a send that is not taken.
pub fn refuse(sender: Sender, event: &RawEvent, ack: Ack, error: &ClientError) {
    let is_told_by_event = !ack.wanted;
    let mut asked = Asked::new(ack, sender, Arc::default());
    if is_told_by_event {
        asked.echo(event);
    }
    asked.fail(error);
}

fn parse(
    event: &RawEvent,
    asked: &mut Asked,
    connection: &Connection,
) -> Result<Send, ClientError> {
    let invalid = |text: String| ClientError::new(ErrorCode::InvalidPayload, text);
    let payload = event.object::<Payload>().inspect_err(|_| asked.echo(event))?;
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
    let has_offset = offset.is_some();
    let id = match offset {
        Some(offset) => {
            let subject = connection.caller.subject.as_deref();
            MessageId::derived(session, asked.sender, subject, &offset)
        }
        None => MessageId::random(),
    };
    asked.id = Some(id.clone());
    let message = NewMessage { id, sender: asked.sender, content, is_ai: false };
    Ok(Send::message(session, message, has_offset))
}

impl Waiting {
    async fn run(self) {
        let Self { connection, send, permit, asked } = self;
        accept_message::put(connection.gateway.way_of_sends(), send, permit, Box::new(asked)).await;
    }
}

impl Waiter for Asked {
    fn tell(&mut self, outcome: Outcome) {
        let (Some(id), is_accepted) = (&self.id, outcome == Outcome::Accepted) else { return };
        let answer = match outcome {
            Outcome::Stored => Acked::stored(id),
            Outcome::Accepted => Acked::accepted(id),
            Outcome::Failed(error) => return self.fail(&error),
        };
        let Some(ack) = self.ack.take() else { return };
        if is_accepted {
            self.line.open(&ack.socket);
        }
        ack.send(&answer);
    }
}

impl Asked {
    fn new(ack: Ack, sender: Sender, line: Arc<Line>) -> Self {
        Self { ack: Some(ack), line, sender, id: None, session_id: None, client_offset: None }
    }

    /// Keeps what can be read of a payload that is wrong, so that the client knows its own words.
    fn echo(&mut self, event: &RawEvent) {
        let json = event.argument().unwrap_or_default();
        [self.session_id, self.client_offset] = echoes(json, ["sessionId", "clientOffset"]);
    }

    /// Answers with an error, or emits it where no ack is waited for, or was given.
    fn fail(&mut self, error: &ClientError) {
        let ack = match self.ack.take() {
            Some(ack) if ack.wanted => return ack.refuse(error),
            ack => ack,
        };
        let message_error = MessageError {
            event: match self.sender {
                Sender::User => "user_message",
                Sender::Admin => "admin_message",
            },
            session_id: self.session_id.as_deref().map(echo),
            client_offset: self.client_offset.as_deref().map(echo),
            id: self.id.as_ref().filter(|_| ack.is_none()),
            error,
        };
        match ack {
            Some(ack) => ack.refuse_by_event(error, Emitted::MessageError, &message_error),
            None => self.line.refuse(error, Emitted::MessageError, &message_error),
        }
    }
}
