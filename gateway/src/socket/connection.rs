//! One client's connection: its two lanes, and the rooms it is in.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::ids::SessionId;
use shared::message::Sender;
use socketioxide::extract::SocketRef;
use time::OffsetDateTime;
use tokio::task::AbortHandle;

use crate::access::rights::{Caller, Role};
use crate::app::Gateway;
use crate::delivery::rooms::Rooms;
use crate::error::ClientError;
use crate::metrics::METRICS;
use crate::socket::lane::Lane;
use crate::socket::line::Line;
use crate::transport::backlog::Backlog;
use crate::transport::disconnect::disconnect;

/// Sends that wait at a time: twice what the busiest honest client was seen to emit at once.
const SENDS_MAX: usize = 4_096;
/// Bytes of the sends that wait.
const SEND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Joins and reads that wait at a time.
const READS_MAX: usize = 64;
/// Bytes of the joins and reads that wait.
const READ_BYTES_MAX: usize = 256 * 1024;

/// Time to hear that the token ended, and to end the connection.
const FAREWELL_TIME: Duration = Duration::from_secs(10);

/// What the gateway keeps of a connected socket.
pub struct Connection {
    /// The gateway it is connected to.
    pub gateway: Arc<Gateway>,
    pub caller: Caller,
    /// Sends, published in the order they arrived.
    pub sends: Arc<Lane>,
    /// Joins and reads: a slow one never holds up a send.
    pub reads: Arc<Lane>,
    /// What waits for the socket.
    pub backlog: Arc<Backlog>,
    /// For what follows an ack.
    pub line: Arc<Line>,
    joined: Mutex<Joined>,
}

/// The rooms of a socket.
#[derive(Default)]
struct Joined {
    rooms: Vec<Room>,
    inbox: bool,
    agent: bool,
    closed: bool,
}

/// A room that a socket is in.
struct Room {
    session: SessionId,
    /// Whether the socket counts as the session's visitor.
    visited: bool,
}

impl Connection {
    /// A connection that is in no room yet.
    pub fn new(
        gateway: Arc<Gateway>,
        caller: Caller,
        network: Option<IpAddr>,
        backlog: Arc<Backlog>,
    ) -> Self {
        METRICS.sockets.inc();
        let kept = || gateway.incoming.of(network);
        Self {
            sends: Arc::new(Lane::new(SENDS_MAX, SEND_BYTES_MAX, kept())),
            reads: Arc::new(Lane::new(READS_MAX, READ_BYTES_MAX, kept())),
            gateway,
            caller,
            backlog,
            line: Arc::default(),
            joined: Mutex::default(),
        }
    }

    /// Whether the socket may be in this session too, or in a new one.
    pub fn room(&self, session: Option<SessionId>) -> Result<(), ClientError> {
        let joined = self.joined();
        let is_in = |session| joined.rooms.iter().any(|room| room.session == session);
        if session.is_some_and(is_in) {
            return Ok(());
        }
        self.gateway.limits.room(joined.rooms.len())
    }

    /// Joins a session's room; a socket that has left meanwhile joins nothing. `true` if it was not
    /// in the room before.
    pub fn join(&self, session: SessionId, socket: &SocketRef) -> bool {
        self.join_by(session, |rooms| rooms.join(session, socket))
    }

    /// The same for a socket that resumes: what is emitted to it is held back.
    pub fn join_held(&self, session: SessionId, socket: &SocketRef) -> bool {
        self.join_by(session, |rooms| rooms.join_held(session, socket))
    }

    fn join_by(&self, session: SessionId, join: impl FnOnce(&Rooms) -> bool) -> bool {
        let mut joined = self.joined();
        let new = !joined.closed && join(&self.gateway.rooms);
        if new {
            joined.rooms.push(Room { session, visited: false });
        }
        new
    }

    /// Leaves a session's room.
    pub fn leave(&self, session: SessionId, socket: &SocketRef) {
        self.leave_with(&mut self.joined(), session, socket);
    }

