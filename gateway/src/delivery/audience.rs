//! Everybody who hears of what is stored: those in the session, and the agents.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::value::RawValue;
use shared::ids::{SessionDigest, SessionId};
use shared::partition::PartitionCount;
use shared::timestamp::seconds_since;
use time::OffsetDateTime;

use crate::delivery::inboxes::Inboxes;
use crate::delivery::rooms::{Rooms, Saved};
use crate::log::session_lookup::SessionLookup;
use crate::metrics::METRICS;
use crate::presence::active::Presence;

/// Who hears of it. Cheap to clone.
#[derive(Clone)]
pub struct Audience {
    /// Those in the session.
    pub rooms: Arc<Rooms>,
    /// Where something was said last.
    pub presence: Arc<Presence>,
    pub inboxes: Arc<Inboxes>,
    pub lookup: Arc<SessionLookup>,
    pub partitions: PartitionCount,
}

impl Audience {
    /// Gives a saved message to everybody who should see it.
    pub fn deliver(&self, session: SessionId, saved: &Saved, recorded_at: Option<OffsetDateTime>) {
        let somebody_is_there = self.rooms.emit(session, saved);
        self.presence.said(session);
        self.inboxes.saved(session, saved);
        if !somebody_is_there {
            return;
        }
        tracing::debug!(
            message_id = message_id(&saved.json),
            session = session.short(),
            partition = %self.partitions.partition_of(session),
            sequence = saved.position.sequence,
            "emitted"
        );
        if let Some(recorded_at) = recorded_at {
            METRICS.delivery_seconds.observe(seconds_since(recorded_at));
        }
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

/// For log lines; a message is not parsed to be emitted.
fn message_id(json: &RawValue) -> String {
    #[derive(serde::Deserialize)]
    struct Identified {
        id: String,
    }
    serde_json::from_str(json.get()).map(|Identified { id }| id).unwrap_or_default()
}
