//! What a persister tells the gateways of a commit: which stretch of each partition it settled, and what became
//! of the records in it.
//!
//! A gateway that has everything up to `previous` has everything up to `sequence` once it has emitted the
//! entries. It needs no other rule to notice what it missed.

use async_nats::client::PublishError;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::change::Change;
use crate::ids::SessionId;
use crate::partition::Partition;
use crate::subjects;

/// Names one life of one partition's log: random, and never used for another partition. It
/// changes when the log is not the one that the offset in Postgres was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

impl Epoch {
    /// A new random epoch.
    pub fn random() -> Result<Self, getrandom::Error> {
        // Positive, so that it reads the same in Postgres, in an announcement and in a log line.
        Ok(Self((getrandom::u64()? >> 1).cast_signed()))
    }
}

/// A point in a partition: a sequence number of the log within one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The life of the log in which the sequence counts.
    pub epoch: Epoch,
    /// Stream sequence of the last record that was settled; 0 if there was none in this epoch.
    pub sequence: u64,
}

impl Position {
    /// Whether a gateway that has everything up to `other` has this too. Of another epoch nobody can tell.
    pub fn is_within(self, other: Self) -> bool {
        self.epoch == other.epoch && self.sequence <= other.sequence
    }
}

/// What a commit did, or a part of it; without entries, a repeated position. `M` is a message: as it is stored
/// where it is written, as JSON that nobody parses where it is read.
#[derive(Debug, Serialize, Deserialize)]
pub struct Announcement<'a, M> {
    #[serde(borrow)]
    pub partitions: Vec<Stretch<'a, M>>,
}

/// What a commit did in one partition.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stretch<'a, M> {
    pub partition: Partition,
    pub epoch: Epoch,
    /// Where the partition stood before.
    pub previous: u64,
    /// Where it stands now: the committed offset, whether or not something was stored.
    pub sequence: u64,
    /// What became of its records, in the order of the log.
    #[serde(borrow, default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<Entry<'a, M>>,
}

/// What became of one record. A message whose session was missing has two: its session comes first.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry<'a, M> {
    pub sequence: u64,
    pub session: SessionId,
    /// When the log took it, in microseconds since 1970.
    pub at: i64,
    pub fate: Fate,
    /// Of a message or a change: its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    /// Of a message that is stored: as clients see it.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub message: Option<M>,
    /// Of a change that counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fate {
    /// A message is stored, by this record.
    Stored,
    /// A message was stored before, with the same words.
    StoredBefore,
    /// A message was stored before, with other words.
    Conflict,
    /// A message of a session that was erased before.
    Refused,
    /// A message of an AI that stands behind where it was switched off.
    AiOff,
    /// A message or a change that Postgres refuses is a dead letter.
    SetAside,
    /// A change counts, by this record or by one with its id before.
    Changed,
    /// A change does not count: another agent has the session.
    Claimed,
    /// A change does not count, and leaves nothing behind: when its turn came there was no such session.
    Missing,
    /// A session can be read over REST.
    Opened,
    /// A session is erased.
    Erased,
    /// What a newer persister tells.
    #[serde(other)]
    Other,
}

impl<M> Stretch<'_, M> {
    /// A gateway that has everything up to here has everything before this one.
    pub fn before(&self) -> Position {
        Position { epoch: self.epoch, sequence: self.previous }
    }

    /// A gateway has everything up to here once it has emitted the entries.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, sequence: self.sequence }
    }

    /// Says again where a partition stands.
    pub fn repeated(partition: Partition, position: Position) -> Self {
        let Position { epoch, sequence } = position;
        Self { partition, epoch, previous: sequence, sequence, entries: Vec::new() }
    }
}

const NANOS_PER_MICRO: i128 = 1_000;

impl<'a, M> Entry<'a, M> {
    /// What became of a session's record that the log took then.
    pub fn new(sequence: u64, session: SessionId, at: OffsetDateTime, fate: Fate) -> Self {
        let micros = at.unix_timestamp_nanos() / NANOS_PER_MICRO;
        let at = i64::try_from(micros).unwrap_or_default();
        Self { sequence, session, at, fate, id: None, message: None, change: None }
    }

