//! Which sessions exist: those that Postgres has, and those that the log's last record on their
//! subject tells of. "Unknown" needs both answers.

use std::time::Duration;

use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use moka::sync::Cache;
use shared::ids::SessionId;
use shared::partition::PartitionCount;
use shared::subjects;

use crate::history::History;

/// Sessions remembered. One takes about 100 bytes; a session that was forgotten is looked up again.
const REMEMBERED: u64 = 100_000;
/// Longest wait for either answer.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Looks sessions up and remembers those that exist.
pub struct KnownSessions {
    remembered: Cache<SessionId, ()>,
    history: History,
    log: Stream,
    partitions: PartitionCount,
}

/// Whether a session exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It does.
    Yes,
    /// Neither Postgres nor the log has it.
    No,
    /// One of them cannot be asked and the other does not have it.
    Unsure,
}

impl KnownSessions {
    /// Asks these two.
    pub fn new(history: History, log: Stream, partitions: PartitionCount) -> Self {
        Self { remembered: Cache::new(REMEMBERED), history, log, partitions }
    }

    /// Remembers a session that surely exists.
    pub fn remember(&self, session: SessionId) {
        self.remembered.insert(session, ());
    }

    /// Whether the session exists.
    pub async fn check(&self, session: SessionId) -> Known {
        if self.remembered.contains_key(&session) {
            return Known::Yes;
        }
        let known = self.look_up(session).await;
        if known == Known::Yes {
            self.remember(session);
        }
        known
    }

    /// Asks both at once: whoever answers "yes" first decides.
    async fn look_up(&self, session: SessionId) -> Known {
        let postgres = std::pin::pin!(self.in_postgres(session));
        let log = std::pin::pin!(self.in_log(session));
        let (first, second) = match futures_util::future::select(postgres, log).await {
            futures_util::future::Either::Left((Known::Yes, _))
            | futures_util::future::Either::Right((Known::Yes, _)) => return Known::Yes,
            futures_util::future::Either::Left((first, other)) => (first, other.await),
            futures_util::future::Either::Right((first, other)) => (first, other.await),
        };
        match (first, second) {
            (Known::Yes, _) | (_, Known::Yes) => Known::Yes,
            (Known::No, Known::No) => Known::No,
            _ => Known::Unsure,
        }
    }

    async fn in_postgres(&self, session: SessionId) -> Known {
        match tokio::time::timeout(LOOKUP_TIMEOUT, self.history.session_exists(session)).await {
            Ok(Ok(true)) => Known::Yes,
            Ok(Ok(false)) => Known::No,
            Ok(Err(_)) | Err(_) => Known::Unsure,
        }
    }

    async fn in_log(&self, session: SessionId) -> Known {
        match self.last_in_log(session).await {
            Some(Some(_)) => Known::Yes,
            Some(None) => Known::No,
            None => Known::Unsure,
        }
    }

    /// Whether the log holds something of the session behind this sequence, for all we know.
    pub async fn may_be_pending(&self, session: SessionId, stored: u64) -> bool {
        let last = self.last_in_log(session).await;
        last.is_none_or(|last| last.is_some_and(|last| last > stored))
    }

    /// Sequence of the session's last record, if it has one; `None` if the log does not answer.
    async fn last_in_log(&self, session: SessionId) -> Option<Option<u64>> {
        let subject = subjects::request(self.partitions.partition_of(session), session);
        let last = self.log.direct_get_last_for_subject(subject);
        match tokio::time::timeout(LOOKUP_TIMEOUT, last).await {
            Ok(Ok(last)) => Some(Some(last.sequence)),
            Ok(Err(error)) if error.kind() == DirectGetErrorKind::NotFound => Some(None),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}
