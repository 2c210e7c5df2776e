//! Writes all sessions with their messages, newest first. While a page is written Postgres reads the next ones.

use std::collections::VecDeque;

use shared::session::StoredSession;
use tokio_util::task::AbortOnDropHandle;

use crate::db::history::History;
use crate::db::rows::{CHUNK_BYTES, Cursor, HistoryRow};
use crate::http::json_stream::{
    Chunk, PageSize, begin_session, end_session, long_content, separate, write_message,
};

/// Sessions read at a time.
pub const SESSIONS_PAGE: u16 = 200;
/// Pages that are read while one is written: with one, Postgres and the gateway waited for each other.
const AHEAD: usize = 2;
/// Messages written before everybody else has a turn.
const WRITTEN_AT_A_TIME: usize = 100;

/// Sessions next to each other whose messages are likely to make a page.
struct Group {
    sessions: Vec<StoredSession>,
    /// How many of them were read to their end.
    read: usize,
    /// Behind which message of the one after those the next page begins.
    seq: i64,
    /// How many of them were begun in JSON.
    begun: usize,
}

impl Group {
    /// At most so many of the messages that come next.
    async fn read(self, history: History, asked: u16) -> Read {
        let messages = self.page(&history, asked).await;
        Read { group: self, asked, messages }
    }

    async fn page(&self, history: &History, asked: u16) -> sqlx::Result<Vec<HistoryRow>> {
        let unread = self.sessions[self.read..].iter();
        let ids: Vec<_> = unread.map(|session| session.id.clone()).collect();
        let _permit = history.read_permit().await?;
        history.messages_of(&ids, self.seq, asked).await
    }
}

/// What Postgres gave of a group.
struct Read {
    group: Group,
    /// For how many messages it was asked.
    asked: u16,
    messages: sqlx::Result<Vec<HistoryRow>>,
}

/// The messages of a group that come next.
struct Page {
    group: Group,
    messages: Vec<HistoryRow>,
    /// What the first of them says, if that is too long to be read with others.
    long: Option<String>,
    /// How many sessions of the group stand before those that were read.
    before: usize,
}

/// Writes sessions with their messages.
pub struct AllChats {
    history: History,
    /// Behind which session the next ones begin; none before the first.
    behind: Option<Cursor>,
    /// Whether no others follow those at hand.
    is_last: bool,
    /// Sessions whose messages are not asked for yet.
    sessions: VecDeque<StoredSession>,
    /// How many of them are likely to make a page; all of them, before anything is known.
    width: usize,
    size: PageSize,
    /// Groups whose first messages are being read.
    reading: VecDeque<AbortOnDropHandle<Read>>,
    /// The one that was written last, if it has more messages.
    unfinished: Option<Group>,
    /// What stands before the first session and was not written yet.
    opening: Vec<u8>,
    first: bool,
}

impl AllChats {
    /// Those behind a session, or from the newest on.
    pub fn new(history: History, behind: Option<Cursor>) -> Self {
        Self {
            history,
            behind,
            is_last: false,
            sessions: VecDeque::new(),
            width: SESSIONS_PAGE.into(),
            size: PageSize::first(),
            reading: VecDeque::new(),
            unfinished: None,
            opening: b"[".to_vec(),
            first: true,
        }
    }

    /// Writes one page of so many sessions; gives its last one if others are behind it.
    pub async fn only(&mut self, limit: u16) -> Result<Option<Cursor>, sqlx::Error> {
        // One more tells whether there is a next page.
        let mut sessions = self.history.sessions(self.behind.as_ref(), limit + 1).await?;
        let more = sessions.len() > usize::from(limit);
        sessions.truncate(limit.into());
        let next = sessions.last().map(Cursor::from).filter(|_| more);
        (self.sessions, self.is_last) = (sessions.into(), true);
        Ok(next)
    }

    /// Reads until there is enough for a chunk: what fits into one is an answer as a whole.
    pub async fn next_chunk(&mut self) -> Result<Chunk, sqlx::Error> {
        let mut json = std::mem::take(&mut self.opening);
        json.reserve(CHUNK_BYTES);
        while json.len() < CHUNK_BYTES / 2 {
            if let Some(page) = self.next_page().await? {
                self.write(&mut json, page).await?;
            }
            if self.is_last && self.is_through() {
                json.push(b']');
                return Ok(Chunk::Last(json));
            }
        }
        Ok(Chunk::More(json))
    }

