//! Which sessions exist: those that Postgres has, and those that the log's last record on their
//! subject tells of. "Unknown" needs both answers, and so does "known": either may say that the session
//! was erased.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use futures_util::future::{Either, select};
use moka::sync::Cache;
use shared::ids::SessionId;
use shared::partition::PartitionCount;
use shared::request::Request;
use shared::subjects;

use crate::history::History;

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

/// Looks sessions up and remembers those that exist.
pub struct KnownSessions {
    remembered: Cache<SessionId, ()>,
    ended: Cache<SessionId, ()>,
    /// Counts what was forgotten: an answer from before may be out of date.
    forgotten: AtomicU64,
    history: History,
    log: Stream,
    partitions: PartitionCount,
}

/// Whether a session exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It does.
    Yes,
    /// Neither Postgres nor the log has it, or it was erased.
    No,
    /// One of them cannot be asked and the other does not have it.
    Unsure,
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

impl KnownSessions {
    /// Asks these two.
    pub fn new(history: History, log: Stream, partitions: PartitionCount) -> Self {
        let remembered = Cache::new(REMEMBERED);
        let ended = Cache::builder().max_capacity(REMEMBERED).time_to_live(ENDED_FOR).build();
        Self { remembered, ended, forgotten: AtomicU64::new(0), history, log, partitions }
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
    pub async fn check(&self, session: SessionId) -> Known {
        if self.remembered.contains_key(&session) {
            return Known::Yes;
        }
        if self.ended.contains_key(&session) {
            return Known::No;
        }
        let forgotten = self.forgotten.load(Ordering::Relaxed);
        // Boxed: every send would carry the room for a look that few of them need.
        let known = Box::pin(self.look_up(session)).await;
        if known == Known::Yes && self.forgotten.load(Ordering::Relaxed) == forgotten {
            self.remember(session);
        }
        known
    }

    /// Asks both at once.
    async fn look_up(&self, session: SessionId) -> Known {
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
        judge(first, second.unwrap_or(Found::NoAnswer))
    }

    async fn in_postgres(&self, session: SessionId) -> Found {
        match tokio::time::timeout(LOOKUP_TIMEOUT, self.history.session_exists(session)).await {
            Ok(Ok((_, true))) => Found::Erased,
            Ok(Ok((true, false))) => Found::Exists,
            Ok(Ok((false, false))) => Found::Nothing,
            Ok(Err(_)) | Err(_) => Found::NoAnswer,
        }
    }

    async fn in_log(&self, session: SessionId) -> Found {
        match self.last_in_log(session).await {
            Some(Some(last)) => match Request::decode(&last.payload) {
                Ok(Request::Erase(_)) => Found::Erased,
                _ => Found::Exists,
            },
            Some(None) => Found::Nothing,
            None => Found::NoAnswer,
        }
    }

    /// Whether the log holds something of the session behind this sequence, for all we know.
    pub async fn may_be_pending(&self, session: SessionId, stored: u64) -> bool {
        let last = self.last_in_log(session).await;
        last.is_none_or(|last| last.is_some_and(|last| last.sequence > stored))
    }

    /// The session's last record, if it has one; `None` if the log does not answer.
    async fn last_in_log(&self, session: SessionId) -> Option<Option<StreamMessage>> {
        let subject = subjects::request(self.partitions.partition_of(session), session);
        tokio::time::timeout(LOOKUP_TIMEOUT, self.last_of(subject)).await.ok().flatten()
    }

    async fn last_of(&self, subject: String) -> Option<Option<StreamMessage>> {
        let copies = self.log.cached_info().config.num_replicas;
        match self.log.direct_get_last_for_subject(subject.as_str()).await {
            Ok(last) => Some(Some(last)),
            Err(error) if error.kind() != DirectGetErrorKind::NotFound => None,
            Err(_) if copies == 1 => Some(None),
            // Any server of a cluster answers, and not each has it already; the one that leads does.
            Err(_) => shared::log::last_record(&self.log, &subject).await.ok(),
        }
    }
}

/// What the answers of both mean.
fn judge(one: Found, other: Found) -> Known {
    if [one, other].contains(&Found::Erased) {
        return Known::No;
    }
    match (one, other) {
        (Found::Exists, _) | (_, Found::Exists) => Known::Yes,
        (Found::Nothing, Found::Nothing) => Known::No,
        _ => Known::Unsure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_erased_session_is_unknown_whatever_the_other_says() {
        let all = [Found::Exists, Found::Erased, Found::Nothing, Found::NoAnswer];
        for other in all {
            assert_eq!(judge(Found::Erased, other), Known::No);
            assert_eq!(judge(other, Found::Erased), Known::No);
        }
        assert_eq!(judge(Found::NoAnswer, Found::Exists), Known::Yes);
        assert_eq!(judge(Found::Nothing, Found::Exists), Known::Yes);
        assert_eq!(judge(Found::Nothing, Found::Nothing), Known::No);
        assert_eq!(judge(Found::Nothing, Found::NoAnswer), Known::Unsure);
        assert_eq!(judge(Found::NoAnswer, Found::NoAnswer), Known::Unsure);
    }
}
