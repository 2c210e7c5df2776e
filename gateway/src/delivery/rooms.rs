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
use socketioxide::socket::Sid;

use crate::emitted::Emitted;
use crate::metrics::METRICS;
use crate::transport::backlog::{self, Backlog};
use crate::transport::disconnect::disconnect;

/// Messages held back for a socket that resumes. It resumes within seconds; one for which more
/// is held must come back.
const HELD_MAX: usize = 4_096;

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

impl Saved {
    pub fn new(position: Position, json: Box<RawValue>) -> Self {
        Self { position, json: json.into() }
    }

    pub fn bytes(&self) -> usize {
        self.json.get().len()
    }
}

struct Member {
    socket: SocketRef,
    /// Only for a socket that resumed; the first message that it was not given ends it.
    resuming: Option<Box<Resuming>>,
}

/// A socket that is given what it missed.
#[derive(Default)]
struct Resuming {
    /// Resumes that are not answered yet: a client may ask again before it has the first answer.
    unanswered: usize,
    /// Whether it was not in the room before the first of them: it leaves if none succeeds.
    guest: bool,
    /// What was emitted meanwhile.
    held: Held,
    /// Up to where the socket has everything, though it may not be emitted yet: this gateway may be
    /// behind Postgres, or behind the gateway that the client was connected to before.
    has: Option<Position>,
}

/// What is held back for a socket, which counts among what waits for it as long as it is.
#[derive(Default)]
struct Held {
    saved: Vec<Saved>,
    bytes: usize,
    backlog: Option<Arc<Backlog>>,
}

impl Held {
    /// `false` if the socket takes no more.
    fn push(&mut self, saved: &Saved, socket: &SocketRef) -> bool {
        if !backlog::holds(socket, saved.bytes()) {
            return false;
        }
        self.backlog = self.backlog.take().or_else(|| backlog::of(socket));
        self.bytes += saved.bytes();
        self.saved.push(saved.clone());
        self.saved.len() <= HELD_MAX
    }

    /// It is emitted now.
    fn take(mut self) -> Vec<Saved> {
        std::mem::take(&mut self.saved)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(backlog) = &self.backlog {
            backlog.let_go(self.bytes as u64);
        }
    }
}

impl Rooms {
    /// Adds a socket to a session's room; `false` if it was there.
    pub fn join(&self, session: SessionId, socket: &SocketRef) -> bool {
        let mut rooms = self.lock();
        let (member, new) = join(&mut rooms, session, socket);
        if let Some(resuming) = member.resuming.as_mut() {
            resuming.guest = false;
        }
        new
    }

    /// The same for a socket that resumes: what is emitted to it is held back until
    /// [`Rooms::resume`] or [`Rooms::release`].
    pub fn join_held(&self, session: SessionId, socket: &SocketRef) -> bool {
        let mut rooms = self.lock();
        let (member, new) = join(&mut rooms, session, socket);
        let resuming = member.resuming.get_or_insert_default();
        resuming.unanswered += 1;
        resuming.guest |= new;
        new
    }

    /// Takes a socket out of a session's room.
    pub fn leave(&self, session: SessionId, socket: &SocketRef) {
        leave(&mut self.lock(), session, socket);
    }

    /// Empties the room of a session that has ended. Nobody is told; who asks hears that there is no such
    /// session.
    pub fn end(&self, session: SessionId) {
        if self.lock().remove(&session).is_some() {
            METRICS.rooms.dec();
        }
    }

    /// The same for every session that has ended.
    pub fn end_all(&self, ended: impl Fn(SessionId) -> bool) {
        let mut rooms = self.lock();
        let before = rooms.len();
        rooms.retain(|session, _| !ended(*session));
        let emptied = i64::try_from(before - rooms.len()).unwrap_or(i64::MAX);
        METRICS.rooms.dec_by(emptied);
    }

    /// Holds back what is emitted to a member while a history is read for it; `false` if it is none.
    pub fn hold(&self, session: SessionId, socket: &SocketRef) -> bool {
        let mut rooms = self.lock();
        let Some(member) = member(&mut rooms, session, socket) else { return false };
        member.resuming.get_or_insert_default().unanswered += 1;
        true
    }

