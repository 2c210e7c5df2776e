//! A message on its way into the log, sent over a socket or over HTTP.

use serde::Serialize;
use shared::ids::{MessageId, SessionId};
use shared::partition::Partition;
use shared::record::{NewMessage, Record};
use tokio::time::Instant;

use crate::error::ClientError;
use crate::log::publisher::{PendingPublish, Publisher};
use crate::log::session_lookup::{Existence, SessionLookup};

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

/// Puts a message on its way into the log, if its session exists.
pub async fn put(
    lookup: &SessionLookup,
    publisher: &Publisher,
    session: SessionId,
    message: NewMessage,
    deadline: Instant,
) -> Result<PendingPublish, ClientError> {
    match tokio::time::timeout_at(deadline, lookup.check(session)).await {
        Ok(Existence::Exists) => {}
        Ok(Existence::Absent) => return Err(ClientError::session_not_found()),
        Ok(Existence::Unknown) => return Err(ClientError::unavailable()),
        Err(_) => return Err(ClientError::overloaded()),
    }
    publisher.publish(session, &Record::Message(message), deadline).await
}

/// So that one message can be followed by its id.
pub fn tell_accepted(id: &MessageId, session: SessionId, partition: Partition, sequence: u64) {
    tracing::debug!(
        message_id = %id, session = session.short(), %partition, sequence, "accepted"
    );
}
