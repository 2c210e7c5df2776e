//! How one event is answered: by its ack, by an event to the client alone, or with an error.

use serde::Serialize;
use socketioxide::extract::{AckSender, SocketRef};
use socketioxide::{SendError, SocketError};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::ClientError;
use crate::metrics::METRICS;
use crate::transport::disconnect::disconnect;

/// How one event is answered.
pub struct Ack {
    /// Who asked.
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
        let Self { socket, sender, .. } = self;
        check(&socket, sender.send(answer));
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
        check(&self.socket, self.socket.emit(event, data));
    }
}

/// A client that cannot take an answer must come back, or it would wait for it.
fn check(socket: &SocketRef, sent: Result<(), SendError>) {
    match sent {
        Ok(()) | Err(SendError::Socket(SocketError::Closed)) => {}
        Err(error) => {
            tracing::warn!(socket = %socket.id, %error, "a client takes no answers, cutting it off");
            METRICS.ack_failures.inc();
            disconnect(socket);
        }
    }
}
