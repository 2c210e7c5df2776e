//! Who is in which session, and how a message reaches them.
//!
//! The library has rooms too, but when one of a room's sockets cannot take a message its emit does
//! not say which.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::value::RawValue;
use shared::ids::SessionId;
use socketioxide::extract::SocketRef;
use socketioxide::{SendError, SocketError};

/// The event that carries a saved message.
const MESSAGE: &str = "message";

/// Sockets by session.
#[derive(Default)]
pub struct Rooms(Mutex<HashMap<SessionId, Vec<SocketRef>>>);

impl Rooms {
    /// Adds a socket to a session's room; `false` if it was there.
    pub fn join(&self, session: SessionId, socket: &SocketRef) -> bool {
        let mut rooms = self.lock();
        let members = rooms.entry(session).or_default();
        let new = members.iter().all(|member| member.id != socket.id);
        if new {
            members.push(socket.clone());
        }
        new
    }

    /// Takes a socket out of a session's room.
    pub fn leave(&self, session: SessionId, socket: &SocketRef) {
        if let Entry::Occupied(mut room) = self.lock().entry(session) {
            room.get_mut().retain(|member| member.id != socket.id);
            if room.get().is_empty() {
                room.remove();
            }
        }
    }

    /// Emits a message to everybody in the session's room.
    pub fn emit(&self, session: SessionId, message: &RawValue) {
        let members = self.lock().get(&session).cloned().unwrap_or_default();
        for member in members {
            if let Err(error) = member.emit(MESSAGE, message) {
                drop_member(&member, &error);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Vec<SocketRef>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that cannot take a message must come back and resume, or it would miss it.
fn drop_member(member: &SocketRef, error: &SendError) {
    if let SendError::Socket(SocketError::Closed) = error {
        return;
    }
    tracing::warn!(socket = %member.id, %error, "a client does not read, disconnecting it");
    member.clone().disconnect().ok();
}
