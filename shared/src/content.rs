//! What a client may say: [`Content`] of a message, [`ClientOffset`] of a send.

use serde::{Deserialize, Serialize};

/// Most Unicode scalar values in a message unless `MAX_CONTENT_CHARS` says otherwise.
pub const DEFAULT_MAX_CONTENT_CHARS: usize = 8_000;
/// Most characters in a client offset, by the contract.
pub const MAX_CLIENT_OFFSET_CHARS: usize = 64;

/// The text of a message: at least one character, not more than the limit, no U+0000.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Content(String);

/// Why a text cannot be a message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidContent {
    #[error("content is empty")]
    Empty,
    /// Postgres cannot store U+0000 in a text.
    #[error("content contains U+0000")]
    Nul,
    #[error("content is longer than {max_chars} characters")]
    TooLong {
        /// The limit in Unicode scalar values.
        max_chars: usize,
    },
}

impl Content {
    /// Checks a text against the rules of the contract.
    pub fn parse(text: String, max_chars: usize) -> Result<Self, InvalidContent> {
        if text.is_empty() {
            return Err(InvalidContent::Empty);
        }
        // A character has at least one byte: short texts need no counting.
        if text.len() > max_chars && text.chars().count() > max_chars {
            return Err(InvalidContent::TooLong { max_chars });
        }
        if text.contains('\0') {
            return Err(InvalidContent::Nul);
        }
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Length of a text as JSON writes it, without its quotes.
pub fn json_bytes(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        0..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}

/// A client's own name for one send; sending it again stores nothing new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOffset(String);

/// The offset is empty, too long, or contains U+0000.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("clientOffset must have 1 to {MAX_CLIENT_OFFSET_CHARS} characters and no U+0000")]
pub struct InvalidClientOffset;

impl ClientOffset {
    /// Checks an offset against the rules of the contract.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidClientOffset> {
        let text = text.into();
        let chars = text.chars().take(MAX_CLIENT_OFFSET_CHARS + 1).count();
        if (1..=MAX_CLIENT_OFFSET_CHARS).contains(&chars) && !text.contains('\0') {
            Ok(Self(text))
        } else {
            Err(InvalidClientOffset)
        }
    }

    /// The offset as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_counted_in_scalar_values() {
        let smile = "🙂".to_owned();
        assert!(Content::parse(smile.repeat(3), 3).is_ok());
        let long = Content::parse(smile.repeat(4), 3);
        assert_eq!(long, Err(InvalidContent::TooLong { max_chars: 3 }));
    }

    #[test]
    fn content_is_neither_empty_nor_nul() {
        assert_eq!(Content::parse(String::new(), 3), Err(InvalidContent::Empty));
        assert_eq!(Content::parse("a\0".into(), 3), Err(InvalidContent::Nul));
    }

    #[test]
    fn an_offset_has_1_to_64_characters() {
        assert!(ClientOffset::parse("é".repeat(64)).is_ok());
        for text in [String::new(), "x".repeat(65), "a\0b".into()] {
            assert_eq!(ClientOffset::parse(text), Err(InvalidClientOffset));
        }
    }
}
