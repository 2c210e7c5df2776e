//! `GET /api/messages`: the messages that hold some words, newest first.
//!
//! They are read window by window ([`crate::db::search`]), from the newest downwards, until the page is full. A page may
//! end before it is full: where it took long, or has many bytes. Whether there is more is told by its `Link` alone.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use crate::app::Gateway;
use crate::db::history::History;
use crate::db::rows::{CHUNK_BYTES, HistoryRow};
use crate::db::search::{Hits, SearchState, Window};
use crate::http::json_stream::{JSON, PageSize, long_content, separate, write, write_message};
use crate::http::pagination::{self, Parameters, wrong};
use crate::problem::Problem;

/// Most messages that `limit` may ask for.
const LIMIT_MAX: u16 = 200;
/// Messages of a page where nothing is said.
const LIMIT: u16 = 50;
/// Most characters of `q`.
const WORDS_CHARS_MAX: usize = 1_000;
/// No other window is begun behind this time: the page ends there.
const READS_FOR: Duration = Duration::from_secs(2);

/// The messages that hold these words.
pub async fn search(State(gateway): State<Arc<Gateway>>, uri: Uri) -> Result<Response, Problem> {
    if !gateway.config.search {
        let off = "messages cannot be searched here: that needs SEARCH=on";
        return Err(Problem::new(StatusCode::NOT_FOUND, off));
    }
    let parameters = Parameters::of(&uri);
    let words = words(&parameters)?;
    let limit = parameters.limit(LIMIT_MAX)?.unwrap_or(LIMIT);
    let cursor = cursor(&parameters)?;
    let mut page = Page::new(limit);
    match gateway.history.search_state(&words).await? {
        SearchState::Ready { end, is_phrase } => {
            page.end = cursor.map_or(end, |cursor| cursor.min(end));
            page.read(&gateway.history, &words, is_phrase).await?;
        }
        SearchState::NoWords => {}
        SearchState::NoIndex => {
            return Err(unavailable("the index is being made, try again later"));
        }
        SearchState::NoRight => {
            return Err(unavailable(
                "the gateway may not read the sequence of \"Message\": run migrations/roles.sql again",
            ));
        }
    }
    page.answer(&gateway.history, &words).await
}

fn unavailable(detail: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
}

/// `q`, which must be there.
fn words(parameters: &Parameters) -> Result<String, Problem> {
    let words = parameters.text("q")?.ok_or_else(|| wrong("q", "is missing"))?;
    if words.chars().count() > WORDS_CHARS_MAX {
        return Err(wrong("q", format_args!("has more than {WORDS_CHARS_MAX} characters")));
    }
    // Postgres refuses U+0000 in a text.
    if words.contains('\0') {
        return Err(wrong("q", "must not contain U+0000"));
    }
    Ok(words)
}

/// The `seq` before which a page goes on.
fn cursor(parameters: &Parameters) -> Result<Option<i64>, Problem> {
    let Some(text) = parameters.text("cursor")? else { return Ok(None) };
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let seq = text.parse().ok().filter(|seq| digits && *seq > 0);
    seq.map(Some).ok_or_else(|| wrong("cursor", "must be one that a Link header gave"))
}

/// What is found, newest first.
struct Page {
    limit: u16,
    rows: Vec<HistoryRow>,
    /// What comes behind it stands before this `seq`; nothing does before the first.
    end: i64,
}

impl Page {
    fn new(limit: u16) -> Self {
        Self { limit, rows: Vec::new(), end: 0 }
    }

    /// Reads until it is full, or nothing is left, or it took long.
    async fn read(&mut self, history: &History, words: &str, is_phrase: bool) -> sqlx::Result<()> {
        let deadline = Instant::now() + READS_FOR;
        let mut is_wide = false;
        while self.end > 0 && self.missing() > 0 && Instant::now() < deadline {
            let window = Window::before(self.end, is_wide);
            let hits = {
                let _permit = history.read_permit().await?;
                history.search(words, window, self.end, self.missing()).await?
            };
            if is_wide && hits.is_cut() {
                // The words are common here, which nobody could know before.
                is_wide = false;
                continue;
            }
            self.add(hits, window.start())?;
            is_wide = !is_phrase;
        }
        Ok(())
    }

    fn missing(&self) -> u16 {
        self.limit.saturating_sub(u16::try_from(self.rows.len()).unwrap_or(u16::MAX))
    }

    /// Takes what a window has that begins with this `seq`.
    fn add(&mut self, hits: Hits, first: i64) -> sqlx::Result<()> {
        let is_all = hits.count <= i64::from(self.missing());
        self.end = match hits.rows.last() {
            Some(last) if !is_all => last.seq()?,
            _ => first,
        };
        self.rows.extend(hits.rows);
        Ok(())
    }

    /// As much as may wait for a client, and where it goes on.
    async fn answer(mut self, history: &History, words: &str) -> Result<Response, Problem> {
        let read = self.rows.len();
        PageSize::first().fit(&mut self.rows, self.limit, CHUNK_BYTES)?;
        if let Some(last) = self.rows.last().filter(|_| self.rows.len() < read) {
            self.end = last.seq()?;
        }
        let long = long_content(history, &self.rows).await?;
        let mut json = b"[".to_vec();
        let mut first = true;
        for row in &self.rows {
            separate(&mut json, &mut first);
            write_hit(&mut json, row, long.as_deref())?;
        }
        json.push(b']');
        let link = (self.end > 0).then(|| self.link(words));
        Ok(([(header::CONTENT_TYPE, JSON)], link, json).into_response())
    }

    fn link(&self, words: &str) -> [(header::HeaderName, String); 1] {
        let (limit, cursor) = (self.limit.to_string(), self.end.to_string());
        let query = [("q", words), ("limit", limit.as_str()), ("cursor", cursor.as_str())];
        pagination::next("/api/messages", &query)
    }
}

/// A message, and the session that it is of.
fn write_hit(json: &mut Vec<u8>, row: &HistoryRow, long: Option<&str>) -> sqlx::Result<()> {
    write_message(json, &row.to_message(long)?);
    // The message is an object: its brace gives way.
    json.pop();
    json.extend_from_slice(br#","sessionId":"#);
    write(json, &row.session_id()?);
    json.push(b'}');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(query: &str) -> Parameters {
        Parameters::of(&format!("/api/messages?{query}").parse().unwrap())
    }

    #[test]
    fn words_are_given_once_and_are_not_too_many() {
        assert_eq!(words(&parameters("q=a+b%20%C3%BC")).unwrap(), "a b ü");
        assert_eq!(words(&parameters("q=")).unwrap(), "");
        assert!(words(&parameters(&format!("q={}", "%C3%BC".repeat(1_000)))).is_ok());
        let long = format!("q={}", "x".repeat(1_001));
        for query in ["", "p=a", "q=a&q=b", "q=%00", &long] {
            assert!(words(&parameters(query)).unwrap_err().detail.starts_with("q: "), "{query}");
        }
    }

    #[test]
    fn a_cursor_is_one_that_was_given() {
        assert_eq!(cursor(&parameters("")).unwrap(), None);
        assert_eq!(cursor(&parameters("cursor=7")).unwrap(), Some(7));
        for text in ["", "0", "-1", "+1", "x", "1.0", "9223372036854775808", "1&cursor=2"] {
            let problem = cursor(&parameters(&format!("cursor={text}"))).unwrap_err();
            assert!(problem.detail.starts_with("cursor: "), "{text}");
        }
    }
}
