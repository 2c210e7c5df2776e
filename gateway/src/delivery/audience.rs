//! Everybody who hears of what is stored: those in the session, and the agents.

use std::collections::HashSet;
use std::sync::Arc;

use shared::announcement::Fate;
use shared::ids::{MessageId, SessionDigest, SessionId};
use shared::partition::PartitionCount;
use shared::timestamp::seconds_since;

use crate::delivery::heard::HeardEntry;
use crate::delivery::inboxes::Inboxes;
use crate::delivery::rooms::{Rooms, Saved};
use crate::delivery::stored_sessions::StoredSessions;
use crate::log::pending_sends::{Key, PendingSends, Told};
use crate::log::session_lookup::SessionLookup;
use crate::metrics::METRICS;
use crate::presence::active::Presence;

/// A message that is longer counts as several.
const ORDINARY_BYTES: usize = 4_096;
/// Messages given to sockets, and records told of, before everything else has its turn again. When thousands of
/// sockets are ready a round takes long: the runtime's own 128 a round would leave deliveries behind, and the rest of
/// the machine idle. A message to two members counts three.
const IN_ONE_GO: usize = 4_096;

/// What was told since everything else had its turn: one record may be told to a room of hundreds.
#[derive(Default)]
pub struct Turn {
    told: usize,
}

impl Turn {
    /// Counts what was told, in messages of ordinary size, and lets everything else have its turn now and then.
    pub async fn count(&mut self, told: usize) {
        self.told += told;
        if self.told >= IN_ONE_GO {
            self.told = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Who hears of it. Cheap to clone.
#[derive(Clone)]
pub struct Audience {
    /// Those in the session.
    pub rooms: Arc<Rooms>,
    /// Where something was said last.
    pub presence: Arc<Presence>,
    pub inboxes: Arc<Inboxes>,
    /// Who sent it.
    pub pending_sends: Arc<PendingSends>,
    /// Who opened it.
    pub stored_sessions: Arc<StoredSessions>,
    pub lookup: Arc<SessionLookup>,
    pub partitions: PartitionCount,
}

impl Audience {
    /// Answers those that sent what a record says.
    pub fn answer(&self, entry: &HeardEntry) {
        let told = Told {
            sequence: entry.position.sequence,
            session: entry.session,
            fate: entry.fate,
            message: entry.saved.as_ref().map(|saved| &*saved.json),
        };
        match (&entry.id, entry.fate) {
            (Some(id), _) => self.pending_sends.settle(&Key::Message(id.clone()), told),
            (None, Fate::Opened) => self.pending_sends.settle(&Key::Opening(entry.session), told),
            (None, Fate::Erased) => {
                self.pending_sends.settle(&Key::Opening(entry.session), told);
                self.pending_sends.settle(&Key::Erasure(entry.session), told);
            }
            (None, _) => {}
        }
    }

    /// Tells what became of a record to everybody who should hear of it, the sender first. Of ends everybody was
    /// told before. What it cost, in messages of ordinary size.
    pub fn tell(&self, entry: &HeardEntry) -> usize {
        self.answer(entry);
        if let Some(saved) = &entry.saved {
            return 1 + self.deliver(entry, saved) * (1 + saved.bytes() / ORDINARY_BYTES);
        }
        if let Some(change) = &entry.change {
            self.inboxes.decided(entry.session, change);
        }
        if entry.fate == Fate::Opened {
            self.stored_sessions.stored(entry.session);
            self.inboxes.touched(entry.session);
        }
        1
    }

    /// Gives a saved message to everybody who should see it; how many are in the session.
    fn deliver(&self, entry: &HeardEntry, saved: &Saved) -> usize {
        let session = entry.session;
        let members = self.rooms.emit(session, saved);
        self.presence.said(session);
        self.inboxes.saved(session, saved);
        if members == 0 {
            return 0;
        }
        tracing::debug!(
            message_id = entry.id.as_ref().map(MessageId::as_str),
            session = session.short(),
            partition = %self.partitions.partition_of(session),
            sequence = saved.position.sequence,
            "emitted"
        );
        if let Some(recorded_at) = entry.recorded_at {
            METRICS.delivery_seconds.observe(seconds_since(recorded_at));
        }
        members
    }

    /// The log is not the one that took what was sent.
    pub fn note_another_log(&self) {
        self.pending_sends.note_another_log();
    }

    /// A session was erased: nobody is in it, and it is known no more.
    pub fn end(&self, session: SessionId) {
        self.lookup.forget(session);
        self.rooms.end(session);
        self.inboxes.changed();
    }

    /// The same for sessions of which only digests are known.
    pub fn end_all(&self, ended: &HashSet<SessionDigest>) {
        // It costs less to look some up again than to tell which they are.
        self.lookup.forget_all();
        self.rooms.end_all(|room| ended.contains(&room.digest()));
        self.inboxes.changed();
    }
}
