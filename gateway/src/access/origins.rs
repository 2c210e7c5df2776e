//! Which pages of browsers may call: origins, as browsers write them.

use std::str::FromStr;

use axum::http::HeaderValue;
use url::{Origin, Url};

/// Before the rest of a host whose first label may be any.
const ANY_LABEL: &str = "*.";
/// What browsers write for pages without an origin: files, sandboxed frames.
const NULL: &str = "null";
/// What browsers write no origin for that could match.
const NO_ORIGIN: [&str; 8] = ["file", "data", "blob", "javascript", "about", "ws", "wss", "ftp"];

/// Of an origin.
const NO_HOST: &str = "has no host or port that there could be";

/// Origins that browsers may call from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Everybody, as the seed.
    Any,
    List(Vec<Pattern>),
}

/// One that may call, or many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    One(String),
    /// `scheme://` and, behind one label, the rest.
    Labels {
        before: String,
        behind: String,
    },
}

impl Origins {
    /// Whether a browser may connect from this origin; what sends none is no browser.
    pub fn allow(&self, origin: Option<&HeaderValue>) -> bool {
        origin.is_none_or(|origin| self.name(origin))
    }

    /// Whether this origin is among them.
    pub fn name(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::Any => true,
            Self::List(list) => origin
                .to_str()
                .is_ok_and(|origin| list.iter().any(|pattern| pattern.matches(origin))),
        }
    }
}

impl Pattern {
    fn matches(&self, origin: &str) -> bool {
        match self {
            Self::One(one) => one == origin,
            Self::Labels { before, behind } => {
                let label =
                    origin.strip_prefix(&**before).and_then(|it| it.strip_suffix(&**behind));
                label.is_some_and(|label| !label.is_empty() && !label.contains(['.', ':', '/']))
            }
        }
    }
}

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let origin = |(at, text): (usize, &str)| {
            // It is not repeated: settings may hold secrets.
            text.trim().parse().map_err(|why: &str| format!("origin {} {why}", at + 1))
        };
        text.split(',').enumerate().map(origin).collect::<Result<_, _>>().map(Self::List)
    }
}

impl FromStr for Pattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case(NULL) {
            return Ok(Self::One(NULL.to_owned()));
        }
        if text == "*" {
            return Err("is every origin: * stands alone");
        }
        let (scheme, rest) =
            text.split_once("://").ok_or("is none: write it as https://example.com")?;
        let scheme = scheme.to_ascii_lowercase();
        if NO_ORIGIN.contains(&&*scheme) {
            return Err(
                "is written by no browser: a page's begins with https:// or http://, a file's is null",
            );
        }
        // As it is copied from a browser.
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '\\', '@']) {
            return Err("has more than scheme, host and port, which no browser writes");
        }
        if authority.is_empty() || authority.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(NO_HOST);
        }
        if matches!(&*scheme, "http" | "https") {
            of_web(&scheme, authority)
        } else {
            of_app(&scheme, authority)
        }
    }
}

/// A page of the web: its host in lower case and, where it has other letters than ASCII's, in Punycode; no port
/// that is its scheme's own.
fn of_web(scheme: &str, authority: &str) -> Result<Pattern, &'static str> {
    const WILD: &str =
        "may have a * only for the first label of its host, as in https://*.example.com";
    let (any, fixed) = match authority.strip_prefix(ANY_LABEL) {
        Some(fixed) => (true, fixed),
        None => (false, authority),
    };
    if fixed.contains('*') {
        return Err(WILD);
    }
    let url = Url::parse(&format!("{scheme}://{fixed}/"));
    let url = url.map_err(|_| NO_HOST)?;
    let origin = url.origin();
    if url.port() == Some(0) || !matches!(origin, Origin::Tuple(..)) {
        return Err(NO_HOST);
    }
    let origin = origin.ascii_serialization();
    if !any {
        return Ok(Pattern::One(origin));
    }
    let before = format!("{scheme}://");
    match (origin.strip_prefix(&before), url.domain()) {
        (Some(behind), Some(_)) => Ok(Pattern::Labels { behind: format!(".{behind}"), before }),
        // An address has no labels.
        _ => Err(WILD),
    }
}

/// A page in an app: its scheme says nothing of how hosts are written.
fn of_app(scheme: &str, authority: &str) -> Result<Pattern, &'static str> {
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if !is_scheme {
        return Err("has no scheme that there could be");
    }
    if authority.contains('*') {
        return Err("may have no *: it counts for https:// and http://");
    }
    if !authority.is_ascii() {
        return Err("has a host with other letters than ASCII's, which apps do not write");
    }
    Ok(Pattern::One(format!("{scheme}://{}", authority.to_ascii_lowercase())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &str, origin: &str) -> bool {
        let origins: Origins = list.parse().unwrap();
        origins.allow(Some(&HeaderValue::from_str(origin).unwrap()))
    }

    #[test]
    fn an_origin_counts_however_it_is_written() {
        for (listed, browsers) in [
            ("https://a.example:443", "https://a.example"),
            ("http://a.example:80/", "http://a.example"),
            ("https://a.example:8443", "https://a.example:8443"),
            ("HTTPS://A.Example", "https://a.example"),
            ("https://bücher.example", "https://xn--bcher-kva.example"),
            ("https://BÜCHER.example:443", "https://xn--bcher-kva.example"),
            ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
            ("http://[::0001]:3000", "http://[::1]:3000"),
            ("http://127.1:3000", "http://127.0.0.1:3000"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("Tauri://LocalHost", "tauri://localhost"),
            ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
            ("null", "null"),
            (" https://b.example , https://a.example ", "https://a.example"),
        ] {
            assert!(allows(listed, browsers), "{listed}");
            assert!(!allows(listed, "https://other.example"), "{listed}");
        }
        assert!(allows("*", "https://a.example") && allows("*", "null"));
        assert!(!allows("https://a.example", "null"));
    }

    #[test]
    fn a_star_is_one_label() {
        let list = "https://*.a.example,https://*.bücher.example:8443";
        for origin in
            ["https://x.a.example", "https://x-1.a.example", "https://y.xn--bcher-kva.example:8443"]
        {
            assert!(allows(list, origin), "{origin}");
        }
        for origin in [
            "https://a.example",
            "https://.a.example",
            "https://x.y.a.example",
            "http://x.a.example",
            "https://x.a.example:8443",
            "https://xa.example",
            "https://x.a.example.evil.example",
            "https://evil.example/x.a.example",
            "https://y.xn--bcher-kva.example",
        ] {
            assert!(!allows(list, origin), "{origin}");
        }
    }

    #[test]
    fn what_can_match_nothing_is_refused() {
        for text in [
            "a.example",
            "localhost:3000",
            "https://",
            "https://a.example/x",
            "https://a.example?x",
            "https://a.example#x",
            "https://user@a.example",
            "https://a.example:99999",
            "https://a.example:0",
            "https://a b.example",
            "https://a.example,",
            "https://a.example,*",
            "https://*",
            "https://*.",
            "https://a.*.example",
            "https://*a.example",
            "https://a.example:*",
            "https://*.*.example",
            "https://*.127.0.0.1",
            "*://a.example",
            "capacitor://*",
            "file://",
            "file:///index.html",
            "wss://a.example",
            "https:/a.example",
            "https://xn--a.example",
        ] {
            assert!(text.parse::<Origins>().is_err(), "{text}");
        }
    }
}
