//! Errors over HTTP: `application/problem+json`, RFC 9457.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::error::{ClientError, ErrorCode};
use crate::metrics::METRICS;

/// When to try again while a service is away: it may be back at any time.
const RETRY_AFTER_SECONDS: u64 = 1;

/// What went wrong with a request.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// HTTP status, again in the body.
    pub status: u16,
    /// The status in words.
    pub title: &'static str,
    /// What this request did wrong, or what failed.
    pub detail: String,
    /// For programs, where the sockets' errors have a code for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// When to try again, in milliseconds; the header `Retry-After` says it in seconds, also of a 503.
    #[serde(rename = "retryAfterMs", skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The session as it is, where another agent was faster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Box<RawValue>>,
}

impl Problem {
    /// A problem with a text for people.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self {
            status: status.as_u16(),
            title,
            detail: detail.into(),
            code: None,
            retry_after_ms: None,
            session: None,
        }
    }

    /// Nothing is served at this path.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "nothing is served at this path")
    }

    /// The path is served, but not to this method.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this method is not served at this path")
    }
}

impl From<ClientError> for Problem {
    fn from(error: ClientError) -> Self {
        METRICS.refuse(error.code);
        let status = match error.code {
            ErrorCode::InvalidPayload => StatusCode::BAD_REQUEST,
            ErrorCode::SessionNotFound => StatusCode::NOT_FOUND,
            ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::Conflict | ErrorCode::AiOff => StatusCode::CONFLICT,
            ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Overloaded | ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        let retry_after_ms = error.retry_after_ms;
        Self { code: Some(error.code), retry_after_ms, ..Self::new(status, error.message) }
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        tracing::warn!(%error, "history cannot be read");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the history cannot be read now, try again")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        // RFC 9110, section 11.6.1: a 401 says how to authenticate.
        let challenge = status == StatusCode::UNAUTHORIZED;
        let challenge = challenge.then_some([(header::WWW_AUTHENTICATE, "Bearer")]);
        let asked = self.retry_after_ms.map(|millis| millis.div_ceil(1_000));
        let passes = status == StatusCode::SERVICE_UNAVAILABLE;
        let retry = asked.or(passes.then_some(RETRY_AFTER_SECONDS));
        let retry = retry.map(|seconds| [(header::RETRY_AFTER, seconds.to_string())]);
        (status, kind, challenge, retry, body).into_response()
    }
}
