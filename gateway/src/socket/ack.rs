//! How one event is answered: by its ack, by an event to the client alone, or with an error.

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use shared::ids::MessageId;
use socketioxide::extract::{AckSender, SocketRef};
use socketioxide::{SendError, SocketError};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::emitted::Emitted;
use crate::error::ClientError;
use crate::metrics::METRICS;
use crate::transport::backlog;
use crate::transport::disconnect::disconnect;

/// How one event is answered.
pub struct Ack {
    pub socket: SocketRef,
    /// Whether the client waits for it.
    pub wanted: bool,
    sender: AckSender,
    /// Where it does not: what a refusal is told with.
    told: Option<Box<Told>>,
    _under_way: TaskTrackerToken,
}

/// What a client knows its own event by.
struct Told {
    event: &'static str,
    session_id: Option<String>,
}

/// The event that tells of a refusal that nobody waits for an ack to.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageError<'a> {
    pub event: &'a str,
    pub session_id: Option<&'a str>,
    pub client_offset: Option<&'a str>,
    /// Of a message that was acked as accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a MessageId>,
    pub error: &'a ClientError,
}

/// Of a socket that was refused an event without an ack, and had a line in the logs for it.
#[derive(Clone)]
struct IsLogged;

/// An ack that is only an error.
#[derive(Serialize)]
struct Refusal<'a> {
    error: &'a ClientError,
}

impl Ack {
    /// The ack of an event of this socket; the gateway does not stop before it is given.
    pub fn new(
        under_way: TaskTrackerToken,
        socket: SocketRef,
        sender: AckSender,
        wanted: bool,
    ) -> Self {
        Self { socket, wanted, sender, told: None, _under_way: under_way }
    }

    /// Has a refusal told by an event, should the client wait for no answer.
    #[must_use]
    pub fn or_told_of(
        self,
        event: &'static str,
        session_id: impl FnOnce() -> Option<String>,
    ) -> Self {
        if self.wanted {
            return self;
        }
        Self { told: Some(Box::new(Told { event, session_id: session_id() })), ..self }
    }

    /// Answers, if the client waits for it.
    pub fn send<T: Serialize>(self, answer: &T) {
        if !self.wanted {
            return;
        }
        let Self { socket, sender, .. } = self;
        give(&socket, answer, |json| sender.send(json));
    }

    /// Answers with an error, if the client waits for it.
    pub fn refuse(self, error: &ClientError) {
        self.refuse_with(error, &Refusal { error });
    }

    /// The same in the form that an error has for this event. Whatever a socket is refused goes through here
    /// or [`Ack::refuse_by_event`], so that all of it is counted.
    pub fn refuse_with<T: Serialize>(self, error: &ClientError, answer: &T) {
        if let Some(told) = &self.told {
            return told.refuse(&self.socket, error);
        }
        METRICS.refuse(error.code);
        self.send(answer);
    }

    /// Emits an error as an event of its own: where no answer is waited for.
    pub fn refuse_by_event<T: Serialize>(self, error: &ClientError, event: Emitted, data: &T) {
        refuse_by_event(&self.socket, error, event, data);
    }

    /// Emits an event to the client alone.
    pub fn emit<T: Serialize + ?Sized>(&self, event: Emitted, data: &T) {
        give(&self.socket, data, |json| self.socket.emit(event.as_str(), json));
    }
}

impl Told {
    fn refuse(&self, socket: &SocketRef, error: &ClientError) {
        // One line, or whoever likes would fill the logs.
        if socket.extensions.get::<IsLogged>().is_none() {
            socket.extensions.insert(IsLogged);
            tracing::info!(
                socket = %socket.id,
                event = self.event,
                code = error.code.as_str(),
                "an event without an ack is refused, and message_error says so; it is not logged again for this socket"
            );
        }
        let data = MessageError {
            event: self.event,
            session_id: self.session_id.as_deref(),
            client_offset: None,
            id: None,
            error,
        };
        refuse_by_event(socket, error, Emitted::MessageError, &data);
    }
}

/// Emits an error to a client that waits for no answer, or has it.
pub fn refuse_by_event<T: Serialize>(
    socket: &SocketRef,
    error: &ClientError,
    event: Emitted,
    data: &T,
) {
    METRICS.refuse(error.code);
    give(socket, data, |json| socket.emit(event.as_str(), json));
}

/// Gives a client something. One that cannot take it must come back, or it would wait for it.
fn give<T: Serialize + ?Sized>(
    socket: &SocketRef,
    data: &T,
    send: impl FnOnce(&RawValue) -> Result<(), SendError>,
) {
    let was_over = backlog::is_over(socket);
    let error = match to_raw_value(data) {
        Ok(json) if !backlog::takes(socket, json.get().len()) => "too much waits for it".to_owned(),
        Ok(json) => match send(&json) {
            Ok(()) | Err(SendError::Socket(SocketError::Closed)) => return,
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    // What it sent before it is gone is answered in vain, too.
    if !was_over {
        tracing::warn!(socket = %socket.id, error, "a client takes no answers, cutting it off");
    }
    METRICS.ack_failures.inc();
    disconnect(socket);
}
