//! Where callers show their tokens. Each that is shown counts, or its caller is refused: who shows one does not mean
//! to be a visitor.

use axum::http::{HeaderMap, Uri, header};
use url::form_urlencoded;

use crate::error::{ClientError, ErrorCode};

/// Before the token in a header.
const BEARER: &[u8] = b"Bearer";
/// Names in a URL that say that a token follows.
const IN_URL: [&str; 2] = ["token", "access_token"];

/// The tokens of `Authorization: Bearer` (RFC 6750); other schemes are a proxy's business.
pub fn bearer(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked(BEARER.len())?;
        let ends = token.first().is_none_or(u8::is_ascii_whitespace);
        // What is no text, or nothing, is no valid token, and surely not none.
        let token = || std::str::from_utf8(token).unwrap_or_default().trim();
        (ends && scheme.eq_ignore_ascii_case(BEARER)).then(token)
    })
}

/// A URL is no place for a token: it stands in the logs of every proxy.
pub fn is_in_url(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).any(|(name, value)| {
        IN_URL.contains(&&*name) && !value.is_empty() || looks_like_one(&value)
    })
}

/// Whether a text can hardly be anything else than a token.
pub fn looks_like_one(text: &str) -> bool {
    let (scheme, rest) = text.split_once(' ').unwrap_or_default();
    let is_bearer = scheme.as_bytes().eq_ignore_ascii_case(BEARER) && !rest.is_empty();
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    // `{"` in Base64, with which the first of the three parts of a JSON Web Token begins.
    let is_jwt = text.starts_with("eyJ")
        && text.split('.').count() == 3
        && text.bytes().all(|byte| is_digit(byte) || byte == b'.');
    is_bearer || is_jwt
}

/// A token stands where it does not count.
pub fn misplaced() -> ClientError {
    let text = "a token counts as auth.token and as Authorization: Bearer, and nowhere else";
    ClientError::new(ErrorCode::Unauthorized, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(values: &[&str]) -> Vec<String> {
        let values = values.iter().map(|value| (header::AUTHORIZATION, value.parse().unwrap()));
        bearer(&values.collect()).map(str::to_owned).collect()
    }

    #[test]
    fn every_bearer_token_counts_and_nothing_else() {
        assert_eq!(tokens(&["Bearer abc"]), ["abc"]);
        assert_eq!(tokens(&["bearer  abc "]), ["abc"]);
        assert_eq!(tokens(&["Bearer"]), [""]);
        assert_eq!(tokens(&["Basic YTpi", "Bearer a", "BEARER b"]), ["a", "b"]);
        assert!(tokens(&["Bearers abc", "Basic YTpi"]).is_empty());
    }

    #[test]
    fn a_token_in_a_url_is_seen() {
        let is_seen = |query: &str| is_in_url(&format!("/socket.io/?{query}").parse().unwrap());
        for query in
            ["token=x", "EIO=4&access_token=x", "t%6fken=x", "jwt=eyJh.eyJz.c2ln", "a=Bearer%20x"]
        {
            assert!(is_seen(query), "{query}");
        }
        for query in
            ["", "EIO=4&transport=polling&t=PnG4x1", "token=", "v=1.2.3", "a=eyJh", "a=Bearer"]
        {
            assert!(!is_seen(query), "{query}");
        }
    }
}
