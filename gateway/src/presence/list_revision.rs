//! Counts what changes in the lists of sessions that inboxes are shown.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The count. Nothing is counted where no inbox is shown a list.
#[derive(Default)]
pub struct ListRevision {
    /// Inboxes; looked at for every message.
    inboxes: AtomicUsize,
    count: AtomicU64,
    changed: Notify,
}

impl ListRevision {
    /// So many inboxes are connected here.
    pub fn set_inboxes(&self, inboxes: usize) {
        self.inboxes.store(inboxes, Ordering::Relaxed);
    }

    /// Whether any inbox is connected here.
    pub fn has_inboxes(&self) -> bool {
        self.inboxes.load(Ordering::Relaxed) > 0
    }

    /// Something changed that the lists show.
    pub fn changed(&self) {
        if self.has_inboxes() {
            self.count.fetch_add(1, Ordering::Relaxed);
            self.changed.notify_one();
        }
    }

    /// Resolves when something changed since the last time.
    pub async fn change(&self) {
        self.changed.notified().await;
    }

    /// How often something changed.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
