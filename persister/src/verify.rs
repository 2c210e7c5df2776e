//! Is this the log that the offsets were taken from?
//!
//! A wiped volume starts at 1 again; after a power cut a tail may be lost and its numbers given out
//! a second time; an older copy of the stream may have been put back. Each shows at the record that
//! the offset names: it is gone though it was not trimmed, or it is another one.

use async_nats::jetstream::stream::{State, Stream};
use time::OffsetDateTime;

use crate::store::Offset;

/// The stream as it was when a term began.
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
}

/// What an offset's record says about the log.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The log that the offset was taken from.
    Same,
    /// The same log, but records between the offset and its start were removed unread, if any of
    /// them were of this partition.
    Trimmed,
    /// Another log, or an older state of it.
    Another(&'static str),
}

/// What stands in the log at the offset's sequence.
#[derive(Debug)]
pub struct Found {
    /// Its subject.
    pub subject: String,
    /// Its timestamp.
    pub time: OffsetDateTime,
}

/// The stream's state when it was opened.
pub fn stream_state(log: &Stream) -> StreamState {
    let info = log.cached_info();
    StreamState { created: info.created, state: info.state.clone() }
}

/// Looks at the record that the offset names.
pub async fn verify(
    log: &Stream,
    stream: &StreamState,
    offset: &Offset,
) -> Result<Verdict, async_nats::Error> {
    if offset.stored.sequence == 0 {
        return Ok(judge(stream, offset, None));
    }
    let found = shared::log::record(log, offset.stored.sequence).await?;
    let found =
        found.map(|record| Found { subject: record.subject.to_string(), time: record.time });
    Ok(judge(stream, offset, found.as_ref()))
}

fn judge(stream: &StreamState, offset: &Offset, found: Option<&Found>) -> Verdict {
    let sequence = offset.stored.sequence;
    if offset.stream_created_at.is_some_and(|created| !same_time(created, stream.created)) {
        return Verdict::Another("the stream was made anew");
    }
    match found {
        // An offset without a timestamp was moved here while nothing was pending.
        Some(found) if offset.recorded_at.is_some() && !is_record_of(found, offset) => {
            Verdict::Another("another record stands at the offset")
        }
        None if sequence > stream.state.last_sequence => {
            Verdict::Another("the log ends before the offset")
        }
        None if sequence < stream.last_trimmed() => Verdict::Trimmed,
        // There it is; or it was removed by itself, as an erasure does, or trimmed up to here.
        _ => Verdict::Same,
    }
}

fn is_record_of(found: &Found, offset: &Offset) -> bool {
    let partition = shared::subjects::parse(&found.subject).map(|(partition, _)| partition);
    partition == Some(offset.partition)
        && offset.recorded_at.is_none_or(|recorded_at| same_time(recorded_at, found.time))
}

/// Postgres keeps microseconds, NATS nanoseconds.
fn same_time(stored: OffsetDateTime, given: OffsetDateTime) -> bool {
    (stored - given).whole_microseconds().abs() <= 1
}

#[cfg(test)]
mod tests {
    use shared::announcement::{Epoch, Position};
    use shared::ids::SessionId;
    use shared::partition::Partition;
    use time::Duration;

    use super::*;

    const CREATED: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn stream(first: u64, last: u64) -> StreamState {
        let json = format!(
            r#"{{"messages":0,"bytes":0,"first_seq":{first},"last_seq":{last},"consumer_count":0,
                "first_ts":"2026-01-01T00:00:00Z","last_ts":"2026-01-01T00:00:00Z"}}"#
        );
        StreamState { created: CREATED, state: serde_json::from_str(&json).unwrap() }
    }

    fn offset() -> Offset {
        Offset {
            partition: Partition::new(3),
            stored: Position { epoch: Epoch(1), sequence: 10 },
            recorded_at: Some(CREATED + Duration::SECOND),
            stream_created_at: Some(CREATED),
            announced: 10,
        }
    }

    fn found(partition: u16, time: OffsetDateTime) -> Found {
        let partition = Partition::new(partition);
        Found { subject: shared::subjects::request(partition, SessionId::random()), time }
    }

    #[test]
    fn the_record_of_the_offset_is_known_again_to_the_microsecond() {
        let time = CREATED + Duration::SECOND + Duration::nanoseconds(900);
        let verdict = judge(&stream(1, 20), &offset(), Some(&found(3, time)));
        assert_eq!(verdict, Verdict::Same);
    }

    #[test]
    fn another_record_another_stream_or_a_lost_tail_is_another_log() {
        let time = CREATED + Duration::SECOND;
        let another = |verdict| assert!(matches!(verdict, Verdict::Another(_)), "{verdict:?}");
        another(judge(&stream(1, 20), &offset(), Some(&found(4, time))));
        another(judge(&stream(1, 20), &offset(), Some(&found(3, time + Duration::SECOND))));
        another(judge(&stream(1, 9), &offset(), None));
        let mut made_anew = stream(1, 20);
        made_anew.created += Duration::SECOND;
        another(judge(&made_anew, &offset(), Some(&found(3, time))));
    }

    #[test]
    fn a_record_that_was_trimmed_is_no_other_log() {
        assert_eq!(judge(&stream(15, 20), &offset(), None), Verdict::Trimmed);
        assert_eq!(judge(&stream(11, 20), &offset(), None), Verdict::Same);
        assert_eq!(judge(&stream(5, 20), &offset(), None), Verdict::Same);
        let mut empty = Offset { recorded_at: None, stream_created_at: None, ..offset() };
        empty.stored.sequence = 0;
        assert_eq!(judge(&stream(5, 20), &empty, None), Verdict::Trimmed);
        assert_eq!(judge(&stream(0, 0), &empty, None), Verdict::Same);
    }
}
