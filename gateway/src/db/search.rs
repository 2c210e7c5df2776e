//! The messages that hold some words: all SQL of it.
//!
//! The index (`persister/src/search/index.rs`) has of each message its words and the names of two windows that it stands
//! in: of 4,096 `seq`s, and of 65,536. Who asks for the words and for a window has Postgres read the short list of the
//! window, and of the long list of a common word only what lies in it: so the newest messages with a word are found
//! without all others with it. A list of several windows would be looked through once more for each message.

use crate::db::history::{History, LONG_BYTES};
use crate::db::rows::HistoryRow;

/// Most messages with the words that a statement looks at: those of a narrow window, and one that tells that there are
/// more. It stands in `SEARCH` as a number.
const FOUND_MAX: i64 = 4_097;

/// Whether the index is there and whole, whether the words are any and whether some must stand side by side, the newest
/// `seq` that was given, and whether this role may know that.
const SEARCH_STATE: &str = r#"
    SELECT EXISTS (
               SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
               WHERE i.indrelid = to_regclass('"Message"') AND c.relname = 'Message_search_idx' AND i.indisvalid
           ),
           numnode(w.query) > 0, w.query::text ~ '<[-0-9]+>',
           (SELECT s.last_value FROM pg_sequences s
            WHERE quote_ident(s.schemaname) || '.' || quote_ident(s.sequencename)
                = pg_get_serial_sequence('"Message"', 'seq')),
           has_sequence_privilege(pg_get_serial_sequence('"Message"', 'seq'), 'SELECT')
    FROM (SELECT websearch_to_tsquery('simple', $1) AS query) w"#;

/// The newest messages with some words in a window and before a `seq`, and how many there are. Those are counted to
/// 4,097 and not ordered before: to order all that a wide window may have is not what a page may cost. Of long contents
/// see `MESSAGES`.
const SEARCH: &str = r#"
    WITH found AS MATERIALIZED (
        SELECT m."seq", m."id" FROM "Message" m
        WHERE (to_tsvector('simple', left(m."content", 100000))
               || array_to_tsvector(ARRAY['#' || (m."seq" >> 12)::text, '##' || (m."seq" >> 16)::text]))
              @@ (websearch_to_tsquery('simple', $1) && $2::text::tsquery)
          AND m."seq" < $3
        LIMIT 4097
    )
    SELECT m."seq", m."id", m."sender", CASE WHEN octet_length(m."content") <= $5 THEN m."content" END,
           m."createdAt", m."isAI", m."chatSessionId", m."sessionId", (SELECT count(*) FROM found)
    FROM (SELECT f."seq", f."id" FROM found f ORDER BY f."seq" DESC LIMIT $4) newest
    CROSS JOIN LATERAL (
        SELECT c.*, s."sessionId" FROM "Message" c JOIN "ChatSession" s ON s."id" = c."chatSessionId"
        WHERE c."id" = newest."id" LIMIT 1
    ) m
    ORDER BY newest."seq" DESC"#;

/// Messages that stand side by side by `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    number: i64,
    is_wide: bool,
}

impl Window {
    /// The one of the last `seq` before `end`.
    pub fn before(end: i64, is_wide: bool) -> Self {
        Self { number: (end - 1) >> Self::bits(is_wide), is_wide }
    }

    /// Its first `seq`.
    pub fn start(self) -> i64 {
        self.number << Self::bits(self.is_wide)
    }

    /// How many `seq`s it has, as a power of two. They stand in the statements and in the index as numbers.
    fn bits(is_wide: bool) -> u32 {
        if is_wide { 16 } else { 12 }
    }

    /// Its name as a query of Postgres. No word begins with `#`: Postgres takes it for a blank.
    fn query(self) -> String {
        let prefix = if self.is_wide { "##" } else { "#" };
        format!("'{prefix}{}'", self.number)
    }
}

/// Whether a search can be answered.
#[derive(Debug, PartialEq, Eq)]
pub enum SearchState {
    /// The index is not made yet, or not to its end.
    NoIndex,
    /// The role may not read how far `seq` is given.
    NoRight,
    /// What was asked for holds no word.
    NoWords,
    Ready {
        /// All messages stand before this `seq`.
        end: i64,
        /// The index does not know where in a message a word stands: each that has the words must be read.
        is_phrase: bool,
    },
}

/// What is found in a window.
#[derive(Debug, Default)]
pub struct Hits {
    /// The newest first.
    pub rows: Vec<HistoryRow>,
    /// How many there are, counted to one more than a narrow window has.
    pub count: i64,
}

impl Hits {
    /// Whether more were found than were looked at: the rows need not be the newest.
    pub fn is_cut(&self) -> bool {
        self.count >= FOUND_MAX
    }
}

impl History {
    /// Whether these words can be searched for.
    pub async fn search_state(&self, words: &str) -> sqlx::Result<SearchState> {
        type Row = (bool, bool, bool, Option<i64>, bool);
        let query = sqlx::query(SEARCH_STATE).bind(words.to_owned());
        let (has_index, has_words, is_phrase, newest, may_know): Row =
            self.pool().fetch_one(query).await?;
        Ok(match (has_index, may_know, has_words) {
            (false, ..) => SearchState::NoIndex,
            (_, false, _) => SearchState::NoRight,
            (.., false) => SearchState::NoWords,
            // None was given yet.
            _ => SearchState::Ready { end: newest.unwrap_or(0).saturating_add(1), is_phrase },
        })
    }

    /// At most `limit` messages with these words in this window and before `end`, newest first. Of long ones see
    /// [`History::messages`].
    pub async fn search(
        &self,
        words: &str,
        window: Window,
        end: i64,
        limit: u16,
    ) -> sqlx::Result<Hits> {
        let query = sqlx::query(SEARCH)
            .bind(words.to_owned())
            .bind(window.query())
            .bind(end)
            .bind(i64::from(limit))
            .bind(LONG_BYTES);
        let rows: Vec<HistoryRow> = self.pool().fetch_rows(query).await?;
        let count = rows.first().map(HistoryRow::found).transpose()?.unwrap_or(0);
        Ok(Hits { rows, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_each_other_without_a_gap() {
        for (is_wide, size) in [(false, 4_096), (true, 65_536)] {
            let window = |end| Window::before(end, is_wide);
            assert_eq!(window(1).start(), 0);
            assert_eq!(window(size).start(), 0);
            assert_eq!(window(size + 1).start(), size);
            assert_eq!(window(window(3 * size).start()).start(), size);
        }
        assert_eq!(Window::before(9 * 4_096, false).query(), "'#8'");
        assert_eq!(Window::before(9 * 65_536, true).query(), "'##8'");
    }

    #[test]
    fn the_statement_has_the_numbers_that_are_said_here() {
        for (prefix, is_wide) in [("#", false), ("##", true)] {
            let name = format!("'{prefix}' || (m.\"seq\" >> {})::text", Window::bits(is_wide));
            assert!(SEARCH.contains(&name), "{name}");
        }
        assert!(SEARCH.contains(&format!("LIMIT {FOUND_MAX}\n")));
        assert_eq!(FOUND_MAX, (1 << Window::bits(false)) + 1);
    }
}
