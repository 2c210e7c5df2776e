//! Which sessions exist: those that Postgres has, and those that the log tells of: the last record on their
//! subject that can be read. "Unknown" needs both answers, and so does "known": either may say that the session
//! was erased. A record that cannot be read, or only changes something, says nothing: it brings no
//! session to life, and hides none.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use moka::sync::Cache;
use shared::ids::SessionId;
use shared::log::Log;
use shared::partition::PartitionCount;
use shared::record::Record;
use shared::subjects;
use tokio::time::Instant;

use crate::db::history::History;
use crate::db::rows::Storage;

/// Sessions remembered. One takes about 100 bytes; a session that was forgotten is looked up again.
const REMEMBERED: u64 = 100_000;
/// How long it is remembered that the end of a session is in the log. A send that was under way then stands
/// behind it there, where it looks like one to a session that exists, until a persister has come to the end.
const ENDED_FOR: Duration = Duration::from_hours(1);
/// Longest wait for either answer.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for the other answer where one says that the session exists: while Postgres is away,
/// sends to sessions that the log knows are acked all the same. Should it have been erased, the
/// persister says so again when it refuses them.
const OBJECTION_TIMEOUT: Duration = Duration::from_millis(250);
/// Records of a session that are looked at, from the last one back. Only somebody else than a gateway puts in
/// what cannot be read.
const LOOKED_AT_MAX: usize = 256;

/// How long after it came back the log may still lack what it lost: gateways that took it find out and publish it
/// again.
const WHOLE_WITHIN: Duration = Duration::from_secs(5);

/// Whether what is not in the log is nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Completeness {
    Whole,
    /// It is away, or was just now, and may have lost something meanwhile.
    Doubtful,
    DoubtfulUntil(Instant),
}

/// Looks sessions up and remembers those that exist.
pub struct SessionLookup {
    remembered: Cache<SessionId, ()>,
    ended: Cache<SessionId, ()>,
    /// Counts what was forgotten: an answer from before may be out of date.
    forgotten: AtomicU64,
    completeness: Mutex<Completeness>,
    history: History,
    log: Log,
    partitions: PartitionCount,
}

/// Whether a session exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existence {
    Exists,
    /// Neither Postgres nor the log has it, or it was erased.
    Absent,
    /// One of them cannot be asked and the other does not have it.
    Unknown,
}

/// What one of the two says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Exists,
    /// It did, and never will again.
    Erased,
    Nothing,
    NoAnswer,
}

impl SessionLookup {
    pub fn new(history: History, log: Log, partitions: PartitionCount) -> Self {
        let remembered = Cache::new(REMEMBERED);
        let ended = Cache::builder().max_capacity(REMEMBERED).time_to_live(ENDED_FOR).build();
        let completeness = Mutex::new(Completeness::Whole);
        Self {
            remembered,
            ended,
            forgotten: AtomicU64::new(0),
            completeness,
            history,
            log,
            partitions,
        }
    }

    /// The log is away, or another one. Until it [came back](Self::log_is_back) nothing is surely not in it.
    pub fn log_is_away(&self) {
        self.note(Completeness::Doubtful);
    }

    /// Requests are published again, and soon those that the log lost are too.
    pub fn log_is_back(&self) {
        self.note(Completeness::DoubtfulUntil(Instant::now() + WHOLE_WITHIN));
    }

    fn note(&self, completeness: Completeness) {
        *self.completeness.lock().unwrap_or_else(PoisonError::into_inner) = completeness;
    }

    fn is_log_whole(&self) -> bool {
        match *self.completeness.lock().unwrap_or_else(PoisonError::into_inner) {
            Completeness::Whole => true,
            Completeness::Doubtful => false,
            Completeness::DoubtfulUntil(until) => until <= Instant::now(),
        }
    }

    /// Remembers a session that surely exists.
    pub fn remember(&self, session: SessionId) {
        self.remembered.insert(session, ());
    }

    /// The end of a session is in the log, or it is done.
    pub fn forget(&self, session: SessionId) {
        self.ended.insert(session, ());
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        self.remembered.invalidate(&session);
    }

