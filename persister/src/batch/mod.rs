//! The pure step: bytes of the log in, rows and rejects out.

pub mod fold;

use std::collections::BTreeMap;

use bytes::Bytes;
use shared::ids::SessionId;
use shared::partition::Partition;
use shared::record::{Erasure, NewChange, NewMessage, NewSession, Record};
use time::OffsetDateTime;

/// A record as it stands in the log.
#[derive(Debug, Clone)]
pub struct LogRecord {
    pub place: LogPlace,
    /// Subject, which names partition and session.
    pub subject: String,
    /// Its bytes, hopefully a [`Record`].
    pub payload: Bytes,
}

/// Where a record stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPlace {
    pub partition: Partition,
    pub sequence: u64,
    /// When the log took it.
    pub recorded_at: OffsetDateTime,
}

/// What to commit together. The records of a partition are in log order.
#[derive(Debug, Default)]
pub struct Batch {
    /// Sequence of the first record of each partition.
    pub first: BTreeMap<Partition, u64>,
    /// The last record of each partition: the offset moves there.
    pub last: BTreeMap<Partition, LogPlace>,
    pub sessions: Vec<SessionRow>,
    pub messages: Vec<MessageRow>,
    /// What is to be changed about sessions: see [`crate::batch::fold`].
    pub changes: Vec<ChangeRow>,
    /// Records to set aside.
    pub rejects: Vec<Reject>,
    /// Sessions to erase. No other record of them is in the batch: those before are erased with them,
    /// those behind are refused.
    pub erasures: BTreeMap<SessionId, ErasureRow>,
}

/// A session to open.
#[derive(Debug)]
pub struct SessionRow {
    /// Where its record stands.
    pub place: LogPlace,
    pub session: SessionId,
    /// The rest of the row.
    pub new: NewSession,
}

/// A message to store.
#[derive(Debug)]
pub struct MessageRow {
    /// Where its record stands.
    pub place: LogPlace,
    pub session: SessionId,
    /// The rest of the row.
    pub new: NewMessage,
}

/// A change to make.
#[derive(Debug)]
pub struct ChangeRow {
    /// Where its record stands.
    pub place: LogPlace,
    pub session: SessionId,
    /// The rest of the row.
    pub new: NewChange,
}

/// A session to erase.
#[derive(Debug)]
pub struct ErasureRow {
    /// Where the record stands that erases it.
    pub place: LogPlace,
    /// Where its last record stands.
    pub last: LogPlace,
    /// What its row is called by.
    pub session_id: String,
}

/// A record to set aside.
#[derive(Debug)]
pub struct Reject {
    pub record: LogRecord,
    /// Why it cannot be stored.
    pub reason: String,
}

/// Most characters of a reason: some repeat what the record says.
const REASON_MAX: usize = 500;

impl Reject {
    fn new(record: LogRecord, reason: &str) -> Self {
        let reason: String = reason.chars().take(REASON_MAX).collect();
        Self { record, reason: storable(&reason) }
    }
}

/// As Postgres takes it: a text of its own holds no U+0000, whatever a subject or an error may hold.
pub fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Decodes records; those of one partition must be in log order.
pub fn prepare(records: &[LogRecord]) -> Batch {
    let mut batch = Batch::default();
    for record in records {
        batch.add(record);
    }
    batch
}

/// A batch that only sets this record aside.
pub fn reject(record: LogRecord, reason: &str) -> Batch {
    let first = BTreeMap::from([(record.place.partition, record.place.sequence)]);
    let last = BTreeMap::from([(record.place.partition, record.place)]);
    Batch { first, last, rejects: vec![Reject::new(record, reason)], ..Batch::default() }
}

impl Batch {
    /// Whether nothing else is to be stored.
    pub fn has_only_messages(&self) -> bool {
        self.sessions.is_empty()
            && self.changes.is_empty()
            && self.rejects.is_empty()
            && self.erasures.is_empty()
    }

    /// Whose openings and messages are in it; some more than once.
    pub fn all_sessions(&self) -> impl Iterator<Item = SessionId> {
        let opened = self.sessions.iter().map(|row| row.session);
        opened.chain(self.messages.iter().map(|row| row.session))
    }

    /// The newest record in it.
    pub fn newest(&self) -> Option<LogPlace> {
        self.last.values().copied().max_by_key(|place| place.sequence)
    }

