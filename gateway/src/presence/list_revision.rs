//! Counts what changes in the lists of sessions that agents are shown, and keeps which sessions changed for those who
//! are told of each.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use shared::ids::SessionId;
use tokio::sync::Notify;

/// How many agents are connected here, by what they are told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Agents {
    /// They are shown lists.
    pub lists: usize,
    /// They are told of each session whose entry in the lists changes.
    pub deltas: usize,
    /// All, also those who hear of nothing but what was decided about a session.
    pub all: usize,
}

/// The count. Nothing is counted where no agent hears of it.
#[derive(Default)]
pub struct ListRevision {
    /// Looked at for every message, as the next two are.
    lists: AtomicUsize,
    deltas: AtomicUsize,
    agents: AtomicUsize,
    count: AtomicU64,
    changed: Notify,
    updates: Mutex<Updates>,
    updated: Notify,
}

/// Sessions that agents have not been told of yet.
#[derive(Debug, Default)]
pub struct Updates {
    /// Something was decided about them.
    pub decided: HashSet<SessionId>,
    /// Something else changed that their entries show.
    pub touched: HashSet<SessionId>,
}

impl ListRevision {
    /// So many agents are connected here.
    pub fn set_agents(&self, Agents { lists, deltas, all }: Agents) {
        self.lists.store(lists, Ordering::Relaxed);
        self.deltas.store(deltas, Ordering::Relaxed);
        self.agents.store(all, Ordering::Relaxed);
    }

    /// Whether any agent is connected here that is told what is said.
    pub fn has_inboxes(&self) -> bool {
        self.lists.load(Ordering::Relaxed) + self.deltas.load(Ordering::Relaxed) > 0
    }

    /// Something changed that the lists show.
    pub fn changed(&self) {
        if self.lists.load(Ordering::Relaxed) > 0 {
            self.count.fetch_add(1, Ordering::Relaxed);
            self.changed.notify_one();
        }
    }

    /// Something changed that the lists show of this session.
    pub fn touched(&self, session: SessionId) {
        self.changed();
        if self.deltas.load(Ordering::Relaxed) > 0 {
            self.update(|updates| updates.touched.insert(session));
        }
    }

    /// Something was decided about this session.
    pub fn decided(&self, session: SessionId) {
        self.changed();
        if self.agents.load(Ordering::Relaxed) > 0 {
            self.update(|updates| updates.decided.insert(session));
        }
    }

    fn update(&self, insert: impl FnOnce(&mut Updates) -> bool) {
        if insert(&mut self.updates.lock().unwrap_or_else(PoisonError::into_inner)) {
            self.updated.notify_one();
        }
    }

    /// Resolves when something changed since the last time.
    pub async fn change(&self) {
        self.changed.notified().await;
    }

    /// Resolves when agents have something to be told of since the last time.
    pub async fn update_of_some(&self) {
        self.updated.notified().await;
    }

    /// What something was decided about that agents were not told of.
    pub fn take_decided(&self) -> HashSet<SessionId> {
        std::mem::take(&mut self.updates.lock().unwrap_or_else(PoisonError::into_inner).decided)
    }

    /// What changed otherwise that agents were not told of.
    pub fn take_touched(&self) -> HashSet<SessionId> {
        std::mem::take(&mut self.updates.lock().unwrap_or_else(PoisonError::into_inner).touched)
    }

    /// How often something changed.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
