//! Where a saved message stands: the header of its announcement. The end of a session is announced in
//! the same way and has a place among the messages.
//!
//! A gateway that has everything up to `previous` has everything up to `sequence` once it has
//! emitted the message. It needs no other rule to notice what it missed.

use async_nats::client::PublishError;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use time::OffsetDateTime;

use crate::ids::SessionId;
use crate::partition::Partition;
use crate::subjects;

/// Names one life of one partition's log: random, and never used for another partition. It
/// changes when the log is not the one that the offset in Postgres was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub i64);

impl Epoch {
    /// A new random epoch.
    pub fn random() -> Result<Self, getrandom::Error> {
        // Positive, so that it reads the same in Postgres, in a header and in a log line.
        Ok(Self((getrandom::u64()? >> 1).cast_signed()))
    }
}

/// A point in a partition: a sequence number of the log within one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The life of the log in which the sequence counts.
    pub epoch: Epoch,
    /// Stream sequence of the last announced record; 0 if there was none in this epoch.
    pub sequence: u64,
}

impl Position {
    /// Whether a gateway that has everything up to `other` has this too. Of another epoch nobody can tell.
    pub fn is_within(self, other: Self) -> bool {
        self.epoch == other.epoch && self.sequence <= other.sequence
    }
}

/// The place of an announcement in its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// Where this message stands.
    pub position: Position,
    /// Sequence of the message announced before it, in the same epoch; 0 if it is the first.
    pub previous: u64,
    /// When the log took the message, to the microsecond; a repeated position has none.
    pub recorded_at: Option<OffsetDateTime>,
}

/// Tells all gateways that the end of a session is in the log, before it is done: they take nothing more for
/// it. It has no place in the partition; who does not hear of it now hears of it when it is done.
pub async fn tell_ended(
    client: &Client,
    partition: Partition,
    session: SessionId,
) -> Result<(), PublishError> {
    client.publish(subjects::saved(partition, session), Bytes::new()).await
}

/// `<epoch> <sequence> <previous> <microseconds since 1970, or ->`: in one header, since each is some allocations
/// and a look into a map in both services, for every message.
const PLACE: &str = "Chat-Place";

const NANOS_PER_MICRO: i128 = 1_000;

impl Announcement {
    /// A gateway that has everything up to here has everything before this one.
    pub fn before(self) -> Position {
        Position { sequence: self.previous, ..self.position }
    }

    /// The header that carries it.
    pub fn to_headers(self) -> HeaderMap {
        let Self { position: Position { epoch: Epoch(epoch), sequence }, previous, recorded_at } =
            self;
        let micros = recorded_at.map(|at| at.unix_timestamp_nanos() / NANOS_PER_MICRO);
        let micros = micros.map_or_else(|| "-".to_owned(), |micros| micros.to_string());
        let mut headers = HeaderMap::new();
        headers.insert(PLACE, format!("{epoch} {sequence} {previous} {micros}"));
        headers
    }

    /// Reads the header; `None` if it is missing or does not say where it stands.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut numbers = headers.get(PLACE)?.as_str().split(' ');
        let position = Position {
            epoch: Epoch(numbers.next()?.parse().ok()?),
            sequence: numbers.next()?.parse().ok()?,
        };
        let previous = numbers.next()?.parse().ok()?;
        let recorded_at = numbers.next().and_then(|micros| {
            let nanos = i128::from(micros.parse::<i64>().ok()?) * NANOS_PER_MICRO;
            OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
        });
        Some(Self { position, previous, recorded_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        let position = Position { epoch: Epoch::random().unwrap(), sequence: u64::MAX };
        let recorded_at = time::macros::datetime!(2026-01-31 09:41:07.123_456 UTC);
        for recorded_at in [Some(recorded_at), None] {
            let announcement = Announcement { position, previous: 41, recorded_at };
            let headers = announcement.to_headers();
            assert_eq!(Announcement::from_headers(&headers), Some(announcement));
        }
        assert_eq!(Announcement::from_headers(&HeaderMap::new()), None);
    }
}
