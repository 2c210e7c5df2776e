//! A saved message as every client sees it.

use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;

/// Which side of the conversation speaks. An AI answers as [`Sender::Admin`] with `isAI` set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sender {
    User = 0,
    /// The support agent, or an AI in its name.
    Admin = 1,
}

impl Sender {
    /// The value of the `sender` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

/// A message in REST answers and in the `message` event: exactly these keys, in this order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Message<'a> {
    /// Primary key, a CUID.
    pub id: &'a str,
    /// `user` or `admin`; whatever an adopter's row holds.
    pub sender: &'a str,
    pub content: &'a str,
    /// When the log took the message.
    pub created_at: Timestamp,
    /// Written by a machine.
    #[serde(rename = "isAI")]
    pub is_ai: bool,
    /// The session's primary key, not its `sessionId`.
    pub chat_session_id: &'a str,
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_message_has_the_six_keys_of_the_seed_in_its_order() {
        let message = Message {
            id: "cm4xyz789",
            sender: Sender::User.as_str(),
            content: "Hello!",
            created_at: Timestamp::truncate(datetime!(2024-12-13 10:30:05 UTC)),
            is_ai: false,
            chat_session_id: "cm4abc123",
        };
        let json = serde_json::to_string(&message).unwrap();
        let seed = r#"{"id":"cm4xyz789","sender":"user","content":"Hello!","createdAt":"2024-12-13T10:30:05.000Z","isAI":false,"chatSessionId":"cm4abc123"}"#;
        assert_eq!(json, seed);
    }
}