    /// It is a message with this id.
    #[must_use]
    pub fn of_message(self, id: &'a str, message: Option<M>) -> Self {
        Self { id: Some(id), message, ..self }
    }

    /// It is a change with this id, and this is what it changed, if it counts by this record.
    #[must_use]
    pub fn of_change(self, id: &'a str, change: Option<Change>) -> Self {
        Self { id: Some(id), change, ..self }
    }

    /// When the log took it; `None` if that is no time.
    pub fn recorded_at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.at) * NANOS_PER_MICRO).ok()
    }
}

/// Tells all gateways that the end of a session is in the log, before it is done: they take nothing more for
/// it. It has no place in the partition; who does not hear of it now hears of it when it is done.
pub async fn tell_ended(
    client: &Client,
    partition: Partition,
    session: SessionId,
) -> Result<(), PublishError> {
    client.publish(subjects::ended(partition, session), Bytes::new()).await
}

/// The header by which gateways of before commits were announced know a position:
/// `<epoch> <sequence> <previous> <when, or ->`.
const PLACE: &str = "Chat-Place";

/// Repeats where a partition stands to gateways of before commits were announced, which find by it what they
/// missed: while persisters are newer than gateways, rooms are told within a second.
pub async fn repeat_to_older_gateways(
    client: &Client,
    partition: Partition,
    position: Position,
) -> Result<(), PublishError> {
    let Position { epoch: Epoch(epoch), sequence } = position;
    let mut headers = HeaderMap::new();
    headers.insert(PLACE, format!("{epoch} {sequence} {sequence} -"));
    let subject = subjects::older_position(partition);
    client.publish_with_headers(subject, headers, Bytes::new()).await
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn an_announcement_is_read_as_it_was_written_and_messages_are_not_parsed() {
        let session = SessionId::random();
        let at = time::macros::datetime!(2026-01-31 09:41:07.123_456 UTC);
        let message = serde_json::json!({ "id": "c1", "content": "a \"quoted\" word" });
        let entry = |sequence, fate| Entry::new(sequence, session, at, fate);
        let entries = vec![
            entry(u64::MAX - 2, Fate::Opened),
            entry(u64::MAX - 2, Fate::Stored).of_message("c1", Some(message.clone())),
            entry(u64::MAX - 1, Fate::Conflict).of_message("c1", None),
            entry(u64::MAX, Fate::Erased),
        ];
        let (epoch, partition) = (Epoch::random().unwrap(), Partition::new(7));
        let stretch = Stretch { partition, epoch, previous: 41, sequence: u64::MAX, entries };
        let position = Position { epoch, sequence: 3 };
        let repeated = Stretch::repeated(Partition::FIRST, position);
        let written = Announcement { partitions: vec![stretch, repeated] };
        let json = serde_json::to_vec(&written).unwrap();
        let read: Announcement<'_, &RawValue> = serde_json::from_slice(&json).unwrap();
        let [stretch, repeated] = &read.partitions[..] else { panic!("{read:?}") };
        assert_eq!(stretch.position(), Position { epoch, sequence: u64::MAX });
        assert_eq!(stretch.entries[0].recorded_at(), Some(at));
        assert_eq!(stretch.entries[1].message.unwrap().get(), message.to_string());
        assert_eq!((stretch.entries[2].fate, stretch.entries[2].id), (Fate::Conflict, Some("c1")));
        assert_eq!((repeated.before(), repeated.position()), (position, position));
        assert_eq!(serde_json::to_vec(&read).unwrap(), json);
    }

    #[test]
    fn what_a_newer_persister_tells_hides_nothing() {
        let json = r#"{"partitions":[{"partition":1,"epoch":2,"previous":3,"sequence":4,"entries":[
            {"sequence":4,"session":"550e8400-e29b-41d4-a716-446655440000","at":0,"fate":"new","status":{"a":1}}
        ]}]}"#;
        let read: Announcement<'_, &RawValue> = serde_json::from_str(json).unwrap();
        assert_eq!(read.partitions[0].entries[0].fate, Fate::Other);
    }
}
