//! Pages of a history: the parameters that ask for one, and the link to the next (RFC 8288).
//!
//! A parameter that a route does not know makes no difference, as in Express. One that it knows is
//! never guessed at: a bad one is an error that names it.

use axum::http::{HeaderName, StatusCode, Uri, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::form_urlencoded;

use crate::db::rows::Cursor;
use crate::problem::Problem;

/// What needs no escape in any part of a URL: RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The parameters of a request.
pub struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Those of this URI; an escape that cannot be decoded stays as it is.
    pub fn of(uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// A parameter that may be given once.
    pub fn text(&self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.0.iter().filter(|(given, _)| given == name).map(|(_, value)| value);
        let value = values.next().cloned();
        match values.next() {
            Some(_) => Err(wrong(name, "is given more than once")),
            None => Ok(value),
        }
    }

    /// `limit`: from 1 to `max`.
    pub fn limit(&self, max: u16) -> Result<Option<u16>, Problem> {
        let Some(text) = self.text("limit")? else { return Ok(None) };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let limit = text.parse().ok().filter(|limit| digits && (1..=max).contains(limit));
        let range = || wrong("limit", format_args!("must be a whole number from 1 to {max}"));
        limit.map(Some).ok_or_else(range)
    }

    /// `cursor`: as a `Link` gave it.
    pub fn cursor(&self) -> Result<Option<Cursor>, Problem> {
        let Some(text) = self.text("cursor")? else { return Ok(None) };
        let given = |_| wrong("cursor", "must be one that a Link header gave");
        text.parse().map(Some).map_err(given)
    }
}

/// What is wrong with a parameter.
pub fn wrong(name: &str, what: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, format!("{name}: {what}"))
}

/// The header that names the next page.
pub fn next(path: &str, query: &[(&str, &str)]) -> [(HeaderName, String); 1] {
    let pairs = query.iter().map(|(name, value)| format!("{name}={}", encoded(value)));
    let query = pairs.collect::<Vec<_>>().join("&");
    [(header::LINK, format!(r#"<{path}?{query}>; rel="next""#))]
}

/// A text as a part of a URL.
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(query: &str) -> Parameters {
        Parameters::of(&format!("/api/chats?{query}").parse().unwrap())
    }

    #[test]
    fn a_limit_is_a_number_in_its_range_and_given_once() {
        assert_eq!(parameters("").limit(9).unwrap(), None);
        assert_eq!(parameters("limit=9&_=%zz&a[]=1").limit(9).unwrap(), Some(9));
        for query in [
            "limit",
            "limit=0",
            "limit=10",
            "limit=+1",
            "limit=1.0",
            "limit=-1",
            "limit=99999999999",
            "limit=x",
            "limit=%00",
            "limit=1&limit=1",
        ] {
            let problem = parameters(query).limit(9).unwrap_err();
            assert!(problem.detail.starts_with("limit: "), "{query}");
        }
    }

    #[test]
    fn a_link_holds_every_text() {
        let [(_, link)] = next("/api/chats", &[("limit", "2"), ("after", "a b>ü")]);
        assert_eq!(link, r#"</api/chats?limit=2&after=a%20b%3E%C3%BC>; rel="next""#);
    }
}
