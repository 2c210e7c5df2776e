//! Makes the lists of sessions that inboxes show.
//!
//! One task makes them, one at a time: all who wait for the same list share it. No list is made
//! where nobody waits for one. Its cost follows the sessions in it, never those in the database.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use shared::lifecycle::Stop;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::db::history::History;
use crate::db::rows::{Cursor, ListedSession};
use crate::delivery::inboxes::Inboxes;
use crate::emitted::Emitted;
use crate::inbox::entry::Entries;
use crate::presence::active::Presence;

/// Most sessions in `sessions-list`, and of one look into the database.
const ACTIVE_MAX: usize = 500;
/// Most active sessions in `all-sessions-list`: 2.5 MB of JSON, more than any page shows.
const ALL_ACTIVE_MAX: usize = 10_000;
/// The newest sessions in `all-sessions-list`, and those of a page unless it says otherwise.
pub const NEWEST: u16 = 200;
/// Requests that wait at a time; each socket has one, and waits for a place.
const ASKS_MAX: usize = 1_024;
/// Inboxes that are due at nearly the same time share a list.
const SHARE: Duration = Duration::from_millis(250);
/// Pause after a list could not be made.
const RETRY: Duration = Duration::from_secs(1);

type Page = (Vec<ListedSession>, Option<Cursor>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Active,
    /// The active sessions, then the newest.
    All,
    /// A page of all sessions, newest first.
    Page {
        /// After which session; none for the first page.
        after: Option<Cursor>,
        limit: u16,
    },
}

/// A request for a list.
struct Request {
    wanted: Wanted,
    reply: oneshot::Sender<Reply>,
}

/// The list, shared by all who asked for it; `None` if it cannot be read.
type Reply = Option<Arc<List>>;

/// Where lists are asked for.
pub struct Lists(mpsc::Sender<Request>);

/// A list, ready to be sent.
pub struct List {
    /// The sessions as JSON.
    pub sessions: Box<RawValue>,
    /// Where the next page begins, if there is one.
    pub next_cursor: Option<Cursor>,
    /// What of all changes it shows.
    pub revision: u64,
}

/// Why there is no list.
pub enum NoList {
    /// Postgres does not answer.
    Unreadable,
    /// The gateway stops, and nobody is answered any more.
    Stopping,
}

pub struct ListMaker {
    history: History,
    presence: Arc<Presence>,
    inboxes: Arc<Inboxes>,
    entries: Arc<Entries>,
    requests: mpsc::Receiver<Request>,
}

impl Lists {
    /// The place to ask, and what makes the lists.
    pub fn new(
        history: History,
        presence: Arc<Presence>,
        inboxes: Arc<Inboxes>,
        entries: Arc<Entries>,
    ) -> (Self, ListMaker) {
        let (asks, requests) = mpsc::channel(ASKS_MAX);
        (Self(asks), ListMaker { history, presence, inboxes, entries, requests })
    }

    /// Waits until the list is made.
    pub async fn list(&self, wanted: Wanted) -> Result<Arc<List>, NoList> {
        let (reply, made) = oneshot::channel();
        // Both fail at the stop only.
        self.0.send(Request { wanted, reply }).await.map_err(|_| NoList::Stopping)?;
        made.await.map_err(|_| NoList::Stopping)?.ok_or(NoList::Unreadable)
    }
}

impl ListMaker {
    /// Makes lists until the stop.
    pub async fn run(mut self, stop: Stop) -> anyhow::Result<()> {
        stop.run_until_cancelled(self.make_lists()).await;
        Ok(())
    }

    async fn make_lists(&mut self) {
        let inboxes = Arc::clone(&self.inboxes);
        let mut earliest = Instant::now();
        let mut waiting = Vec::new();
        loop {
            let due = inboxes.due_at().map(|due| due.max(earliest));
            tokio::select! {
                _ = self.requests.recv_many(&mut waiting, ASKS_MAX) => {
                    self.answer(std::mem::take(&mut waiting)).await;
                }
                () = inboxes.change(), if due.is_none() => {}
                () = tokio::time::sleep_until(due.unwrap_or(earliest)), if due.is_some() => {
                    earliest = match self.list(&Wanted::Active).await {
                        Some(list) => {
                            inboxes.give(Emitted::SessionsList, &list.sessions, list.revision);
                            Instant::now() + SHARE
                        }
                        None => Instant::now() + RETRY,
                    };
                }
            }
        }
    }

    /// Answers all these, with one list for those who want the same.
    async fn answer(&self, mut requests: Vec<Request>) {
        while let Some(wanted) = requests.first().map(|request| request.wanted.clone()) {
            let list = self.list(&wanted).await.map(Arc::new);
            for request in requests.extract_if(.., |request| request.wanted == wanted) {
                // Nobody waits any more at the stop only.
                request.reply.send(list.clone()).ok();
            }
        }
    }

    async fn list(&self, wanted: &Wanted) -> Option<List> {
        // Read first: what changes meanwhile is another list's.
        let revision = self.inboxes.revision();
        let found = match wanted {
            Wanted::Active => self.active(ACTIVE_MAX).await.map(|sessions| (sessions, None)),
            Wanted::All => self.all().await,
            Wanted::Page { after, limit } => self.page(after.as_ref(), *limit).await,
        };
        match found {
            Ok((sessions, next_cursor)) => {
                Some(List { sessions: self.entries.list(&sessions)?, next_cursor, revision })
            }
            Err(error) => {
                tracing::warn!(%error, "a list of sessions cannot be read");
                None
            }
        }
    }

    /// Active sessions that are stored.
    async fn active(&self, max: usize) -> sqlx::Result<Vec<ListedSession>> {
        let mut sessions = Vec::new();
        for some in self.presence.recent(max).chunks(ACTIVE_MAX) {
            sessions.extend(self.history.listed(some).await?);
        }
        Ok(sessions)
    }

    async fn all(&self) -> sqlx::Result<Page> {
        let mut sessions = self.active(ALL_ACTIVE_MAX).await?;
        let (newest, next) = self.page(None, NEWEST).await?;
        let listed: HashSet<_> = sessions.iter().map(|session| session.id.clone()).collect();
        sessions.extend(newest.into_iter().filter(|session| !listed.contains(&session.id)));
        Ok((sessions, next))
    }

    async fn page(&self, after: Option<&Cursor>, limit: u16) -> sqlx::Result<Page> {
        let mut sessions = self.history.newest(after, limit + 1).await?;
        let more = sessions.len() > usize::from(limit);
        sessions.truncate(limit.into());
        let next = sessions.last().filter(|_| more).map(ListedSession::cursor);
        Ok((sessions, next))
    }
}