    /// Ends a resume that failed: the socket is in the room if it was before.
    pub fn release(&self, session: SessionId, socket: &SocketRef) {
        let mut joined = self.joined();
        if !self.gateway.rooms.release(session, socket) {
            self.leave_with(&mut joined, session, socket);
        }
    }

    fn leave_with(&self, joined: &mut Joined, session: SessionId, socket: &SocketRef) {
        for room in joined.rooms.extract_if(.., |room| room.session == session) {
            self.end_visit(&room);
        }
        self.gateway.rooms.leave(session, socket);
    }

    /// Ends the connection when the token does: it is in no room then, and told that the server
    /// ended it, which keeps the client from coming back with the same token. One that does not end it by itself,
    /// and could go on having what waits for it kept, is ended.
    pub fn end_with_token(connection: &Arc<Self>, socket: &SocketRef) -> Option<AbortHandle> {
        let left = connection.caller.expires_at? - OffsetDateTime::now_utc();
        let (connection, socket) = (Arc::clone(connection), socket.clone());
        let end = async move {
            tokio::time::sleep(left.try_into().unwrap_or_default()).await;
            connection.close(&socket);
            let told = socket.clone().disconnect();
            // Being told ends this task.
            tokio::spawn(async move {
                if told.is_ok() {
                    tokio::time::sleep(FAREWELL_TIME).await;
                }
                disconnect(&socket);
            });
        };
        Some(tokio::spawn(end).abort_handle())
    }

    /// The one who opened the session, or came back to it, is its visitor while it is connected: an agent
    /// is not, nor an inbox.
    pub fn visit(&self, session: SessionId) {
        let mut joined = self.joined();
        if joined.inbox || !matches!(self.caller.role, Role::Open | Role::Visitor) {
            return;
        }
        let room = joined.rooms.iter_mut().find(|room| room.session == session && !room.visited);
        if let Some(room) = room {
            room.visited = true;
            self.gateway.presence.came(session);
        }
    }

    /// Whose side this socket is on: a token says so, and where nobody shows one what it has done before.
    pub fn side(&self) -> Sender {
        match self.caller.role {
            Role::Admin | Role::Integrator => Sender::Admin,
            Role::Open if self.joined().agent => Sender::Admin,
            Role::Open | Role::Visitor => Sender::User,
        }
    }

    /// Whether the socket is in this session.
    pub fn is_in(&self, session: SessionId) -> bool {
        self.joined().rooms.iter().any(|room| room.session == session)
    }

    /// From now on the socket is an agent's.
    pub fn become_agent(&self, socket: &SocketRef) {
        let mut joined = self.joined();
        if !joined.closed && !std::mem::replace(&mut joined.agent, true) {
            self.gateway.inboxes.add_agent(socket);
        }
    }

    /// From now on the socket is an inbox, and nobody's visitor; with `deltas` it is told of each session that changes.
    pub fn become_inbox(&self, socket: &SocketRef, deltas: bool) {
        let mut joined = self.joined();
        if joined.closed {
            return;
        }
        joined.inbox = true;
        joined.agent = true;
        for room in &mut joined.rooms {
            self.end_visit(room);
            room.visited = false;
        }
        self.gateway.inboxes.add(socket, deltas);
    }

    fn end_visit(&self, room: &Room) {
        if room.visited {
            self.gateway.presence.left(room.session);
        }
    }

    /// The socket is gone.
    pub fn close(&self, socket: &SocketRef) {
        let mut joined = self.joined();
        joined.closed = true;
        if joined.agent {
            self.gateway.inboxes.remove(socket);
        }
        for room in std::mem::take(&mut joined.rooms) {
            self.end_visit(&room);
            self.gateway.rooms.leave(room.session, socket);
        }
        self.gateway.typing.gone(socket.id);
        self.line.close();
        self.gateway.backlogs.remove(socket);
    }

    fn joined(&self) -> MutexGuard<'_, Joined> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        METRICS.sockets.dec();
    }
}
