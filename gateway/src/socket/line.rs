//! The way to a client after its ack was given: an accepted send may still be refused.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use socketioxide::extract::SocketRef;

use crate::emitted::Emitted;
use crate::error::ClientError;
use crate::socket::ack;

/// Holds the socket while it is connected and something may follow: what waits longer than the socket lives must not
/// keep its memory.
#[derive(Default)]
pub struct Line(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Open(SocketRef),
    Closed,
}

impl Line {
    /// Something may follow an ack.
    pub fn open(&self, socket: &SocketRef) {
        let mut state = self.lock();
        if matches!(*state, State::Idle) {
            *state = State::Open(socket.clone());
        }
    }

    /// The socket is gone.
    pub fn close(&self) {
        *self.lock() = State::Closed;
    }

    /// Emits an error, if the client is still there.
    pub fn refuse<T: Serialize>(&self, error: &ClientError, event: Emitted, data: &T) {
        let socket = match &*self.lock() {
            State::Open(socket) => socket.clone(),
            State::Idle | State::Closed => return,
        };
        ack::refuse_by_event(&socket, error, event, data);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
