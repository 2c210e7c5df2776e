//! One client's connection: its two lanes, the rooms it is in, and how it is answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use shared::ids::SessionId;
use socketioxide::extract::{AckSender, SocketRef};
use socketioxide::{SendError, SocketError};
use time::OffsetDateTime;
use tokio::task::AbortHandle;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::Gateway;
use crate::auth::{Caller, Role};
use crate::cut;
use crate::error::ClientError;
use crate::inbox::InboxJob;
use crate::lane::{Job, Lane};
use crate::metrics::METRICS;
use crate::rooms::Rooms;
use crate::send::SendJob;
use crate::session::SessionJob;

/// Sends that wait at a time: twice what the busiest honest client was seen to emit at once.
const SENDS_MAX: usize = 4_096;
/// Bytes of the sends that wait.
const SEND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Joins and reads that wait at a time.
const READS_MAX: usize = 64;
/// Bytes of the joins and reads that wait.
const READ_BYTES_MAX: usize = 256 * 1024;

/// What the gateway keeps of a connected socket.
pub struct Connection {
    /// The gateway it is connected to.
    pub gateway: Arc<Gateway>,
    /// Who is connected.
    pub caller: Caller,
    /// Sends, published in the order they arrived.
    pub sends: Arc<Lane<SendJob>>,
    /// Joins and reads: a slow one never holds up a send.
    pub reads: Arc<Lane<ReadJob>>,
    joined: Mutex<Joined>,
}

/// The rooms of a socket.
#[derive(Default)]
struct Joined {
    rooms: Vec<Room>,
    inbox: bool,
    closed: bool,
}

/// A room that a socket is in.
struct Room {
    session: SessionId,
    /// Whether the socket counts as the session's visitor.
    visited: bool,
}

/// A join or a read that waits for its turn.
pub enum ReadJob {
    /// `init_session`.
    Session(SessionJob),
    /// An event of an inbox.
    Inbox(InboxJob),
}

impl Job for ReadJob {
    async fn run(self) {
        match self {
            Self::Session(job) => job.run().await,
            Self::Inbox(job) => job.run().await,
        }
    }
}

impl ReadJob {
    /// Answers with an error instead.
    pub fn give_up(self, error: &ClientError) {
        match self {
            Self::Session(job) => job.give_up(error),
            Self::Inbox(job) => job.give_up(error),
        }
    }
}

impl Connection {
    /// A connection that is in no room yet.
    pub fn new(gateway: Arc<Gateway>, caller: Caller) -> Self {
        METRICS.sockets.inc();
        Self {
            gateway,
            caller,
            sends: Arc::new(Lane::new(SENDS_MAX, SEND_BYTES_MAX)),
            reads: Arc::new(Lane::new(READS_MAX, READ_BYTES_MAX)),
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
    /// ended it, which keeps the client from coming back with the same token.
    pub fn end_with_token(connection: &Arc<Self>, socket: &SocketRef) -> Option<AbortHandle> {
        let left = connection.caller.expires_at? - OffsetDateTime::now_utc();
        let (connection, socket) = (Arc::clone(connection), socket.clone());
        let end = async move {
            tokio::time::sleep(left.try_into().unwrap_or_default()).await;
            connection.close(&socket);
            if socket.clone().disconnect().is_err() {
                cut::cut(&socket);
            }
        };
        Some(tokio::spawn(end).abort_handle())
    }

    /// Whoever opened the session, or came back to it, is its visitor while it is connected: an agent
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
            self.gateway.inboxes.changed();
        }
    }

    /// From now on the socket is an inbox, and nobody's visitor.
    pub fn become_inbox(&self, socket: &SocketRef) {
        let mut joined = self.joined();
        if joined.closed {
            return;
        }
        joined.inbox = true;
        for room in &mut joined.rooms {
            self.end_visit(room);
            room.visited = false;
        }
        self.gateway.inboxes.add(socket);
    }

    fn end_visit(&self, room: &Room) {
        if room.visited {
            self.gateway.presence.left(room.session);
            self.gateway.inboxes.changed();
        }
    }

    /// The socket is gone.
    pub fn close(&self, socket: &SocketRef) {
        let mut joined = self.joined();
        joined.closed = true;
        if joined.inbox {
            self.gateway.inboxes.remove(socket);
        }
        for room in std::mem::take(&mut joined.rooms) {
            self.end_visit(&room);
            self.gateway.rooms.leave(room.session, socket);
        }
        cut::forget(socket);
    }

    fn joined(&self) -> MutexGuard<'_, Joined> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How one event is answered.
pub struct Answer {
    /// Who asked.
    pub socket: SocketRef,
    /// Whether the client waits for the answer.
    pub wanted: bool,
    ack: AckSender,
    _under_way: TaskTrackerToken,
}

/// An answer that is only an error.
#[derive(Serialize)]
struct Refusal<'a> {
    error: &'a ClientError,
}

impl Answer {
    /// The answer to an event of this socket; the gateway does not stop before it is given.
    pub fn new(gateway: &Gateway, socket: SocketRef, ack: AckSender, wanted: bool) -> Self {
        Self { socket, wanted, ack, _under_way: gateway.answers.token() }
    }

    /// Answers, if the client waits for it.
    pub fn send<T: Serialize>(self, answer: &T) {
        let Self { socket, ack, .. } = self;
        check(&socket, ack.send(answer));
    }

    /// Answers with an error, if the client waits for it.
    pub fn refuse(self, error: &ClientError) {
        self.refuse_with(error, &Refusal { error });
    }

    /// The same in the form that an error has for this event. Whatever a socket is refused goes through here
    /// or [`Answer::refuse_by_event`], so that all of it is counted.
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
            cut::cut(socket);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        METRICS.sockets.dec();
    }
}