    /// Any session may have been erased.
    pub fn forget_all(&self) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        self.remembered.invalidate_all();
    }

    /// Whether the session exists.
    pub async fn check(&self, session: SessionId) -> Existence {
        if self.remembered.contains_key(&session) {
            return Existence::Exists;
        }
        if self.ended.contains_key(&session) {
            return Existence::Absent;
        }
        let forgotten = self.forgotten.load(Ordering::Relaxed);
        // Boxed: every send would carry the room for a look that few of them need.
        let known = Box::pin(self.look_up(session)).await;
        if known == Existence::Exists && self.forgotten.load(Ordering::Relaxed) == forgotten {
            self.remember(session);
        }
        known
    }

    /// Asks both at once.
    async fn look_up(&self, session: SessionId) -> Existence {
        let postgres = std::pin::pin!(self.in_postgres(session));
        let log = std::pin::pin!(self.in_log(session));
        let (first, other) = match select(postgres, log).await {
            Either::Left((first, other)) => (first, Either::Left(other)),
            Either::Right((first, other)) => (first, Either::Right(other)),
        };
        let second = match first {
            Found::Exists => tokio::time::timeout(OBJECTION_TIMEOUT, other).await,
            _ => Ok(other.await),
        };
        let second = second.unwrap_or(Found::NoAnswer);
        if (first, second) == (Found::Nothing, Found::Nothing) {
            // It may have been stored after Postgres was asked, and gone from the log before that was: whatever
            // is stored is so first. In this order one of them has what there is.
            return judge(Found::Nothing, self.in_postgres(session).await);
        }
        judge(first, second)
    }

    async fn in_postgres(&self, session: SessionId) -> Found {
        match tokio::time::timeout(LOOKUP_TIMEOUT, self.history.storage_of(session)).await {
            Ok(Ok(Storage::Erased)) => Found::Erased,
            Ok(Ok(Storage::Stored)) => Found::Exists,
            Ok(Ok(Storage::Missing)) => Found::Nothing,
            Ok(Err(_)) | Err(_) => Found::NoAnswer,
        }
    }

    async fn in_log(&self, session: SessionId) -> Found {
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, self.told_by_log(session)).await;
        match found.ok().flatten() {
            Some(Found::Nothing) if !self.is_log_whole() => Found::NoAnswer,
            found => found.unwrap_or(Found::NoAnswer),
        }
    }

    /// What the last record says that says anything; `None` if the log does not answer, or cannot be read as far
    /// back as we look.
    async fn told_by_log(&self, session: SessionId) -> Option<Found> {
        let subject = self.subject(session);
        let mut last = self.log.last_record(&subject).await.ok()?;
        for _ in 0..LOOKED_AT_MAX {
            let Some(record) = last else { return Some(Found::Nothing) };
            if let Some(found) = told_by(session, &record.payload) {
                return Some(found);
            }
            last = self.log.last_record_before(&subject, record.sequence).await.ok()?;
        }
        tracing::warn!(session = session.short(), "nothing of a session in the log can be read");
        None
    }

    /// Whether the log holds something of the session behind this sequence, for all we know.
    pub async fn may_be_pending(&self, session: SessionId, stored: u64) -> bool {
        let subject = self.subject(session);
        let last = tokio::time::timeout(LOOKUP_TIMEOUT, self.log.last_record(&subject)).await;
        let last = last.ok().and_then(Result::ok);
        last.is_none_or(|last| last.is_some_and(|last| last.sequence > stored))
    }

    fn subject(&self, session: SessionId) -> String {
        subjects::request(self.partitions.partition_of(session), session)
    }
}

/// What a record says about the session of its subject; `None` if a persister sets it aside.
fn told_by(session: SessionId, payload: &[u8]) -> Option<Found> {
    match Record::decode(payload).ok()? {
        Record::Session(_) | Record::Message(_) => Some(Found::Exists),
        // It opens none.
        Record::Change(_) => None,
        Record::Erase(erasure) => {
            let is_its_own = SessionId::standing_for(&erasure.session_id) == session;
            is_its_own.then_some(Found::Erased)
        }
    }
}

/// What the answers of both mean.
fn judge(one: Found, other: Found) -> Existence {
    if [one, other].contains(&Found::Erased) {
        return Existence::Absent;
    }
    match (one, other) {
        (Found::Exists, _) | (_, Found::Exists) => Existence::Exists,
        (Found::Nothing, Found::Nothing) => Existence::Absent,
        _ => Existence::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_read_says_anything() {
        let session = SessionId::random();
        let told = |payload: &str| told_by(session, payload.as_bytes());
        let cuid = "cm4xyz789000000000000000a";
        let opening = format!(r#"{{"session":{{"id":"{cuid}","ip":null,"userAgent":null}}}}"#);
        let message =
            format!(r#"{{"message":{{"id":"{cuid}","sender":"user","content":"Hello!"}}}}"#);
        assert_eq!(told(&opening), Some(Found::Exists));
        assert_eq!(told(&message), Some(Found::Exists));
        let erase = |id: SessionId| format!(r#"{{"erase":{{"sessionId":"{id}"}}}}"#);
        assert_eq!(told(&erase(session)), Some(Found::Erased));
        assert_eq!(told(&erase(SessionId::random())), None);
        let change = format!(r#"{{"change":{{"id":"{cuid}","status":"closed"}}}}"#);
        assert!(Record::decode(change.as_bytes()).is_ok());
        assert_eq!(told(&change), None);
        for payload in ["", "garbage", "{}", "null", r#"{"message":{"id":"x"}}"#, r#"{"erase":{}}"#]
        {
            assert_eq!(told(payload), None, "{payload}");
        }
    }

    #[test]
    fn an_erased_session_is_unknown_whatever_the_other_says() {
        let all = [Found::Exists, Found::Erased, Found::Nothing, Found::NoAnswer];
        for other in all {
            assert_eq!(judge(Found::Erased, other), Existence::Absent);
            assert_eq!(judge(other, Found::Erased), Existence::Absent);
        }
        assert_eq!(judge(Found::NoAnswer, Found::Exists), Existence::Exists);
        assert_eq!(judge(Found::Nothing, Found::Exists), Existence::Exists);
        assert_eq!(judge(Found::Nothing, Found::Nothing), Existence::Absent);
        assert_eq!(judge(Found::Nothing, Found::NoAnswer), Existence::Unknown);
        assert_eq!(judge(Found::NoAnswer, Found::NoAnswer), Existence::Unknown);
    }
}
