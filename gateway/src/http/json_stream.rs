//! Long answers as JSON, chunk by chunk: what is read of a history at a time, and how it is sent.

use std::io;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use shared::message::Message;

use crate::db::history::History;
use crate::db::rows::{CHUNK_BYTES, HistoryRow};
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

    /// Leaves of a page, for which so many were asked, what fits into so much room, or twice as much: what was read and
    /// is left out is read again. `true` if no others follow. So many are asked for next time as make a chunk if they
    /// are as long as these.
    pub fn fit(
        &mut self,
        page: &mut Vec<HistoryRow>,
        asked: u16,
        room: usize,
    ) -> sqlx::Result<bool> {
        let (mut kept, mut bytes) = (0, 0);
        for row in &*page {
            match row.bytes()? {
                Some(more) if kept == 0 || bytes + more <= 2 * room => bytes += more,
                // Its content is read when its turn comes.
                None if kept == 0 => bytes = CHUNK_BYTES,
                _ => break,
            }
            kept += 1;
            if bytes >= 2 * room {
                break;
            }
        }
        let is_last = page.len() < usize::from(asked) && kept == page.len();
        page.truncate(kept);
        if let Some(average) = bytes.checked_div(kept) {
            let next = CHUNK_BYTES / average.max(1);
            self.asked = u16::try_from(next).unwrap_or(MESSAGES_PAGE).clamp(1, MESSAGES_PAGE);
        }
        Ok(is_last)
    }
}

/// What the first message of a page says, if that was too long to be read with others. An error if it was erased
/// meanwhile: nothing in its place would look like what it said.
pub async fn long_content(history: &History, page: &[HistoryRow]) -> sqlx::Result<Option<String>> {
    match page.first() {
        Some(row) if row.bytes()?.is_none() => {
            let content = history.content(row.id()?).await?;
            content.map(Some).ok_or(sqlx::Error::RowNotFound)
        }
        _ => Ok(None),
    }
}

/// Writes a session up to its messages.
pub fn begin_session<T: Serialize>(json: &mut Vec<u8>, head: &T) {
    write(json, head);
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

/// Writes a message as serde does, which looks at each byte of a text: most have none that must be escaped, and an
/// answer of all histories is little else than texts.
pub fn write_message(json: &mut Vec<u8>, message: &Message<'_>) {
    json.extend_from_slice(br#"{"id":"#);
    write_text(json, message.id);
    json.extend_from_slice(br#","sender":"#);
    write_text(json, message.sender);
    json.extend_from_slice(br#","content":"#);
    write_text(json, message.content);
    json.extend_from_slice(br#","createdAt":"#);
    write(json, &message.created_at);
    json.extend_from_slice(br#","isAI":"#);
    json.extend_from_slice(if message.is_ai { b"true" } else { b"false" });
    json.extend_from_slice(br#","chatSessionId":"#);
    write_text(json, message.chat_session_id);
    json.push(b'}');
}

fn write_text(json: &mut Vec<u8>, text: &str) {
    // Without an early end, for the compiler to take many bytes at a time.
    let escaped = text.bytes().filter(|byte| matches!(byte, 0..0x20 | b'"' | b'\\'));
    if escaped.count() > 0 {
        return write(json, &text);
    }
    json.push(b'"');
    json.extend_from_slice(text.as_bytes());
    json.push(b'"');
}

/// Writes a value. Writing these types to memory cannot fail: they have no maps with odd keys.
pub fn write<T: Serialize>(json: &mut Vec<u8>, value: &T) {
    if let Err(error) = serde_json::to_writer(json, value) {
        tracing::error!(%error, "a row cannot be written as JSON");
    }
}

#[cfg(test)]
mod tests {
    use shared::timestamp::Timestamp;

    use super::*;

    #[test]
    fn messages_are_written_as_serde_writes_them() {
        let every = (0..=0x2100).filter_map(char::from_u32).map(String::from);
        let texts = ["", "plain", "a \"quoted\" \\ and\nmore", "\u{1f600}"].map(String::from);
        for (text, is_ai) in every.chain(texts).zip([true, false].into_iter().cycle()) {
            let message = Message {
                id: &text,
                sender: &text,
                content: &text,
                created_at: Timestamp::from_unix_millis(1_734_082_865_999).unwrap(),
                is_ai,
                chat_session_id: &text,
            };
            let mut json = Vec::new();
            write_message(&mut json, &message);
            assert_eq!(json, serde_json::to_vec(&message).unwrap());
        }
    }
}
