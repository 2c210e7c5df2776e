//! Is this the log that the offsets were taken from?
//!
//! A wiped volume starts at 1 again; after a power cut a tail may be lost and its numbers given out
//! a second time; an older copy of the stream may have been put back. Beside every offset stand sequence and
//! timestamp of the newest record that was known when it moved, its fingerprint: in another log that number
//! is another record's, or nobody's.
//!
//! A fingerprint's record may be gone, since an erasure or a trim removed it: that alone proves nothing. Its
//! neighbours do then. In one log timestamps rise with the numbers, so that a record before it that is
//! younger, or one behind it that is older, belongs to another log; or the clock of NATS was set back just
//! there. Then the log is read anew without need, which ids make harmless, and the fingerprints are new.

use async_nats::jetstream::stream::State;
use futures_util::future::try_join_all;
use shared::log::{Log, StoredRecord};
use shared::partition::Partition;
use shared::subjects::{self, ALL_REQUESTS};
use time::OffsetDateTime;

use crate::store::offsets::{Fingerprint, Mark, Offset};

/// The stream as it was at one moment.
#[derive(Debug, Clone)]
pub struct StreamState {
    /// When it was made.
    pub created: OffsetDateTime,
    /// First and last sequence.
    pub state: State,
}

impl StreamState {
    /// Up to here nothing is kept any more; 0 if nothing was ever removed.
    pub fn last_trimmed(&self) -> u64 {
        self.state.first_sequence.saturating_sub(1)
    }

    /// Whether records between this offset and the first one that is kept were removed unread, if any of
    /// them were of its partition. The stream must be older than the offset.
    pub fn is_trimmed_beyond(&self, offset: &Offset) -> bool {
        offset.stored.sequence < self.last_trimmed()
    }
}

/// What is there in place of the log that was known.
#[derive(Debug)]
pub struct AnotherLog {
    pub why: &'static str,
    /// The stream that is there.
    pub stream: StreamState,
}

/// What the log has where a fingerprint's record should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Record {
        /// Its partition, if its subject names one.
        partition: Option<Partition>,
        time: OffsetDateTime,
    },
    /// None; these are the timestamps of records before and behind it.
    Gap { before: Option<OffsetDateTime>, behind: Option<OffsetDateTime> },
}

/// A fingerprint, and the partition that its record must be of, if that is known.
type Known = (Fingerprint, Option<Partition>);

/// The stream's state when it was opened.
pub fn stream_state(log: &Log) -> StreamState {
    let info = log.stream().cached_info();
    StreamState { created: info.created, state: info.state.clone() }
}

/// Compares the log with what all partitions know of it, read from Postgres before. `None` if it is the
/// same; else all of them were taken from another one, whichever it was that showed it.
pub async fn another_log(
    log: &Log,
    marks: &[Mark],
) -> Result<Option<AnotherLog>, async_nats::Error> {
    // Younger than the marks: what they name is in it, or was.
    let info = log.stream().get_info().await?;
    let stream = StreamState { created: info.created, state: info.state };
    let mut why = made_anew(&stream, marks);
    if why.is_none() {
        let looks = fingerprints(marks).into_iter().map(async |known| {
            let found = find(log, known.0).await?;
            Ok::<_, async_nats::Error>(differs(known, found))
        });
        why = try_join_all(looks).await?.into_iter().flatten().next();
    }
    Ok(why.map(|why| AnotherLog { why, stream }))
}

/// The newest record that is there, to know the log by.
pub async fn newest(
    log: &Log,
    stream: &StreamState,
) -> Result<Option<Fingerprint>, async_nats::Error> {
    let sequence = stream.state.last_sequence;
    if stream.state.messages == 0 {
        return Ok(None);
    }
    let newest = log.record(sequence).await?;
    Ok(newest.map(|record| Fingerprint { sequence, recorded_at: record.time }))
}

/// What the stream alone shows.
fn made_anew(stream: &StreamState, marks: &[Mark]) -> Option<&'static str> {
    let is_another = |mark: &Mark| {
        mark.stream_created_at.is_some_and(|created| !same_time(created, stream.created))
    };
    let is_beyond = |mark: &Mark| {
        let newest = mark.head.map_or(0, |head| head.sequence).max(mark.stored.sequence);
        newest > stream.state.last_sequence
    };
    if marks.iter().any(is_another) {
        return Some("the stream was made anew");
    }
    marks.iter().any(is_beyond).then_some("the log ends before the offset")
}

/// Everything that is known of the log, each once.
fn fingerprints(marks: &[Mark]) -> Vec<Known> {
    let offsets = marks.iter().filter_map(|mark| {
        let recorded_at = mark.recorded_at?;
        let offset = Fingerprint { sequence: mark.stored.sequence, recorded_at };
        Some((offset, Some(mark.partition)))
    });
    let heads = marks.iter().filter_map(|mark| Some((mark.head?, None)));
    let mut known: Vec<Known> = offsets.chain(heads).collect();
    // What names its partition first: it says as much as the same without.
    known.sort_by_key(|(one, partition)| (one.sequence, one.recorded_at, partition.is_none()));
    known.dedup_by_key(|(one, _)| *one);
    known
}

async fn find(log: &Log, known: Fingerprint) -> Result<Found, async_nats::Error> {
    if let Some(record) = log.record(known.sequence).await? {
        let partition = subjects::partition_of(&record.subject);
        return Ok(Found::Record { partition, time: record.time });
    }
    let behind = log.first_record(ALL_REQUESTS, known.sequence + 1).await?;
    let before = log.last_record_before(ALL_REQUESTS, known.sequence).await?;
    let time = |record: StoredRecord| record.time;
    Ok(Found::Gap { before: before.map(time), behind: behind.map(time) })
}