    /// Ends a holding back: `give` gives the socket what it missed, so that it has everything up to
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
            resuming.guest = false;
            resuming.has = has;
        });
    }

    /// Ends a holding back of a socket that was given nothing; `false` if it had no other reason to be
    /// in the room and left.
    pub fn release(&self, session: SessionId, socket: &SocketRef) -> bool {
        self.let_go(session, socket, |_| {})
    }

    /// `false` if nothing keeps the socket in the room, and it left.
    fn let_go(
        &self,
        session: SessionId,
        socket: &SocketRef,
        act: impl FnOnce(&mut Resuming),
    ) -> bool {
        let mut rooms = self.lock();
        let Some(member) = member(&mut rooms, session, socket) else {
            // It left meanwhile, and is answered all the same.
            act(&mut Resuming::default());
            return true;
        };
        let resuming = member.resuming.get_or_insert_default();
        resuming.unanswered = resuming.unanswered.saturating_sub(1);
        act(resuming);
        if resuming.unanswered > 0 {
            return true;
        }
        if resuming.guest {
            leave(&mut rooms, session, socket);
            return false;
        }
        let held = std::mem::take(&mut resuming.held).take();
        let kept = held.into_iter().all(|saved| member.give(&saved));
        drop(rooms);
        if !kept {
            disconnect(socket);
        }
        true
    }

    /// Emits a message to everybody in the session's room; how many these are.
    pub fn emit(&self, session: SessionId, saved: &Saved) -> usize {
        let mut failed = Vec::new();
        let mut there = 0;
        if let Some(members) = self.lock().get_mut(&session) {
            there = members.len();
            failed.extend(members.extract_if(.., |member| !member.give(saved)));
        }
        // Not under the lock: what closes a socket takes it out of its rooms.
        for member in failed {
            METRICS.emit_failures.inc();
            tracing::warn!(socket = %member.socket.id, "a client does not read, cutting it off");
            disconnect(&member.socket);
        }
        there
    }

    /// Emits something that nobody misses to everybody in the session's room but one; whoever is behind is not told.
    pub fn tell(&self, session: SessionId, event: Emitted, data: &RawValue, but: Option<Sid>) {
        let mut rooms = self.lock();
        let Some(members) = rooms.get_mut(&session) else { return };
        for member in members.iter().filter(|member| Some(member.socket.id) != but) {
            let socket = &member.socket;
            if backlog::of(socket).is_none_or(|backlog| backlog.has_room())
                && backlog::takes(socket, data.get().len())
            {
                socket.emit(event.as_str(), data).ok();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Vec<Member>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The socket as a member of the room, and whether it was none before.
fn join<'a>(
    rooms: &'a mut HashMap<SessionId, Vec<Member>>,
    session: SessionId,
    socket: &SocketRef,
) -> (&'a mut Member, bool) {
    let members = rooms.entry(session).or_insert_with(|| {
        METRICS.rooms.inc();
        Vec::new()
    });
    let place = members.iter().position(|member| member.socket.id == socket.id);
    let new = place.is_none();
    if new {
        members.push(Member { socket: socket.clone(), resuming: None });
    }
    let place = place.unwrap_or(members.len() - 1);
    (&mut members[place], new)
}

fn leave(rooms: &mut HashMap<SessionId, Vec<Member>>, session: SessionId, socket: &SocketRef) {
    if let Entry::Occupied(mut room) = rooms.entry(session) {
        room.get_mut().retain(|member| member.socket.id != socket.id);
        if room.get().is_empty() {
            room.remove();
            METRICS.rooms.dec();
        }
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
    fn give(&mut self, saved: &Saved) -> bool {
        match self.resuming.as_deref_mut() {
            Some(Resuming { unanswered: 1.., held, .. }) => {
                return held.push(saved, &self.socket);
            }
            Some(Resuming { has: Some(has), .. }) if saved.position.is_within(*has) => return true,
            // This one it does not have, nor what comes after it.
            Some(_) => self.resuming = None,
            None => {}
        }
        METRICS.emits.inc();
        let taken = backlog::takes(&self.socket, saved.json.get().len())
            && self.socket.emit(Emitted::Message.as_str(), &*saved.json).is_ok();
        // A socket that is closed leaves its rooms by itself.
        taken || !self.socket.connected()
    }
}
