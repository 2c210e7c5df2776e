//! An announcement as a gateway reads it.

use serde_json::value::RawValue;
use shared::announcement::{Announcement, Entry, Fate, Position, Stretch};
use shared::change::Change;
use shared::ids::{MessageId, SessionId};
use shared::partition::Partition;
use time::OffsetDateTime;

use crate::delivery::rooms::Saved;

/// What a commit did in a partition.
pub struct Heard {
    pub partition: Partition,
    /// Where the partition stood before.
    pub before: Position,
    /// Where it stands now.
    pub position: Position,
    pub entries: Vec<HeardEntry>,
}

/// What became of one record.
pub struct HeardEntry {
    pub position: Position,
    pub session: SessionId,
    /// When the log took it.
    pub recorded_at: Option<OffsetDateTime>,
    pub fate: Fate,
    /// Of a message or a change.
    pub id: Option<MessageId>,
    /// Of a message that is stored.
    pub saved: Option<Saved>,
    /// Of a change that counts by this record.
    pub change: Option<Change>,
}

/// Reads an announcement; messages are checked to be JSON, not parsed.
pub fn read(payload: &[u8]) -> serde_json::Result<Vec<Heard>> {
    let announcement: Announcement<'_, &RawValue> = serde_json::from_slice(payload)?;
    Ok(announcement.partitions.into_iter().map(Heard::from).collect())
}

impl From<Stretch<'_, &RawValue>> for Heard {
    fn from(stretch: Stretch<'_, &RawValue>) -> Self {
        let (before, position) = (stretch.before(), stretch.position());
        let entry = |entry: Entry<'_, &RawValue>| {
            let position = Position { sequence: entry.sequence, ..position };
            HeardEntry {
                position,
                session: entry.session,
                recorded_at: entry.recorded_at(),
                fate: entry.fate,
                id: entry.id.and_then(|id| MessageId::try_from(id.to_owned()).ok()),
                saved: entry.message.map(|json| Saved::new(position, json.to_owned())),
                change: entry.change,
            }
        };
        let entries = stretch.entries.into_iter().map(entry).collect();
        Self { partition: stretch.partition, before, position, entries }
    }
}

impl Heard {
    /// Sessions that have ended, for all who take them for sessions that exist.
    pub fn ended(&self) -> impl Iterator<Item = SessionId> {
        let ended = |entry: &&HeardEntry| matches!(entry.fate, Fate::Erased | Fate::Refused);
        self.entries.iter().filter(ended).map(|entry| entry.session)
    }

    /// Bytes of the messages in it.
    pub fn bytes(&self) -> usize {
        let bytes = |entry: &HeardEntry| entry.saved.as_ref().map_or(0, Saved::bytes);
        self.entries.iter().map(bytes).sum()
    }
}