fn differs((known, partition): Known, found: Found) -> Option<&'static str> {
    match found {
        Found::Record { time, .. } if !same_time(known.recorded_at, time) => {
            Some("another record stands at the offset")
        }
        Found::Record { partition: of, .. } if partition.is_some() && partition != of => {
            Some("another record stands at the offset")
        }
        Found::Gap { before: Some(time), .. } if is_later(time, known.recorded_at) => {
            Some("a record before the offset is younger than it")
        }
        Found::Gap { behind: Some(time), .. } if is_later(known.recorded_at, time) => {
            Some("a record behind the offset is older than it")
        }
        _ => None,
    }
}

/// Postgres keeps microseconds, NATS nanoseconds.
fn same_time(stored: OffsetDateTime, given: OffsetDateTime) -> bool {
    (stored - given).whole_microseconds().abs() <= 1
}

fn is_later(one: OffsetDateTime, other: OffsetDateTime) -> bool {
    one > other && !same_time(one, other)
}

#[cfg(test)]
mod tests {
    use shared::announcement::{Epoch, Position};
    use time::Duration;

    use super::*;

    const CREATED: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
    const TIME: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::DAY);

    fn stream(first: u64, last: u64) -> StreamState {
        let json = format!(
            r#"{{"messages":0,"bytes":0,"first_seq":{first},"last_seq":{last},"consumer_count":0,
                "first_ts":"2026-01-01T00:00:00Z","last_ts":"2026-01-01T00:00:00Z"}}"#
        );
        StreamState { created: CREATED, state: serde_json::from_str(&json).unwrap() }
    }

    fn mark() -> Mark {
        Mark {
            partition: Partition::new(3),
            stored: Position { epoch: Epoch(1), sequence: 10 },
            recorded_at: Some(TIME),
            stream_created_at: Some(CREATED),
            head: Some(Fingerprint { sequence: 12, recorded_at: TIME }),
        }
    }

    fn known(partition: Option<u16>) -> Known {
        (Fingerprint { sequence: 10, recorded_at: TIME }, partition.map(Partition::new))
    }

    fn record(partition: u16, time: OffsetDateTime) -> Found {
        Found::Record { partition: Some(Partition::new(partition)), time }
    }

    #[test]
    fn a_record_is_known_again_to_the_microsecond() {
        let time = TIME + Duration::nanoseconds(900);
        assert_eq!(differs(known(Some(3)), record(3, time)), None);
        assert_eq!(differs(known(None), record(4, time)), None);
    }

    #[test]
    fn another_record_or_another_stream_is_another_log() {
        assert!(differs(known(Some(3)), record(4, TIME)).is_some());
        assert!(differs(known(Some(3)), Found::Record { partition: None, time: TIME }).is_some());
        for time in [TIME + Duration::MICROSECOND * 2, TIME - Duration::MICROSECOND * 2] {
            assert!(differs(known(Some(3)), record(3, time)).is_some());
            assert!(differs(known(None), record(3, time)).is_some());
        }
        assert_eq!(made_anew(&stream(1, 12), &[mark()]), None);
        assert!(made_anew(&stream(1, 11), &[mark()]).is_some(), "its newest record is gone");
        assert!(made_anew(&stream(1, 9), &[Mark { head: None, ..mark() }]).is_some());
        let mut made_later = stream(1, 20);
        made_later.created += Duration::SECOND;
        assert!(made_anew(&made_later, &[mark()]).is_some());
    }

    #[test]
    fn one_partition_shows_it_for_all() {
        let unknowing = Mark { recorded_at: None, stream_created_at: None, head: None, ..mark() };
        assert_eq!(made_anew(&stream(1, 10), &[unknowing]), None);
        assert!(made_anew(&stream(1, 10), &[unknowing, mark(), unknowing]).is_some());
    }

    #[test]
    fn what_is_known_is_looked_at_once() {
        let moved = Mark { recorded_at: None, ..mark() };
        let at_head = Mark {
            partition: Partition::new(7),
            stored: Position { sequence: 12, ..mark().stored },
            ..mark()
        };
        let known = fingerprints(&[moved, mark(), at_head]);
        let places: Vec<_> = known.iter().map(|(one, of)| (one.sequence, *of)).collect();
        assert_eq!(places, [(10, Some(Partition::new(3))), (12, Some(Partition::new(7)))]);
    }

    #[test]
    fn of_a_record_that_was_removed_its_neighbours_tell() {
        let (earlier, later) = (TIME - Duration::SECOND, TIME + Duration::SECOND);
        let gap = |before, behind| differs(known(Some(3)), Found::Gap { before, behind });
        assert_eq!(gap(None, None), None);
        assert_eq!(gap(Some(earlier), Some(later)), None);
        assert_eq!(gap(Some(TIME), Some(TIME)), None);
        assert!(gap(Some(later), None).is_some());
        assert!(gap(None, Some(earlier)).is_some());
    }

    #[test]
    fn what_was_trimmed_unread_is_told() {
        let offset = |sequence| Offset {
            partition: Partition::new(3),
            stored: Position { epoch: Epoch(1), sequence },
            announced: 0,
        };
        assert!(stream(15, 20).is_trimmed_beyond(&offset(10)));
        assert!(!stream(11, 20).is_trimmed_beyond(&offset(10)));
        assert!(!stream(5, 20).is_trimmed_beyond(&offset(10)));
        assert!(stream(5, 20).is_trimmed_beyond(&offset(0)));
        assert!(!stream(0, 0).is_trimmed_beyond(&offset(0)));
    }
}
