//! Requests for Engine.IO, the lower layer of Socket.IO, as the server of Node reads and refuses them.
//!
//! The library has other words for what it refuses, another order, and reads a query in another way.

use std::borrow::Cow;

use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hyper::body::Body as _;
use serde::{Deserialize, Serialize};
use socketioxide::socket::Sid;
use url::form_urlencoded;

/// Where Socket.IO is served.
pub const PATH: &str = "/socket.io";
/// The protocol of clients from 3.0 on.
const PROTOCOL: &str = "4";
/// What the query says once; of more than one the last counts, as in the server of Node.
const NAMES: [&str; 3] = ["EIO", "transport", "sid"];
/// Longest body of a refusal of the library.
const REFUSAL_BYTES_MAX: usize = 1_024;
/// The versions of the websocket protocol that there are.
const WEBSOCKET_VERSIONS: [&str; 2] = ["13", "8"];

/// Whether a socket that a request names is known to this gateway, among its extensions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IsKnown(pub bool);

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    UnknownTransport,
    UnknownSession,
    BadHandshakeMethod,
    BadRequest,
    UnsupportedProtocol,
    /// It asks for a websocket without a key, or with one that is none.
    InvalidKey,
    /// It asks for another version of the websocket protocol.
    InvalidVersion,
}

impl Refusal {
    const ALL: [Self; 7] = [
        Self::UnknownTransport,
        Self::UnknownSession,
        Self::BadHandshakeMethod,
        Self::BadRequest,
        Self::UnsupportedProtocol,
        Self::InvalidKey,
        Self::InvalidVersion,
    ];

    /// The number that clients know it by.
    fn code(self) -> u8 {
        match self {
            Self::UnknownTransport => 0,
            Self::UnknownSession => 1,
            Self::BadHandshakeMethod => 2,
            Self::BadRequest | Self::InvalidKey | Self::InvalidVersion => 3,
            Self::UnsupportedProtocol => 5,
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::UnknownTransport => "Transport unknown",
            Self::UnknownSession => "Session ID unknown",
            Self::BadHandshakeMethod => "Bad handshake method",
            Self::BadRequest => "Bad request",
            Self::UnsupportedProtocol => "Unsupported protocol version",
            Self::InvalidKey => "Missing or invalid Sec-WebSocket-Key header",
            Self::InvalidVersion => "Missing or invalid Sec-WebSocket-Version header",
        }
    }

    /// The answer to a request that asks for a websocket: its connection ends, as it may not be HTTP any more.
    pub fn of_upgrade(self) -> Response {
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static("text/html")),
            (CONNECTION, HeaderValue::from_static("close")),
        ];
        (StatusCode::BAD_REQUEST, headers, self.message()).into_response()
    }

    fn answer(self, is_upgrade: bool) -> Response {
        if is_upgrade { self.of_upgrade() } else { self.into_response() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            code: u8,
            message: &'static str,
        }
        let body = Body { code: self.code(), message: self.message() };
        (StatusCode::BAD_REQUEST, axum::Json(body)).into_response()
    }
}

/// What a request says of itself.
struct Query<'a> {
    protocol: Option<Cow<'a, str>>,
    transport: Option<Cow<'a, str>>,
    sid: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    fn of(uri: &'a Uri) -> Self {
        let mut query = Self { protocol: None, transport: None, sid: None };
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            match &*name {
                "EIO" => query.protocol = Some(value),
                "transport" => query.transport = Some(value),
                "sid" => query.sid = Some(value),
                _ => {}
            }
        }
        query
    }
}

/// Why the library is not even asked; none for what it may take.
pub fn refused(request: &Request) -> Option<Response> {
    let is_upgrade = asks_for_a_websocket(request.method(), request.headers());
    refusal(request, is_upgrade).err().map(|refusal| refusal.answer(is_upgrade))
}

/// In the order of the server of Node.
fn refusal(request: &Request, is_upgrade: bool) -> Result<(), Refusal> {
    let query = Query::of(request.uri());
    let is_websocket = match query.transport.as_deref() {
        Some("websocket") => true,
        Some("polling") => false,
        _ => return Err(Refusal::UnknownTransport),
    };
    let is_bare = is_websocket && !is_upgrade;
    let is_current = query.protocol.as_deref() == Some(PROTOCOL);
    if let Some(sid) = query.sid.filter(|sid| !sid.is_empty()) {
        let is_known = request.extensions().get() == Some(&IsKnown(true));
        let may_be = sid.parse::<Sid>().is_ok();
        match may_be {
            true if is_current && !is_bare => {}
            true if is_known => return Err(Refusal::BadRequest),
            _ => return Err(Refusal::UnknownSession),
        }
    } else if request.method() != Method::GET {
        return Err(Refusal::BadHandshakeMethod);
    } else if is_bare {
        return Err(Refusal::BadRequest);
    } else if !is_current {
        return Err(Refusal::UnsupportedProtocol);
    }
    if is_websocket { check_websocket(request.headers()) } else { Ok(()) }
}

/// Whether a request asks for a websocket. Other protocols may be asked for too, and are passed over: Java's client
/// offers HTTP/2 with each request.
pub fn asks_for_a_websocket(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::GET
        && names(headers, UPGRADE, "websocket")
        && names(headers, CONNECTION, "upgrade")
}

/// Whether one of the words of a header is this one.
fn names(headers: &HeaderMap, header: HeaderName, word: &str) -> bool {
    let values = headers.get_all(header).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
}

