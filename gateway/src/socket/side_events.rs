//! The events by which those in a session tell each other that they type, and up to where they have read.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shared::ids::{MessageId, SessionId};

use crate::access::rights::Action;
use crate::error::{ClientError, ErrorCode};
use crate::fields::{Field, Fields, Kind};
use crate::socket::ack::Ack;
use crate::socket::connection::Connection;
use crate::socket::payload::RawEvent;

/// `mark-read`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MarkRead {
    session_id: String,
    message_id: String,
}

impl Fields for MarkRead {
    const FIELDS: &'static [Field] =
        &[Field::required("sessionId", Kind::Text), Field::required("messageId", Kind::Text)];
}

/// `typing`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Types {
    session_id: String,
    typing: bool,
}

impl Fields for Types {
    const FIELDS: &'static [Field] =
        &[Field::required("sessionId", Kind::Text), Field::required("typing", Kind::Flag)];
}

/// The ack of `mark-read`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Marked {
    session_id: SessionId,
    message_id: MessageId,
}

/// `mark-read`: kept for this side of the session if it is further than before.
pub fn on_mark_read(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    match mark(connection, event) {
        Ok(marked) => ack.send(&marked),
        Err(error) => ack.refuse(&error),
    }
}

fn mark(connection: &Connection, event: &RawEvent) -> Result<Marked, ClientError> {
    connection.caller.may(Action::TakePart)?;
    let mark: MarkRead = event.object()?.ok_or_else(|| missing("messageId"))?;
    let session_id = joined(connection, &mark.session_id)?;
    // An adopter's message may have any text as its id; those that Prisma made are CUIDs as ours are.
    let message_id = MessageId::try_from(mark.message_id);
    let message_id = message_id.map_err(|_| invalid("messageId must be the id of a message"))?;
    let reader = connection.side();
    connection.gateway.reading.mark(session_id, reader, message_id.clone())?;
    Ok(Marked { session_id, message_id })
}

/// `typing`: told to the others in the session. It has no ack: a client that asks for one is only told of a mistake.
pub fn on_typing(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    match types(connection, event) {
        Ok((session, typing)) => {
            let (connection, by) = (Arc::clone(connection), ack.socket.id);
            tokio::spawn(async move {
                connection.gateway.typing.says(session, connection.side(), Some(by), typing).await;
                ack.send(&serde_json::json!({}));
            });
        }
        Err(error) => ack.refuse(&error),
    }
}

fn types(connection: &Connection, event: &RawEvent) -> Result<(SessionId, bool), ClientError> {
    connection.caller.may(Action::TakePart)?;
    let types: Types = event.object()?.ok_or_else(|| missing("typing"))?;
    Ok((joined(connection, &types.session_id)?, types.typing))
}

/// Only who is in a session takes part in it: nobody need look whether it exists.
fn joined(connection: &Connection, session: &str) -> Result<SessionId, ClientError> {
    let session = SessionId::parse(session).ok().filter(|session| connection.is_in(*session));
    session.ok_or_else(ClientError::session_not_found)
}

fn missing(name: &str) -> ClientError {
    invalid(format!("an object with sessionId and {name} is missing"))
}

fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> ClientError {
    ClientError::new(ErrorCode::InvalidPayload, text)
}
