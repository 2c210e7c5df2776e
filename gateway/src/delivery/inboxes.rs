//! The sockets of agents: inboxes, which hear of every session, and those who hear of nothing but what is decided.
//!
//! What is emitted here is queued or the socket is cut off: no agent ever holds anybody up. Lists are
//! made by [`crate::inbox::lists`].

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use shared::change::Change;
use shared::ids::SessionId;
use shared::message::Sender;
use socketioxide::extract::SocketRef;
use tokio::time::Instant;

use crate::delivery::rooms::Saved;
use crate::emitted::Emitted;

use crate::presence::list_revision::{Agents, ListRevision};
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
    hears: Hears,
}

/// What an agent is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hears {
    /// What is decided about sessions.
    Decisions,
    /// An inbox, which is given lists: when it was given one, and as of which revision.
    Lists(Option<(Instant, u64)>),
    /// An inbox that asked for deltas: each session whose entry changes.
    Deltas,
}

/// `ai-mode-changed`, and the ack of `toggle-ai-mode`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AiMode {
    pub session_id: SessionId,
    /// Whether the AI answers.
    pub enabled: bool,
}

/// `session-updated`.
#[derive(Serialize)]
struct SessionUpdated<'a> {
    session: &'a RawValue,
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
    pub fn add(&self, socket: &SocketRef, deltas: bool) {
        self.change_members(|members| {
            let member = member_of(members, socket);
            member.hears = match member.hears {
                _ if deltas => Hears::Deltas,
                Hears::Lists(given) => Hears::Lists(given),
                Hears::Decisions | Hears::Deltas => Hears::Lists(None),
            };
        });
    }

    /// From now on this socket is an agent's.
    pub fn add_agent(&self, socket: &SocketRef) {
        self.change_members(|members| {
            member_of(members, socket);
        });
    }

    /// This socket is gone.
    pub fn remove(&self, socket: &SocketRef) {
        self.change_members(|members| members.retain(|member| member.socket.id != socket.id));
    }

    fn change_members<T>(&self, change: impl FnOnce(&mut Vec<Member>) -> T) -> T {
        let mut members = self.lock();
        let changed = change(&mut members);
        let count = |of: fn(&Hears) -> bool| members.iter().filter(|it| of(&it.hears)).count();
        self.revision.set_agents(Agents {
            lists: count(|hears| matches!(hears, Hears::Lists(_))),
            deltas: count(|hears| matches!(hears, Hears::Deltas)),
            all: members.len(),
        });
        changed
    }

    /// Something changed that the lists show.
    pub fn changed(&self) {
        self.revision.changed();
    }

    /// Something changed that the lists show of this session.
    pub fn touched(&self, session: SessionId) {
        self.revision.touched(session);
    }

    /// Resolves when something changed since the last time.
    pub async fn change(&self) {
        self.revision.change().await;
    }

    /// Resolves when agents have something to be told of since the last time.
    pub async fn update(&self) {
        self.revision.update_of_some().await;
    }

    /// What something was decided about that agents were not told of.
    pub fn take_decided(&self) -> HashSet<SessionId> {
        self.revision.take_decided()
    }

    /// What changed otherwise that agents were not told of.
    pub fn take_touched(&self) -> HashSet<SessionId> {
        self.revision.take_touched()
    }

    /// Something was decided about a session: a switch of its AI is told to every inbox at once, the rest once it
    /// is read.
    pub fn decided(&self, session_id: SessionId, change: &Change) {
        self.revision.decided(session_id);
        if let Some(enabled) = change.ai_enabled {
            self.emit(Emitted::AiModeChanged, &AiMode { session_id, enabled });
        }
    }

    /// Gives the entry of a session to all agents, or to those who asked for deltas.
    pub fn updated(&self, session: &RawValue, to_all: bool) {
        self.emit_if(Emitted::SessionUpdated, &SessionUpdated { session }, |member| {
            to_all || member.hears == Hears::Deltas
        });
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
                if let Hears::Lists(Some((at, _))) = &mut member.hears {
                    *at = now;
                }
                return false;
            }
            if due {
                member.hears = Hears::Lists(Some((now, revision)));
            }
            due
        });
    }

    /// An inbox was given a list that it asked for.
    pub fn given(&self, socket: &SocketRef, revision: u64) {
        let mut members = self.lock();
        let member = members.iter_mut().find(|member| member.socket.id == socket.id);
        if let Some(Member { hears: Hears::Lists(given), .. }) = member {
            *given = Some((Instant::now(), revision));
        }
    }

    /// A message was saved: a visitor's is told to every inbox.
    pub fn saved(&self, session_id: SessionId, saved: &Saved) {
        if !self.revision.has_inboxes() {
            return;
        }
        self.revision.touched(session_id);
        let said = serde_json::from_str::<Said<'_>>(saved.json.get());
        if let Ok(Said { sender, content }) = said
            && sender == Sender::User.as_str()
        {
            self.emit(Emitted::NewMessage, &NewMessage { session_id, message: &content });
        }
    }

    /// Emits to every inbox.
    pub fn emit<T: Serialize>(&self, event: Emitted, data: &T) {
        self.emit_if(event, data, |member| member.hears != Hears::Decisions);
    }

    fn emit_if<T: Serialize + ?Sized>(
        &self,
        event: Emitted,
        data: &T,
        wants: impl Fn(&mut Member) -> bool,
    ) {
        let Ok(data) = to_raw_value(data) else { return };
        let fails = |member: &mut Member| wants(member) && !member.emit(event, &data);
        let failed: Vec<_> = self.change_members(|members| members.extract_if(.., fails).collect());
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
        let Hears::Lists(Some((at, known))) = self.hears else { return None };
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

/// The member whose socket this is; new ones hear of nothing but decisions.
fn member_of<'a>(members: &'a mut Vec<Member>, socket: &SocketRef) -> &'a mut Member {
    let place = members.iter().position(|member| member.socket.id == socket.id);
    if place.is_none() {
        members.push(Member { socket: socket.clone(), hears: Hears::Decisions });
    }
    let place = place.unwrap_or(members.len() - 1);
    &mut members[place]
}
