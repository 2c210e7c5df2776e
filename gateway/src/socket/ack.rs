//! How one event is answered: by its ack, by an event to the client alone, or with an error.

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use socketioxide::extract::{AckSender, SocketRef};
use socketioxide::{SendError, SocketError};
use tokio_util::task::task_tracker::TaskTrackerToken;

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
    _under_way: TaskTrackerToken,
}

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
        Self { socket, wanted, sender, _under_way: under_way }
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
        METRICS.refuse(error.code);
        self.send(answer);
    }

    /// Emits an error as an event of its own: where no answer is waited for.
    pub fn refuse_by_event<T: Serialize>(self, error: &ClientError, event: &str, data: &T) {
        METRICS.refuse(error.code);
        self.emit(event, data);
    }

    /// Emits an event to the client alone.
    pub fn emit<T: Serialize + ?Sized>(&self, event: &str, data: &T) {
        give(&self.socket, data, |json| self.socket.emit(event, json));
    }
}

/// Gives a client something. One that cannot take it must come back, or it would wait for it.
fn give<T: Serialize + ?Sized>(
    socket: &SocketRef,
    data: &T,
    send: impl FnOnce(&RawValue) -> Result<(), SendError>,
) {
    let error = match to_raw_value(data) {
        Ok(json) if !backlog::takes(socket, json.get().len()) => "too much waits for it".to_owned(),
        Ok(json) => match send(&json) {
            Ok(()) | Err(SendError::Socket(SocketError::Closed)) => return,
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    tracing::warn!(socket = %socket.id, error, "a client takes no answers, cutting it off");
    METRICS.ack_failures.inc();
    disconnect(socket);
}
