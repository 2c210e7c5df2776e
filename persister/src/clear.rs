//! Removes from the log what it still holds of erased sessions.
//!
//! The record that erased a session stays as long as its neighbours do: a database restored from an
//! older backup reads it there. What stood before it goes, and so does what gateways put behind it that had
//! not heard of it yet.

use async_nats::jetstream::stream::{RawMessageError, RawMessageErrorKind, Stream};
use shared::subjects;

use crate::store::Uncleared;

/// Removes it; what was removed before a crash does no harm. How many records it was.
pub async fn clear(log: &Stream, erased: &Uncleared) -> anyhow::Result<u64> {
    let Some(subject) = subject(log, erased).await? else { return Ok(0) };
    let below = match erased.erased_sequence {
        // This log has no record that erased it: nothing is to stay.
        0 => erased.last_sequence + 1,
        erased => erased,
    };
    let mut removed = log.purge().filter(&subject).sequence(below).await?.purged;
    let mut from = below + 1;
    // In this order: the last record names the subject, should this have to begin again.
    while from <= erased.last_sequence {
        // The stream's leader is asked: a replica may be behind.
        let next = found(log.get_first_raw_message_by_subject(&subject, from).await)?;
        let next = next.map(|(sequence, _)| sequence);
        let Some(next) = next.filter(|next| *next <= erased.last_sequence) else { break };
        log.delete_message(next).await?;
        removed += 1;
        from = next + 1;
    }
    Ok(removed)
}

/// The subject of the session's records; `None` if the last of them is gone, and so all are.
async fn subject(log: &Stream, erased: &Uncleared) -> anyhow::Result<Option<String>> {
    let last = found(log.get_raw_message(erased.last_sequence).await)?;
    let subject = last.map(|(_, subject)| subject);
    // In a log that was wiped the number may be another record's.
    Ok(subject.filter(|subject| {
        subjects::parse(subject).is_some_and(|(_, session)| session.digest() == erased.digest)
    }))
}

fn found(
    answer: Result<async_nats::jetstream::message::StreamMessage, RawMessageError>,
) -> Result<Option<(u64, String)>, RawMessageError> {
    match answer {
        Ok(record) => Ok(Some((record.sequence, record.subject.to_string()))),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error),
    }
}
