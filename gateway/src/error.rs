//! Errors that a client is told: one list of codes for sockets and HTTP.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Serialize, Serializer};
use shared::content::InvalidContent;

/// The codes of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The payload is not what the event takes.
    InvalidPayload,
    SessionNotFound,
    /// A token is missing, or is not valid any more.
    Unauthorized,
    /// The token is valid, and its role does not allow this.
    Forbidden,
    /// Another message is stored under this `clientOffset`, or another agent has the session.
    Conflict,
    /// The AI of the session is switched off.
    AiOff,
    /// Over a size limit.
    TooLarge,
    /// Too many in a time: see `retryAfterMs`.
    RateLimited,
    /// The log is full, or more waits than can be stored soon: surely nothing was taken, try again.
    Overloaded,
    /// Nobody knows what became of it: send it again with a `clientOffset`.
    Unavailable,
}

impl ErrorCode {
    /// The code as clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidPayload => "invalid_payload",
            Self::SessionNotFound => "session_not_found",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Conflict => "conflict",
            Self::AiOff => "ai_off",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientError {
    pub code: ErrorCode,
    pub message: Cow<'static, str>,
    /// When to try again, in milliseconds; only with [`ErrorCode::RateLimited`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl ClientError {
    /// An error with a text for people.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), retry_after_ms: None }
    }

    /// No session has this id.
    pub fn session_not_found() -> Self {
        Self::new(ErrorCode::SessionNotFound, "there is no session with this id")
    }

    /// What is stored says something else.
    pub fn conflict() -> Self {
        Self::new(ErrorCode::Conflict, "another message was stored under this clientOffset")
    }

    /// What an agent changes is not decided yet.
    pub fn undecided() -> Self {
        Self::new(ErrorCode::Unavailable, "not decided now: it may take effect later")
    }

    /// An agent has switched the AI off before.
    pub fn ai_off() -> Self {
        Self::new(ErrorCode::AiOff, "the AI of this session is switched off")
    }

    /// Another agent was faster.
    pub fn claimed() -> Self {
        Self::new(ErrorCode::Conflict, "another agent has this session")
    }

    /// Too many in a time; after so long it is worth another try.
    pub fn rate_limited(what: &'static str, wait: Duration) -> Self {
        // Rounded up: a client that comes back on time must not be too early.
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        Self { retry_after_ms: Some(millis), ..Self::new(ErrorCode::RateLimited, what) }
    }

    /// A socket is in as many sessions as it may be.
    pub fn too_many_rooms(most: usize) -> Self {
        let text = format!("a socket may be in {most} sessions at a time: leave one first");
        Self::new(ErrorCode::TooLarge, text)
    }

    /// A queue is full.
    pub fn overloaded() -> Self {
        Self::new(ErrorCode::Overloaded, "too busy, nothing was taken: try again")
    }

    /// The gateway ends: nothing was taken.
    pub fn stopping() -> Self {
        Self::new(ErrorCode::Unavailable, "this gateway is stopping: come back and send it again")
    }

    /// A service did not answer.
    pub fn unavailable() -> Self {
        Self::new(ErrorCode::Unavailable, "not available now: send it again with a clientOffset")
    }
}

impl From<InvalidContent> for ClientError {
    fn from(error: InvalidContent) -> Self {
        let code = match error {
            InvalidContent::TooLong { .. } => ErrorCode::TooLarge,
            InvalidContent::Empty | InvalidContent::Nul => ErrorCode::InvalidPayload,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_the_contract_says() {
        let json = serde_json::to_string(&ClientError::session_not_found()).unwrap();
        assert_eq!(
            json,
            r#"{"code":"session_not_found","message":"there is no session with this id"}"#
        );
        let too_long = ClientError::from(InvalidContent::TooLong { max_chars: 5 });
        assert_eq!(serde_json::to_value(too_long.code).unwrap(), "too_large");
    }
}
