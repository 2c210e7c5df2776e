//! What the events of sockets and the routes of HTTP share.

use std::sync::Arc;

use shared::lifecycle::Stop;
use tokio_util::task::TaskTracker;

use crate::access::limits::Limits;
use crate::config::Config;
use crate::db::history::History;
use crate::delivery::audience::Audience;
use crate::delivery::inboxes::Inboxes;
use crate::delivery::positions::Positions;
use crate::delivery::ring::Ring;
use crate::delivery::rooms::Rooms;
use crate::delivery::stored_sessions::StoredSessions;
use crate::inbox::entry::Entries;
use crate::inbox::lists::Lists;
use crate::log::accept_message::Way;
use crate::log::pending_sends::PendingSends;
use crate::log::publisher::Publisher;
use crate::log::session_lookup::SessionLookup;
use crate::presence::active::Presence;
use crate::signals::read_marks::Reading;
use crate::signals::typing::TypingSides;
use crate::transport::backlog::Backlogs;
use crate::transport::incoming::Incoming;

/// What every part of the gateway shares.
pub struct Gateway {
    pub config: Config,
    /// Who may do how much.
    pub limits: Arc<Limits>,
    /// Which socket is in which session.
    pub rooms: Arc<Rooms>,
    /// What the rooms were given.
    pub positions: Arc<Positions>,
    /// What feeds read.
    pub ring: Arc<Ring>,
    /// The way into the log.
    pub publisher: Arc<Publisher>,
    pub lookup: Arc<SessionLookup>,
    /// Who waits for what becomes of a message.
    pub pending_sends: Arc<PendingSends>,
    /// Who waits for a session to be stored.
    pub stored_sessions: Arc<StoredSessions>,
    pub history: History,
    /// Which sessions are active.
    pub presence: Arc<Presence>,
    /// Who types.
    pub typing: Arc<TypingSides>,
    /// What was read of sessions.
    pub reading: Arc<Reading>,
    /// The agents who hear of every session.
    pub inboxes: Arc<Inboxes>,
    /// Where lists of sessions are asked for.
    pub lists: Lists,
    /// How sessions look to agents.
    pub entries: Arc<Entries>,
    /// What waits for sockets.
    pub backlogs: Arc<Backlogs>,
    /// What is kept of what clients send.
    pub incoming: Incoming,
    /// Answers that are under way.
    pub answers: TaskTracker,
    /// Once it is asked for, nothing new is begun.
    pub stop: Stop,
}

impl Gateway {
    /// What a send goes through.
    pub fn way_of_sends(&self) -> Way<'_> {
        Way {
            lookup: &self.lookup,
            pending: &self.pending_sends,
            publisher: &self.publisher,
            partitions: self.config.log.partitions,
        }
    }

    /// Everybody here who hears of what is stored.
    pub fn audience(&self) -> Audience {
        Audience {
            rooms: Arc::clone(&self.rooms),
            presence: Arc::clone(&self.presence),
            inboxes: Arc::clone(&self.inboxes),
            pending_sends: Arc::clone(&self.pending_sends),
            stored_sessions: Arc::clone(&self.stored_sessions),
            lookup: Arc::clone(&self.lookup),
            partitions: self.config.log.partitions,
        }
    }
}
