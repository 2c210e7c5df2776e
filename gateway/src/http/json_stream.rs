//! Long answers as JSON, chunk by chunk: what is read of a history at a time, and how it is sent.

use std::io;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use shared::database::StoredSession;

use crate::db::rows::{StoredMessage, fitting};
use crate::error::ClientError;
use crate::problem::Problem;

/// As Express writes it.
pub const JSON: &str = "application/json; charset=utf-8";
/// Most messages read at a time.
pub const MESSAGES_PAGE: u16 = 1_000;
/// Messages read at first, when nobody knows how long they are.
const FIRST_PAGE: u16 = 100;
/// Ends what [`begin_session`] begins.
pub const SESSION_END: &[u8] = b"]}";

/// What ends an answer before its end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Postgres does not answer.
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    /// Something that was there when an export began is not there any more.
    #[error("the session was erased meanwhile")]
    Erased,
}

impl From<Broken> for Problem {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Postgres(error) => error.into(),
            Broken::Erased => ClientError::session_not_found().into(),
        }
    }
}

/// A part of an answer; the last one ends it.
pub enum Chunk {
    More(Vec<u8>),
    Last(Vec<u8>),
}

/// An answer of one chunk as a whole, a longer one as a stream.
pub fn streamed<S, F, Next>(first: Chunk, state: S, next: F) -> Body
where
    S: Send + 'static,
    F: Fn(S) -> Next + Send + 'static,
    Next: Future<Output = Result<(Chunk, S), Broken>> + Send + 'static,
{
    match first {
        Chunk::Last(bytes) => Body::from(bytes),
        Chunk::More(bytes) => {
            let first = stream::iter([Ok(Bytes::from(bytes))]);
            let rest = stream::try_unfold(Some((state, next)), |state| async move {
                let Some((state, next)) = state else { return Ok(None) };
                match next(state).await {
                    Ok((Chunk::More(bytes), state)) => {
                        Ok(Some((Bytes::from(bytes), Some((state, next)))))
                    }
                    Ok((Chunk::Last(bytes), _)) => Ok(Some((Bytes::from(bytes), None))),
                    Err(error) => {
                        tracing::warn!(%error, "a history answer is aborted");
                        Err(io::Error::other(error))
                    }
                }
            });
            Body::from_stream(futures_util::StreamExt::chain(first, rest))
        }
    }
}

/// How many messages to read at a time, so that they make a chunk.
#[derive(Clone, Copy)]
pub struct PageSize {
    /// Messages to ask for.
    pub asked: u16,
}

impl PageSize {
    /// Before anything is known of them.
    pub fn first() -> Self {
        Self { asked: FIRST_PAGE }
    }

    /// Leaves of a page what fits into so much room; `true` if no others follow. As many as fitted are asked for next
    /// time, and some more.
    pub fn fit<T>(
        &mut self,
        page: &mut Vec<T>,
        room: usize,
        message: impl Fn(&T) -> &StoredMessage,
    ) -> bool {
        let kept = fitting(page.iter().map(message), room);
        let is_last = page.len() < usize::from(self.asked) && kept == page.len();
        let next =
            if kept < page.len() { kept + kept / 4 + 1 } else { 4 * usize::from(self.asked) };
        page.truncate(kept);
        self.asked = u16::try_from(next).unwrap_or(MESSAGES_PAGE).min(MESSAGES_PAGE);
        is_last
    }
}

/// Writes a session up to its messages.
pub fn begin_session(json: &mut Vec<u8>, session: &StoredSession) {
    write(json, &session.to_head());
    // The head is an object: its brace gives way to the messages.
    json.pop();
    json.extend_from_slice(br#","messages":["#);
}

/// Writes what stands behind them.
pub fn end_session(json: &mut Vec<u8>) {
    json.extend_from_slice(SESSION_END);
}

/// Writes a comma before all but the first.
pub fn separate(json: &mut Vec<u8>, first: &mut bool) {
    if !std::mem::replace(first, false) {
        json.push(b',');
    }
}

/// Writes a value. Writing these types to memory cannot fail: they have no maps with odd keys.
pub fn write<T: Serialize>(json: &mut Vec<u8>, value: &T) {
    if let Err(error) = serde_json::to_writer(json, value) {
        tracing::error!(%error, "a row cannot be written as JSON");
    }
}
