//! The inboxes: sockets of agents that hear of every session.
//!
//! What is emitted here is queued or the socket is cut off: no agent ever holds anybody up. Lists are
//! made by [`crate::inbox::lists`].

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use shared::ids::SessionId;
use shared::message::Sender;
use socketioxide::extract::SocketRef;
use tokio::time::Instant;

use crate::delivery::rooms::Saved;
use crate::emitted::Emitted;
use crate::presence::list_revision::ListRevision;
use crate::transport::backlog;
use crate::transport::disconnect::disconnect;

/// Lists come at most this often to an inbox.
const LIST_GAP: Duration = Duration::from_secs(1);

/// The inboxes of this gateway.
pub struct Inboxes {
    members: Mutex<Vec<Member>>,
    revision: Arc<ListRevision>,
}

struct Member {
    socket: SocketRef,
    /// When it was given a list, and as of which revision.
    given: Option<(Instant, u64)>,
}

/// What of a saved message an inbox is told.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    sender: Cow<'a, str>,
    #[serde(borrow)]
    content: Cow<'a, str>,
}

/// `new-message`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewMessage<'a> {
    session_id: SessionId,
    message: &'a str,
}

impl Inboxes {
    /// Nobody is one yet; they are shown lists as of this revision.
    pub fn new(revision: Arc<ListRevision>) -> Self {
        Self { members: Mutex::default(), revision }
    }

    /// From now on this socket is an inbox.
    pub fn add(&self, socket: &SocketRef) {
        let mut members = self.lock();
        if members.iter().all(|member| member.socket.id != socket.id) {
            members.push(Member { socket: socket.clone(), given: None });
        }
        self.revision.set_inboxes(members.len());
    }

    /// This socket is no inbox any more.
    pub fn remove(&self, socket: &SocketRef) {
        let mut members = self.lock();
        members.retain(|member| member.socket.id != socket.id);
        self.revision.set_inboxes(members.len());
    }

    /// Something changed that the lists show.
    pub fn changed(&self) {
        self.revision.changed();
    }

    /// Resolves when something changed since the last time.
    pub async fn change(&self) {
        self.revision.change().await;
    }

    pub fn revision(&self) -> u64 {
        self.revision.count()
    }

    /// When the next inbox may be given a list that it lacks.
    pub fn due_at(&self) -> Option<Instant> {
        let revision = self.revision();
        self.lock().iter().filter_map(|member| member.due_at(revision)).min()
    }

    /// Gives a list, as of a revision, to every inbox that lacks it and had none for a while.
    pub fn give(&self, event: Emitted, list: &RawValue, revision: u64) {
        let now = Instant::now();
        self.emit_if(event, list, |member| {
            let due = member.due_at(revision).is_some_and(|due| due <= now);
            if due && !backlog::of(&member.socket).is_none_or(|backlog| backlog.has_room()) {
                // It has not read the last one, and is looked at again as if it had been given this one.
                member.given = member.given.map(|(_, known)| (now, known));
                return false;
            }
            if due {
                member.given = Some((now, revision));
            }
            due
        });
    }

    /// An inbox was given a list that it asked for.
    pub fn given(&self, socket: &SocketRef, revision: u64) {
        let mut members = self.lock();
        if let Some(member) = members.iter_mut().find(|member| member.socket.id == socket.id) {
            member.given = Some((Instant::now(), revision));
        }
    }

    /// A message was saved: a visitor's is told to every inbox.
    pub fn saved(&self, session_id: SessionId, saved: &Saved) {
        if !self.revision.has_inboxes() {
            return;
        }
        self.changed();
        let said = serde_json::from_str::<Said<'_>>(saved.json.get());
        if let Ok(Said { sender, content }) = said
            && sender == Sender::User.as_str()
        {
            self.emit(Emitted::NewMessage, &NewMessage { session_id, message: &content });
        }
    }

    /// Emits to every inbox.
    pub fn emit<T: Serialize>(&self, event: Emitted, data: &T) {
        self.emit_if(event, data, |_| true);
    }

    fn emit_if<T: Serialize + ?Sized>(
        &self,
        event: Emitted,
        data: &T,
        wants: impl Fn(&mut Member) -> bool,
    ) {
        let Ok(data) = to_raw_value(data) else { return };
        let failed: Vec<_> = {
            let mut members = self.lock();
            let fails = |member: &mut Member| wants(member) && !member.emit(event, &data);
            let failed = members.extract_if(.., fails).collect();
            self.revision.set_inboxes(members.len());
            failed
        };
        // Not under the lock: what closes a socket takes it out of here.
        for member in failed {
            tracing::warn!(socket = %member.socket.id, "an inbox does not read, cutting it off");
            disconnect(&member.socket);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// When it may be given a list of this revision, if it lacks it. The first list is asked for.
    fn due_at(&self, revision: u64) -> Option<Instant> {
        let (at, known) = self.given?;
        (known < revision).then_some(at + LIST_GAP)
    }

    /// `false` if the socket takes no more.
    fn emit(&self, event: Emitted, data: &RawValue) -> bool {
        let taken = backlog::takes(&self.socket, data.get().len())
            && self.socket.emit(event.as_str(), data).is_ok();
        // A socket that is closed is removed by itself.
        taken || !self.socket.connected()
    }
}
