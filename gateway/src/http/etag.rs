//! `ETag` and 304, as Express sends them: every answer that is in memory as a whole is named by its
//! length and its SHA-1, and not sent again to a client that has it.
//!
//! Answers that are streamed have no name: it stands before the first byte, and would need the last.

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use sha1::{Digest, Sha1};

/// Largest answer that gets a name: a quarter of a megabyte is hashed in less than a millisecond, in
/// which nobody else is served.
const NAMED_BYTES_MAX: u64 = 256 * 1024;

/// Names what the routes answer to `GET` and `HEAD`.
pub async fn name(request: Request, next: Next) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let asked = request.headers().clone();
    let response = next.run(request).await;
    let length = response.body().size_hint().exact();
    let is_named = response.status() == StatusCode::OK
        && length.is_some_and(|length| length <= NAMED_BYTES_MAX);
    if is_named { named(response, &asked).await } else { response }
}

async fn named(response: Response, asked: &HeaderMap) -> Response {
    let (mut head, body) = response.into_parts();
    // It lies in memory: this neither waits nor fails.
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let tag = tag_of(&body);
    let is_known = knows(asked, &tag);
    if let Ok(tag) = HeaderValue::try_from(tag) {
        head.headers.insert(header::ETAG, tag);
    }
    if !is_known {
        return Response::from_parts(head, Body::from(body));
    }
    head.status = StatusCode::NOT_MODIFIED;
    head.headers.remove(header::CONTENT_TYPE);
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, Body::empty())
}

/// `W/"<length in hexadecimal>-<SHA-1>"`, of which Express takes 27 characters of Base64.
fn tag_of(body: &Bytes) -> String {
    format!("W/\"{:x}-{}\"", body.len(), STANDARD_NO_PAD.encode(Sha1::digest(body)))
}

/// Whether a client has this already: RFC 9110, section 13.1.2; one that reloads wants it all the same.
fn knows(asked: &HeaderMap, tag: &str) -> bool {
    let values = |name| asked.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let words = |name| values(name).flat_map(|value| value.split(',')).map(str::trim);
    let reloads = words(header::CACHE_CONTROL).any(|word| word.eq_ignore_ascii_case("no-cache"));
    let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    !reloads && words(header::IF_NONE_MATCH).any(|one| one == "*" || opaque(one) == opaque(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the package `etag` 1.8 makes of the same texts.
    #[test]
    fn names_are_those_that_express_gives() {
        let of = |text: &'static str| tag_of(&Bytes::from_static(text.as_bytes()));
        assert_eq!(of(r#"{"status":"ok"}"#), r#"W/"f-VaSQ4oDUiZblZNAEkkN+sX+q3Sg""#);
        assert_eq!(of("[]"), r#"W/"2-l9Fw4VUO7kr8CvBlt4zaMCqXZ0w""#);
    }

    #[test]
    fn a_name_is_known_however_it_is_listed() {
        let knows = |name, value: &'static str| {
            let asked = HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
            super::knows(&asked, "W/\"2-a\"")
        };
        for value in ["W/\"2-a\"", "\"2-a\"", "\"x\", W/\"2-a\"", "*", "\"x\",\"2-a\""] {
            assert!(knows(header::IF_NONE_MATCH, value), "{value}");
        }
        for value in ["", "2-a", "\"2-b\"", "W/\"2-a", "w/\"2-a\""] {
            assert!(!knows(header::IF_NONE_MATCH, value), "{value}");
        }
        assert!(!knows(header::ETAG, "W/\"2-a\""));
    }

    #[test]
    fn a_reload_gets_everything() {
        let mut asked = HeaderMap::new();
        asked.insert(header::IF_NONE_MATCH, HeaderValue::from_static("*"));
        assert!(knows(&asked, "W/\"2-a\""));
        asked.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        assert!(!knows(&asked, "W/\"2-a\""));
    }
}
