//! Who asks for a route, and whether they may.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::access::rights::Action;
use crate::app::Gateway;
use crate::problem::Problem;

/// Before the token in a header.
const BEARER: &[u8] = b"Bearer";

/// Lets only those callers to a route who may.
///
/// The caller stands among the request's extensions from here on.
pub async fn require(
    State((gateway, action)): State<(Arc<Gateway>, Action)>,
    mut request: Request,
    next: Next,
) -> Response {
    let token = bearer(request.headers());
    let caller = gateway.config.caller(token);
    match caller.and_then(|caller| caller.may(action).map(|()| caller)) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => Problem::from(error).into_response(),
    }
}

/// The token of `Authorization: Bearer` (RFC 6750); other schemes are a proxy's business.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get_all(header::AUTHORIZATION).iter().find_map(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked(BEARER.len())?;
        let ends = token.first().is_none_or(u8::is_ascii_whitespace);
        // What is no text, or nothing, is no valid token, and surely not none.
        let token = || std::str::from_utf8(token).unwrap_or_default().trim();
        (ends && scheme.eq_ignore_ascii_case(BEARER)).then(token)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bearer_tokens_count() {
        let token = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(token("Bearer").as_deref(), Some(""));
        assert_eq!(token("Bearers abc"), None);
        assert_eq!(token("Basic YTpi"), None);
    }
}
