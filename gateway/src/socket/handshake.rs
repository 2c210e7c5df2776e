//! Who is let in to Socket.IO: the client's address, its origin, a slot for its socket, and its token.

use std::sync::Arc;

use axum::extract::{OriginalUri, Request, State};
use axum::http::header::ORIGIN;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use socketioxide::extract::SocketRef;

use crate::access::client_address::ClientAddress;
use crate::access::limits::SocketSlot;
use crate::access::rights::Caller;
use crate::access::shown_tokens;
use crate::app::Gateway;
use crate::error::{ClientError, ErrorCode};
use crate::metrics::METRICS;
use crate::problem::Problem;
use crate::socket::payload::Text;
use crate::transport::engine_io;

/// Lets only those requests to Socket.IO that may come; the others are no business of it.
///
/// A browser shows the page's origin with every websocket, whatever CORS says.
pub async fn admit(
    State(gateway): State<Arc<Gateway>>,
    mut request: Request,
    next: Next,
) -> Response {
    if !is_for_sockets(&request) {
        return next.run(request).await;
    }
    if let Some(refused) = engine_io::refused(&request) {
        return refused;
    }
    if let Err(problem) = check(&gateway, &mut request) {
        return problem.into_response();
    }
    detach(&mut request);
    let method = request.method().clone();
    engine_io::translated(next.run(request).await, &method).await
}

/// Whether the library answers it.
fn is_for_sockets(request: &Request) -> bool {
    let rest = request.uri().path().strip_prefix(engine_io::PATH);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn check(gateway: &Gateway, request: &mut Request) -> Result<(), Problem> {
    if !gateway.config.cors_origins.allow(request.headers().get(ORIGIN)) {
        let problem = Problem::new(StatusCode::FORBIDDEN, "CORS_ORIGINS does not name this origin");
        return Err(Problem { code: Some(ErrorCode::Forbidden), ..problem });
    }
    let Some(address) = gateway.config.trusted_proxies.client_of(request) else { return Ok(()) };
    request.extensions_mut().insert(ClientAddress(address));
    if opens(request)
        && let Some(slot) = gateway.limits.admit(address)?
    {
        request.extensions_mut().insert(Arc::new(slot));
    }
    Ok(())
}

/// Whether it begins a connection; all others name theirs.
fn opens(request: &Request) -> bool {
    let query = request.uri().query().unwrap_or_default();
    !query.split('&').any(|pair| pair.starts_with("sid="))
}

/// Copies what the library keeps as long as the socket lives: URI and headers are slices of the buffer
/// that hyper read the request into, 16 KB that an idle connection would hold for a few hundred bytes.
fn detach(request: &mut Request) {
    // axum's copy shares the buffer too, and nobody asks for it.
    request.extensions_mut().remove::<OriginalUri>();
    if let Ok(uri) = request.uri().to_string().parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    *request.headers_mut() = copied(request.headers());
}

fn copied(headers: &HeaderMap) -> HeaderMap {
    let copy = |(name, value): (&HeaderName, &HeaderValue)| {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?))
    };
    headers.iter().filter_map(copy).collect()
}

/// `auth` of the Socket.IO handshake.
#[derive(Default)]
pub struct Handshake {
    token: Option<Text>,
    /// Whether something else in it can hardly be anything but a token.
    has_misplaced: bool,
}

impl<'de> Deserialize<'de> for Handshake {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Handshake;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Handshake, A::Error> {
                let mut handshake = Handshake::default();
                while let Some((name, value)) = map.next_entry::<String, Option<Text>>()? {
                    let Some(value) = value else { continue };
                    if name != "token" {
                        let text = value.into_string().unwrap_or_default();
                        handshake.has_misplaced |= shown_tokens::looks_like_one(&text);
                    } else if handshake.token.replace(value).is_some() {
                        return Err(Error::duplicate_field("token"));
                    }
                }
                Ok(handshake)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Lets a socket connect, or says why not; `handshake` is none if it cannot be read.
pub fn authenticate(
    gateway: &Gateway,
    socket: &SocketRef,
    handshake: Option<Handshake>,
) -> Result<(), String> {
    let caller = shown_by(gateway, socket.req_parts(), handshake).map_err(|error| {
        METRICS.refuse(error.code);
        error.message
    })?;
    // Extensions cost memory: visitors have none.
    if caller.subject.is_some() {
        socket.extensions.insert(caller);
    }
    Ok(())
}

/// Who comes by all tokens that they show: in the handshake, and in the headers of the request that opened the socket.
fn shown_by(
    gateway: &Gateway,
    opening: &Parts,
    handshake: Option<Handshake>,
) -> Result<Caller, ClientError> {
    // What cannot be read at all may have been meant as a token.
    let Handshake { token, has_misplaced } =
        handshake.unwrap_or(Handshake { token: Some(Text::default()), has_misplaced: false });
    let is_misplaced = has_misplaced || shown_tokens::is_in_url(&opening.uri);
    if gateway.config.is_keyed() && is_misplaced {
        return Err(shown_tokens::misplaced());
    }
    // Something that is no text is no valid token, and surely not none.
    let token = token.map(|token| token.into_string().unwrap_or_default());
    let in_headers = shown_tokens::bearer(&opening.headers);
    gateway.config.caller(token.as_deref().into_iter().chain(in_headers))
}

/// Who is connected by this socket, after [`authenticate`].
pub fn caller_of(socket: &SocketRef, gateway: &Gateway) -> Caller {
    socket.extensions.remove().unwrap_or_else(|| gateway.config.anonymous())
}

/// The slot of this socket among those of its address; none if there are no limits.
pub fn slot_of(socket: &SocketRef) -> Option<&SocketSlot> {
    socket.req_parts().extensions.get::<Arc<SocketSlot>>().map(AsRef::as_ref)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn auth_is_an_object_with_one_token() {
        let read = |json: &str| serde_json::from_str::<Handshake>(json);
        assert!(read("{}").unwrap().token.is_none());
        assert!(read(r#"{"token":null,"name":"x"}"#).unwrap().token.is_none());
        assert!(read(r#"{"token":42}"#).unwrap().token.is_some());
        for wrong in [r#"["x"]"#, r#""x""#, "42", r#"{"token":"x","token":"y"}"#] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read(r#"{"jwt":"eyJh.eyJz.c2ln"}"#).unwrap().has_misplaced);
        assert!(!read(r#"{"token":"eyJh.eyJz.c2ln","page":"1.2.3"}"#).unwrap().has_misplaced);
    }

    #[test]
    fn a_detached_request_says_the_same() {
        let mut request = Request::get("/socket.io/?EIO=4&transport=websocket")
            .header("x-forwarded-for", "192.0.2.1")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Body::empty())
            .unwrap();
        let (uri, headers) = (request.uri().clone(), request.headers().clone());
        detach(&mut request);
        assert_eq!((request.uri(), request.headers()), (&uri, &headers));
    }
}
