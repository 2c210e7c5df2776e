//! Writes all sessions with their messages, newest first. While a page is written Postgres looks for the next one.

use shared::database::StoredSession;
use tokio::task::JoinSet;

use crate::db::history::History;
use crate::db::rows::{CHUNK_BYTES, Cursor, MessageOf};
use crate::http::json_stream::{Chunk, PageSize, begin_session, end_session, separate, write};

/// Sessions read at a time.
pub const SESSIONS_PAGE: u16 = 200;
/// Messages written before everybody else has a turn.
const WRITTEN_AT_A_TIME: usize = 100;

/// A page of messages.
struct Page {
    /// The sessions that it begins with, unless it goes on with those of the page before.
    sessions: Option<Vec<StoredSession>>,
    messages: Vec<MessageOf>,
    /// Whether these sessions have no more messages.
    is_last: bool,
    /// Whether nothing follows at all.
    ends: bool,
}

/// Reads sessions with their messages.
struct Pages {
    history: History,
    /// Behind which session the next page of sessions begins; none before the first.
    behind: Option<Cursor>,
    /// The only page of sessions, before it is read from.
    only: Option<Vec<StoredSession>>,
    /// Whether no other sessions follow.
    is_last: bool,
    /// Keys of the sessions at hand, as they are asked for.
    ids: Vec<String>,
    /// Behind which message the next page begins: the number of its session, from 1, and its `seq`.
    from: (i64, i64),
    size: PageSize,
}

impl Pages {
    async fn next(&mut self) -> sqlx::Result<Option<Page>> {
        let _permit = self.history.read_permit().await?;
        let sessions = if self.ids.is_empty() { Some(self.sessions().await?) } else { None };
        if self.ids.is_empty() {
            return Ok(None);
        }
        let asked = self.size.asked;
        let mut messages = self.history.messages_of(&self.ids, self.from, asked).await?;
        let is_last = self.size.fit(&mut messages, CHUNK_BYTES, |row| &row.message);
        if let Some(last) = messages.last() {
            self.from = (last.ord, last.message.seq);
        }
        if is_last {
            self.ids.clear();
        }
        Ok(Some(Page { sessions, messages, is_last, ends: is_last && self.is_last }))
    }

    /// The next page of sessions; empty if there is none.
    async fn sessions(&mut self) -> sqlx::Result<Vec<StoredSession>> {
        let sessions = match self.only.take() {
            Some(only) => only,
            None if self.is_last => Vec::new(),
            None => self.history.sessions(self.behind.as_ref(), SESSIONS_PAGE).await?,
        };
        self.is_last |= sessions.len() < usize::from(SESSIONS_PAGE);
        self.behind = sessions.last().map(Cursor::from);
        self.ids = sessions.iter().map(|session| session.id.clone()).collect();
        self.from = (1, -1);
        Ok(sessions)
    }
}

/// Writes sessions with their messages. While a page is written Postgres looks for the next one.
pub struct AllChats {
    /// Those that nobody reads from at present.
    pages: Option<Pages>,
    reading: JoinSet<(Pages, sqlx::Result<Option<Page>>)>,
    /// Sessions of the present page.
    sessions: Vec<StoredSession>,
    /// Sessions of the page whose JSON was begun.
    begun: usize,
    first_session: bool,
    first_message: bool,
    started: bool,
}

impl AllChats {
    /// Those behind a session, or from the newest on.
    pub fn new(history: History, behind: Option<Cursor>) -> Self {
        let (only, is_last, ids, from) = (None, false, Vec::new(), (1, -1));
        Self {
            pages: Some(Pages {
                history,
                behind,
                only,
                is_last,
                ids,
                from,
                size: PageSize::first(),
            }),
            reading: JoinSet::new(),
            sessions: Vec::new(),
            begun: 0,
            first_session: true,
            first_message: true,
            started: false,
        }
    }

    /// Writes one page of so many sessions; gives its last one if others are behind it.
    pub async fn only(&mut self, limit: u16) -> Result<Option<Cursor>, sqlx::Error> {
        let Some(pages) = &mut self.pages else { return Ok(None) };
        // One more tells whether there is a next page.
        let mut sessions = pages.history.sessions(pages.behind.as_ref(), limit + 1).await?;
        let more = sessions.len() > usize::from(limit);
        sessions.truncate(limit.into());
        let next = sessions.last().map(Cursor::from).filter(|_| more);
        (pages.only, pages.is_last) = (Some(sessions), true);
        Ok(next)
    }

    /// The next part of the answer.
    pub async fn next_chunk(&mut self) -> Result<Chunk, sqlx::Error> {
        let mut json =
            if std::mem::replace(&mut self.started, true) { Vec::new() } else { b"[".to_vec() };
        let Some(page) = self.next_page().await? else {
            json.push(b']');
            return Ok(Chunk::Last(json));
        };
        if let Some(sessions) = page.sessions {
            (self.sessions, self.begun) = (sessions, 0);
        }
        for rows in page.messages.chunks(WRITTEN_AT_A_TIME) {
            // Meanwhile the next page is asked for, and everybody else has a turn.
            tokio::task::yield_now().await;
            for row in rows {
                self.begin_sessions(&mut json, usize::try_from(row.ord).unwrap_or_default());
                separate(&mut json, &mut self.first_message);
                write(&mut json, &row.message.to_message());
            }
        }
        if page.is_last {
            self.begin_sessions(&mut json, self.sessions.len());
            end_session(&mut json);
        }
        if page.ends {
            json.push(b']');
            return Ok(Chunk::Last(json));
        }
        Ok(Chunk::More(json))
    }

    /// The next page; reading the one behind it begins.
    async fn next_page(&mut self) -> sqlx::Result<Option<Page>> {
        if let Some(pages) = self.pages.take() {
            self.read(pages);
        }
        let Some(read) = self.reading.join_next().await else { return Ok(None) };
        let (pages, page) = read.map_err(|_| sqlx::Error::WorkerCrashed)?;
        let page = page?;
        if page.as_ref().is_some_and(|page| !page.ends) {
            self.read(pages);
        }
        Ok(page)
    }

    fn read(&mut self, mut pages: Pages) {
        self.reading.spawn(async move {
            let page = pages.next().await;
            (pages, page)
        });
    }

    /// Begins the sessions of the page up to this one, from 1, and ends those before it.
    fn begin_sessions(&mut self, json: &mut Vec<u8>, up_to: usize) {
        while self.begun < up_to {
            if self.begun > 0 {
                end_session(json);
            }
            let session = &self.sessions[self.begun];
            separate(json, &mut self.first_session);
            begin_session(json, session);
            self.begun += 1;
            self.first_message = true;
        }
    }
}