    fn add(&mut self, record: &LogRecord) {
        let place = record.place;
        self.first.entry(place.partition).or_insert(place.sequence);
        self.last.insert(place.partition, place);
        if let Some(erased) = session_of(record).and_then(|one| self.erasures.get_mut(&one)) {
            erased.last = place;
            return;
        }
        match decode(record) {
            Ok((session, Record::Session(new))) => {
                self.sessions.push(SessionRow { place, session, new });
            }
            Ok((session, Record::Message(new))) => {
                self.messages.push(MessageRow { place, session, new });
            }
            Ok((session, Record::Change(new))) => {
                self.changes.push(ChangeRow { place, session, new });
            }
            Ok((session, Record::Erase(Erasure { session_id }))) => {
                self.forget(session);
                self.erasures.insert(session, ErasureRow { place, last: place, session_id });
            }
            Err(reason) => self.rejects.push(Reject::new(record.clone(), &reason)),
        }
    }

    /// Leaves out what was said in a session before it was erased.
    fn forget(&mut self, session: SessionId) {
        self.sessions.retain(|row| row.session != session);
        self.messages.retain(|row| row.session != session);
        self.changes.retain(|row| row.session != session);
        self.rejects.retain(|row| session_of(&row.record) != Some(session));
    }
}

fn session_of(record: &LogRecord) -> Option<SessionId> {
    shared::subjects::parse(&record.subject).map(|(_, session)| session)
}

fn decode(record: &LogRecord) -> Result<(SessionId, Record), String> {
    let session = session_of(record).ok_or("its subject names no session")?;
    let request = Record::decode(&record.payload).map_err(|error| error.to_string())?;
    if let Record::Erase(Erasure { session_id }) = &request
        && SessionId::standing_for(session_id) != session
    {
        return Err("the erasure is of another session than its subject".into());
    }
    Ok((session, request))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64, partition: u16, payload: &str) -> LogRecord {
        let partition = Partition::new(partition);
        let recorded_at = OffsetDateTime::UNIX_EPOCH;
        LogRecord {
            place: LogPlace { partition, sequence, recorded_at },
            subject: shared::subjects::request(partition, SessionId::random()),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        }
    }

    const SESSION: &str =
        r#"{"session":{"id":"cm4abc123000000000000000a","ip":null,"userAgent":null}}"#;
    const MESSAGE: &str =
        r#"{"message":{"id":"cm4xyz789000000000000000a","sender":"user","content":"Hello!"}}"#;

    #[test]
    fn rows_keep_the_order_of_the_log() {
        let batch = prepare(&[record(1, 0, SESSION), record(2, 1, MESSAGE), record(5, 0, MESSAGE)]);
        assert_eq!(batch.sessions.len(), 1);
        let sequences: Vec<_> = batch.messages.iter().map(|row| row.place.sequence).collect();
        assert_eq!(sequences, [2, 5]);
        let last: Vec<_> = batch.last.values().map(|place| place.sequence).collect();
        assert_eq!(last, [5, 2]);
    }

    #[test]
    fn of_an_erased_session_nothing_else_is_in_the_batch() {
        let session = SessionId::random();
        let (_, erase) = Record::erase(&session.to_string());
        let erase = String::from_utf8(erase.encode().unwrap()).unwrap();
        let of_session = |sequence, payload: &str| LogRecord {
            subject: shared::subjects::request(Partition::new(0), session),
            ..record(sequence, 0, payload)
        };
        let batch = prepare(&[
            of_session(1, SESSION),
            record(2, 0, MESSAGE),
            of_session(3, MESSAGE),
            of_session(4, "garbage"),
            of_session(5, &erase),
            of_session(6, MESSAGE),
            of_session(7, "garbage"),
            record(8, 0, MESSAGE),
        ]);
        let sequences: Vec<_> = batch.messages.iter().map(|row| row.place.sequence).collect();
        assert_eq!(
            (sequences.as_slice(), batch.sessions.len(), batch.rejects.len()),
            (&[2, 8][..], 0, 0)
        );
        let erased = &batch.erasures[&session];
        assert_eq!((erased.place.sequence, erased.last.sequence), (5, 7));
        assert_eq!(batch.last[&Partition::new(0)].sequence, 8);
    }

    #[test]
    fn an_erasure_on_the_subject_of_another_session_is_set_aside() {
        let (_, erase) = Record::erase(&SessionId::random().to_string());
        let erase = String::from_utf8(erase.encode().unwrap()).unwrap();
        let batch = prepare(&[record(1, 0, &erase)]);
        assert_eq!((batch.erasures.len(), batch.rejects.len()), (0, 1));
    }

    #[test]
    fn what_cannot_be_decoded_is_set_aside_and_moves_the_offset() {
        let mut foreign = record(8, 2, MESSAGE);
        foreign.subject = "chat.requests.2.nobody".into();
        let batch = prepare(&[record(7, 2, "garbage"), foreign]);
        assert_eq!((batch.rejects.len(), batch.messages.len()), (2, 0));
        assert_eq!(batch.last[&Partition::new(2)].sequence, 8);
    }
}
