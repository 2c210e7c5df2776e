//! Who is in which session, and how a message reaches them.
//!
//! The library has rooms too, but when one of a room's sockets cannot take a message its emit does
//! not say which, and it cannot hold messages back for a socket that resumes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::value::RawValue;
use shared::announcement::Position;
use shared::ids::SessionId;
use socketioxide::extract::SocketRef;

use crate::cut;
use crate::metrics::METRICS;

/// The event that carries a saved message.
const MESSAGE: &str = "message";
/// Messages held back for a socket that resumes. It resumes within seconds; one for which more
/// is held must come back.
const HELD_MAX: usize = 4_096;

/// Sockets by session.
#[derive(Default)]
pub struct Rooms(Mutex<HashMap<SessionId, Vec<Member>>>);

/// A saved message on its way to a room.
#[derive(Clone)]
pub struct Saved {
    /// Where it stands in the log.
    pub position: Position,
    /// The message as clients see it.
    pub json: Arc<RawValue>,
}

struct Member {
    socket: SocketRef,
    /// Only for a socket that resumed; the first message that it was not given ends it.
    resuming: Option<Box<Resuming>>,
}

/// A socket that is given what it missed.
#[derive(Default)]
struct Resuming {
    /// What was emitted while the missed messages are read; none once they were given.
    held: Option<Vec<Saved>>,
    /// Up to where the socket has everything, though it may not be emitted yet: this gateway may be
    /// behind Postgres, or behind the gateway that the client was connected to before.
    has: Option<Position>,
}

impl Rooms {
    /// Adds a socket to a session's room; `false` if it was there.
    pub fn join(&self, session: SessionId, socket: &SocketRef) -> bool {
        let mut rooms = self.lock();
        let members = match rooms.entry(session) {
            Entry::Occupied(room) => room.into_mut(),
            Entry::Vacant(room) => {
                METRICS.rooms.inc();
                room.insert(Vec::new())
            }
        };
        let new = members.iter().all(|member| member.socket.id != socket.id);
        if new {
            members.push(Member { socket: socket.clone(), resuming: None });
        }
        new
    }

    /// Takes a socket out of a session's room.
    pub fn leave(&self, session: SessionId, socket: &SocketRef) {
        if let Entry::Occupied(mut room) = self.lock().entry(session) {
            room.get_mut().retain(|member| member.socket.id != socket.id);
            if room.get().is_empty() {
                room.remove();
                METRICS.rooms.dec();
            }
        }
    }

    /// From now on holds back what is emitted to a member, until [`Rooms::resume`]; `false` if it is
    /// no member, or was held back before.
    pub fn hold(&self, session: SessionId, socket: &SocketRef) -> bool {
        let mut rooms = self.lock();
        let Some(member) = member(&mut rooms, session, socket) else { return false };
        let resuming = member.resuming.get_or_insert_default();
        let new = resuming.held.is_none();
        resuming.held.get_or_insert_default();
        new
    }

    /// Ends the holding back: `give` gives the socket what it missed, so that it has everything up to
    /// `has`; what was held beyond that follows. Nothing can come between.
    pub fn resume(
        &self,
        session: SessionId,
        socket: &SocketRef,
        has: Option<Position>,
        give: impl FnOnce(),
    ) {
        self.let_go(session, socket, |resuming| {
            give();
            resuming.has = has;
        });
    }

    /// Ends the holding back of a socket that was given nothing.
    pub fn release(&self, session: SessionId, socket: &SocketRef) {
        self.let_go(session, socket, |_| {});
    }

    fn let_go(&self, session: SessionId, socket: &SocketRef, act: impl FnOnce(&mut Resuming)) {
        let mut rooms = self.lock();
        let Some(member) = member(&mut rooms, session, socket) else {
            // It left meanwhile, and is answered all the same.
            return act(&mut Resuming::default());
        };
        let resuming = member.resuming.get_or_insert_default();
        act(resuming);
        let held = resuming.held.take().unwrap_or_default();
        let kept = held.into_iter().all(|saved| member.take(&saved));
        drop(rooms);
        if !kept {
            cut::cut(socket);
        }
    }

    /// Emits a message to everybody in the session's room; `false` if nobody is.
    pub fn emit(&self, session: SessionId, saved: &Saved) -> bool {
        let mut failed = Vec::new();
        match self.lock().get_mut(&session) {
            Some(members) => failed.extend(members.extract_if(.., |member| !member.take(saved))),
            None => return false,
        }
        // Not under the lock: what closes a socket takes it out of its rooms.
        for member in failed {
            METRICS.emit_failures.inc();
            tracing::warn!(socket = %member.socket.id, "a client does not read, cutting it off");
            cut::cut(&member.socket);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Vec<Member>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn member<'a>(
    rooms: &'a mut HashMap<SessionId, Vec<Member>>,
    session: SessionId,
    socket: &SocketRef,
) -> Option<&'a mut Member> {
    rooms.get_mut(&session)?.iter_mut().find(|member| member.socket.id == socket.id)
}

impl Member {
    /// Emits a message, or holds it back; `false` if the socket takes no more.
    fn take(&mut self, saved: &Saved) -> bool {
        match self.resuming.as_deref_mut() {
            Some(Resuming { held: Some(held), .. }) => {
                held.push(saved.clone());
                return held.len() <= HELD_MAX;
            }
            Some(Resuming { has: Some(has), .. }) if saved.position.is_within(*has) => return true,
            // This one it does not have, nor what comes after it.
            Some(_) => self.resuming = None,
            None => {}
        }
        METRICS.emits.inc();
        // A socket that is closed leaves its rooms by itself.
        self.socket.emit(MESSAGE, &*saved.json).is_ok() || !self.socket.connected()
    }
}