    /// Whether nothing is left of the sessions that were read.
    fn is_through(&self) -> bool {
        self.unfinished.is_none() && self.reading.is_empty() && self.sessions.is_empty()
    }

    /// The messages that come next; reading those behind them begins.
    async fn next_page(&mut self) -> sqlx::Result<Option<Page>> {
        let Read { mut group, asked, messages } = if let Some(group) = self.unfinished.take() {
            group.read(self.history.clone(), self.size.asked).await
        } else {
            self.read_ahead(1).await?;
            let Some(reading) = self.reading.pop_front() else { return Ok(None) };
            reading.await.map_err(|_| sqlx::Error::WorkerCrashed)?
        };
        let mut messages = messages?;
        let before = group.read;
        let is_through = self.size.fit(&mut messages, asked, CHUNK_BYTES)?;
        self.advance(&mut group, &messages, is_through)?;
        self.read_ahead(AHEAD).await?;
        let long = long_content(&self.history, &messages).await?;
        Ok(Some(Page { group, messages, long, before }))
    }

    /// Notes how far a group is read with these messages.
    fn advance(
        &mut self,
        group: &mut Group,
        messages: &[HistoryRow],
        is_through: bool,
    ) -> sqlx::Result<()> {
        let before = group.read;
        match messages.last() {
            Some(last) if !is_through => {
                // Its session may have more.
                group.read += usize::try_from(last.ord()? - 1).unwrap_or_default();
                group.seq = last.seq()?;
                if self.reading.is_empty() {
                    // It was too large a group, and nothing behind it is being read.
                    for session in group.sessions.drain(group.read + 1..).rev() {
                        self.sessions.push_front(session);
                    }
                }
            }
            _ => group.read = group.sessions.len(),
        }
        let sessions = (group.read - before).max(1);
        self.width = (usize::from(self.size.asked) * sessions).div_ceil(messages.len().max(1));
        Ok(())
    }

    async fn read_ahead(&mut self, pages: usize) -> sqlx::Result<()> {
        while self.reading.len() < pages {
            let Some(group) = self.next_group().await? else { break };
            let read = group.read(self.history.clone(), self.size.asked);
            self.reading.push_back(AbortOnDropHandle::new(tokio::spawn(read)));
        }
        Ok(())
    }

    async fn next_group(&mut self) -> sqlx::Result<Option<Group>> {
        if self.sessions.is_empty() && !self.is_last {
            let _permit = self.history.read_permit().await?;
            let sessions = self.history.sessions(self.behind.as_ref(), SESSIONS_PAGE).await?;
            self.is_last = sessions.len() < usize::from(SESSIONS_PAGE);
            self.behind = sessions.last().map(Cursor::from);
            self.sessions = sessions.into();
        }
        let count = self.width.min(self.sessions.len());
        let sessions: Vec<_> = self.sessions.drain(..count).collect();
        let group = Group { sessions, read: 0, seq: -1, begun: 0 };
        Ok((count > 0).then_some(group))
    }

    async fn write(&mut self, json: &mut Vec<u8>, page: Page) -> sqlx::Result<()> {
        let Page { mut group, messages, long, before } = page;
        for rows in messages.chunks(WRITTEN_AT_A_TIME) {
            // Meanwhile the next page is asked for, and everybody else has a turn.
            tokio::task::yield_now().await;
            for row in rows {
                let ord = usize::try_from(row.ord()?).unwrap_or_default().max(1);
                let mut first = self.begin_sessions(json, &mut group, before + ord);
                separate(json, &mut first);
                let chat_session_id = &group.sessions[before + ord - 1].id;
                let message = row.to_message_of(chat_session_id, long.as_deref())?;
                write_message(json, &message);
            }
        }
        let count = group.sessions.len();
        if group.read < count {
            self.unfinished = Some(group);
        } else {
            self.begin_sessions(json, &mut group, count);
            end_session(json);
        }
        Ok(())
    }

    /// Begins the sessions of a group up to this one, from 1, and ends those before it; `false` if it was begun before.
    fn begin_sessions(&mut self, json: &mut Vec<u8>, group: &mut Group, up_to: usize) -> bool {
        let begins = group.begun < up_to;
        while group.begun < up_to {
            if group.begun > 0 {
                end_session(json);
            }
            separate(json, &mut self.first);
            begin_session(json, &group.sessions[group.begun].to_head());
            group.begun += 1;
        }
        begins
    }
}