/// The library takes any text for a key, and any version.
fn check_websocket(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let is_key = |key: &str| {
        let digits = key.strip_suffix("==").unwrap_or_default();
        let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || b"+/".contains(&byte);
        digits.len() == 22 && digits.bytes().all(is_digit)
    };
    if !text("sec-websocket-key").is_some_and(is_key) {
        return Err(Refusal::InvalidKey);
    }
    let version = text("sec-websocket-version");
    if !version.is_some_and(|version| WEBSOCKET_VERSIONS.contains(&version)) {
        return Err(Refusal::InvalidVersion);
    }
    Ok(())
}

/// Makes the library read the query of a request as the server of Node does: it looks for the first of several
/// values, decodes nothing, and takes an empty name of a socket for one that is unknown.
pub fn settle_query(uri: &mut Uri) {
    let query = uri.query().unwrap_or_default();
    let is_plain = !query.contains(['%', '+'])
        && NAMES.iter().all(|name| {
            let values = query.split('&').filter_map(|pair| pair.strip_prefix(name));
            values.filter(|rest| rest.is_empty() || rest.starts_with('=')).count() < 2
        })
        && !query.split('&').any(|pair| pair == "sid=" || pair == "sid");
    if is_plain {
        return;
    }
    let read = Query::of(uri);
    let known = [read.protocol, read.transport, read.sid.filter(|sid| !sid.is_empty())];
    let mut settled = form_urlencoded::Serializer::new(String::new());
    for (name, value) in NAMES.iter().zip(known) {
        if let Some(value) = value {
            settled.append_pair(name, &value);
        }
    }
    let others = form_urlencoded::parse(query.as_bytes());
    settled.extend_pairs(others.filter(|(name, _)| !NAMES.contains(&&**name)));
    let settled = format!("{}?{}", uri.path(), settled.finish());
    if let Ok(settled) = settled.parse() {
        *uri = settled;
    }
}

/// An answer of the library as the server of Node gives it.
pub async fn translated(answer: Response, method: &Method) -> Response {
    match answer.status() {
        StatusCode::BAD_REQUEST => translated_refusal(answer).await,
        StatusCode::OK => {
            let mut answer = answer;
            let headers = answer.headers_mut();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            if method == Method::POST {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
            }
            answer
        }
        _ => answer,
    }
}

/// Whether it is an answer to the polling of a socket, and no file of the client's, which lie beside it.
pub fn is_polled(answer: &Response) -> bool {
    let kind = answer.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    answer.status() == StatusCode::OK && kind.starts_with(b"text/plain")
}

async fn translated_refusal(answer: Response) -> Response {
    #[derive(Deserialize)]
    struct Body<'a> {
        message: &'a str,
    }
    if answer.body().size_hint().exact().is_none_or(|bytes| bytes > REFUSAL_BYTES_MAX as u64) {
        return answer;
    }
    let (head, body) = answer.into_parts();
    // It is there already.
    let body = axum::body::to_bytes(body, REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let told = serde_json::from_slice::<Body<'_>>(&body);
    let refusal = told.ok().and_then(|told| {
        Refusal::ALL.into_iter().find(|refusal| refusal.message() == told.message)
    });
    match refusal {
        Some(refusal) => refusal.into_response(),
        None => Response::from_parts(head, body.into()),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn settled(query: &str) -> String {
        let mut uri = format!("/socket.io/?{query}").parse().unwrap();
        settle_query(&mut uri);
        uri.query().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_query_counts_as_the_server_of_node_reads_it() {
        for plain in
            ["", "EIO=4&transport=polling", "EIO=4&transport=polling&t=x&sidecar=1&sid=abc"]
        {
            assert_eq!(settled(plain), plain);
        }
        assert_eq!(settled("EIO=3&EIO=4&transport=polling"), "EIO=4&transport=polling");
        assert_eq!(settled("EIO=%34&transport=poll%69ng"), "EIO=4&transport=polling");
        assert_eq!(settled("EIO=4&sid=&transport=polling"), "EIO=4&transport=polling");
        assert_eq!(settled("a=%20b&EIO=4&sid=x&sid=y"), "EIO=4&sid=y&a=+b");
    }

    fn refusal_of(method: &str, query: &str, headers: &[(&str, &str)]) -> Option<u8> {
        let mut request = Request::builder().method(method).uri(format!("/socket.io/?{query}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let is_upgrade = asks_for_a_websocket(request.method(), request.headers());
        refusal(&request, is_upgrade).err().map(Refusal::code)
    }

    #[test]
    fn a_websocket_is_asked_for_in_so_many_words() {
        const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        const VERSION: (&str, &str) = ("sec-websocket-version", "13");
        const UPGRADE: (&str, &str) = ("upgrade", "h2c, WebSocket");
        const CONNECTION: (&str, &str) = ("connection", "keep-alive, Upgrade");
        let query = "EIO=4&transport=websocket";
        assert_eq!(refusal_of("GET", query, &[KEY, VERSION, UPGRADE, CONNECTION]), None);
        for missing in
            [&[KEY, VERSION, UPGRADE], &[KEY, VERSION, CONNECTION], &[KEY, UPGRADE, CONNECTION]]
        {
            assert_eq!(refusal_of("GET", query, missing), Some(3));
        }
        let short = ("sec-websocket-key", "short");
        assert_eq!(refusal_of("GET", query, &[short, VERSION, UPGRADE, CONNECTION]), Some(3));
    }

    #[test]
    fn mistakes_are_told_in_the_order_of_the_server_of_node() {
        for (method, query, code) in [
            ("POST", "EIO=3", Some(0)),
            ("POST", "EIO=3&transport=polling&sid=unknown", Some(1)),
            ("POST", "EIO=3&transport=polling", Some(2)),
            ("GET", "transport=websocket", Some(3)),
            ("GET", "EIO=3&transport=polling", Some(5)),
            ("GET", "EIO=4&transport=polling", None),
        ] {
            assert_eq!(refusal_of(method, query, &[]), code, "{method} {query}");
        }
    }
}
