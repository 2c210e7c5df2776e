//! Makes the lists of sessions that inboxes show.
//!
//! One task makes them, one at a time: whoever waits for the same list shares it. No list is made
//! where nobody waits for one. Its cost follows the sessions in it, never those in the database.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use shared::ids::SessionId;
use shared::lifecycle::Stop;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::Gateway;
use crate::connection::Answer;
use crate::error::ClientError;
use crate::history::{Cursor, ListedSession};
use crate::listing::Entry;

/// The event that carries the active sessions.
const SESSIONS_LIST: &str = "sessions-list";
/// The event that carries active and older sessions.
const ALL_SESSIONS_LIST: &str = "all-sessions-list";
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

/// Which list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The active sessions.
    Active,
    /// The active sessions, then the newest.
    All,
    /// A page of all sessions, newest first.
    Page {
        /// After which session; none for the first page.
        after: Option<Cursor>,
        /// Most sessions.
        limit: u16,
    },
}

/// A request for a list.
pub struct Asked {
    wanted: Wanted,
    answer: Answer,
    done: oneshot::Sender<()>,
}

/// Where lists are asked for.
pub struct Lists(mpsc::Sender<Asked>);

/// A list, ready to be sent.
struct List {
    sessions: Box<RawValue>,
    next_cursor: Option<Cursor>,
    revision: u64,
}

/// The ack.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    sessions: &'a RawValue,
    next_cursor: Option<String>,
}

impl Lists {
    /// The place to ask, and what [`make`] takes the requests from.
    pub fn new() -> (Self, mpsc::Receiver<Asked>) {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        (Self(asks), asked)
    }

    /// Waits until the list is given.
    pub async fn give(&self, wanted: Wanted, answer: Answer) {
        let (done, given) = oneshot::channel();
        // Both fail at the stop only.
        if self.0.send(Asked { wanted, answer, done }).await.is_ok() {
            given.await.ok();
        }
    }
}

/// Makes lists until the stop.
pub async fn make(
    gateway: Arc<Gateway>,
    mut asked: mpsc::Receiver<Asked>,
    stop: Stop,
) -> anyhow::Result<()> {
    let mut earliest = Instant::now();
    let mut waiting = Vec::new();
    let inboxes = &gateway.inboxes;
    let work = async {
        loop {
            let due = inboxes.due_at().map(|due| due.max(earliest));
            tokio::select! {
                _ = asked.recv_many(&mut waiting, ASKS_MAX) => {
                    answer(&gateway, std::mem::take(&mut waiting)).await;
                }
                () = inboxes.change(), if due.is_none() => {}
                () = tokio::time::sleep_until(due.unwrap_or(earliest)), if due.is_some() => {
                    earliest = match list(&gateway, &Wanted::Active).await {
                        Some(list) => {
                            inboxes.give(SESSIONS_LIST, &list.sessions, list.revision);
                            Instant::now() + SHARE
                        }
                        None => Instant::now() + RETRY,
                    };
                }
            }
        }
    };
    stop.run_until_cancelled(work).await;
    Ok(())
}

/// Answers all these, with one list for those who want the same.
async fn answer(gateway: &Gateway, mut asked: Vec<Asked>) {
    while let Some(wanted) = asked.first().map(|asked| asked.wanted.clone()) {
        let list = list(gateway, &wanted).await;
        for asked in asked.extract_if(.., |asked| asked.wanted == wanted) {
            match &list {
                Some(list) => list.give(gateway, &wanted, asked.answer),
                None => asked.answer.refuse(&ClientError::unavailable()),
            }
            // Nobody waits any more at the stop only.
            asked.done.send(()).ok();
        }
    }
}

impl List {
    fn give(&self, gateway: &Gateway, wanted: &Wanted, answer: Answer) {
        match wanted {
            Wanted::Active => {
                answer.emit(SESSIONS_LIST, &*self.sessions);
                gateway.inboxes.given(&answer.socket, self.revision);
            }
            Wanted::All | Wanted::Page { .. } => answer.emit(ALL_SESSIONS_LIST, &*self.sessions),
        }
        let next_cursor = self.next_cursor.as_ref().map(Cursor::to_string);
        answer.send(&Listed { sessions: &self.sessions, next_cursor });
    }
}

async fn list(gateway: &Gateway, wanted: &Wanted) -> Option<List> {
    // Read first: what changes meanwhile is another list's.
    let revision = gateway.inboxes.revision();
    let found = match wanted {
        Wanted::Active => active(gateway, ACTIVE_MAX).await.map(|sessions| (sessions, None)),
        Wanted::All => all(gateway).await,
        Wanted::Page { after, limit } => page(gateway, after.as_ref(), *limit).await,
    };
    match found {
        Ok((sessions, next_cursor)) => {
            Some(List { sessions: encode(gateway, &sessions)?, next_cursor, revision })
        }
        Err(error) => {
            tracing::warn!(%error, "a list of sessions cannot be read");
            None
        }
    }
}

type Page = (Vec<ListedSession>, Option<Cursor>);

/// Active sessions that are stored.
async fn active(gateway: &Gateway, max: usize) -> sqlx::Result<Vec<ListedSession>> {
    let mut sessions = Vec::new();
    for some in gateway.presence.recent(max).chunks(ACTIVE_MAX) {
        sessions.extend(gateway.history.listed(some).await?);
    }
    Ok(sessions)
}

async fn all(gateway: &Gateway) -> sqlx::Result<Page> {
    let mut sessions = active(gateway, ALL_ACTIVE_MAX).await?;
    let (newest, next) = page(gateway, None, NEWEST).await?;
    let listed: HashSet<_> = sessions.iter().map(|session| session.id.clone()).collect();
    sessions.extend(newest.into_iter().filter(|session| !listed.contains(&session.id)));
    Ok((sessions, next))
}

async fn page(gateway: &Gateway, after: Option<&Cursor>, limit: u16) -> sqlx::Result<Page> {
    let mut sessions = gateway.history.newest(after, limit + 1).await?;
    let more = sessions.len() > usize::from(limit);
    sessions.truncate(limit.into());
    let next = sessions.last().filter(|_| more).map(ListedSession::cursor);
    Ok((sessions, next))
}

fn encode(gateway: &Gateway, sessions: &[ListedSession]) -> Option<Box<RawValue>> {
    let is_active = |session: &ListedSession| {
        SessionId::parse(&session.session_id).is_ok_and(|id| gateway.presence.is_active(id))
    };
    let zone = &gateway.config.inbox_zone;
    let entry = |session| Entry::new(session, is_active(session), zone);
    to_raw_value(&sessions.iter().map(entry).collect::<Vec<_>>()).ok()
}
