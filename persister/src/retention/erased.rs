//! Removes from the log what it still holds of erased sessions.
//!
//! The record that erased a session stays as long as its neighbours do: a database restored from an
//! older backup reads it there. What stood before it goes, and so does what gateways put behind it that had
//! not heard of it yet.

use shared::log::Log;
use shared::subjects;

use crate::store::erasures::Uncleared;

/// Removes it; what was removed before a crash does no harm. How many records it was.
pub async fn clear(log: &Log, erased: &Uncleared) -> anyhow::Result<u64> {
    let Some(subject) = subject(log, erased).await? else { return Ok(0) };
    let below = match erased.erased_sequence {
        // This log has no record that erased it: nothing is to stay.
        0 => erased.last_sequence + 1,
        erased => erased,
    };
    let mut removed = log.stream().purge().filter(&subject).sequence(below).await?.purged;
    let mut from = below + 1;
    // In this order: the last record names the subject, should this have to begin again.
    while from <= erased.last_sequence {
        let next = log.first_record(&subject, from).await?.map(|next| next.sequence);
        let Some(next) = next.filter(|next| *next <= erased.last_sequence) else { break };
        log.stream().delete_message(next).await?;
        removed += 1;
        from = next + 1;
    }
    Ok(removed)
}

/// The subject of the session's records; `None` if the last of them is gone, and so all are.
async fn subject(log: &Log, erased: &Uncleared) -> anyhow::Result<Option<String>> {
    let last = log.record(erased.last_sequence).await?;
    let subject = last.map(|last| last.subject);
    // In a log that was wiped the number may be another record's.
    Ok(subject.filter(|subject| {
        subjects::parse(subject).is_some_and(|(_, session)| session.digest() == erased.digest)
    }))
}
