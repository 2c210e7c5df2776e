//! Who is let in to Socket.IO: the client's address, its origin, a slot for its socket, and its token.

use std::sync::Arc;

use axum::extract::{OriginalUri, Request, State};
use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use socketioxide::extract::SocketRef;

use crate::access::client_address::ClientAddress;
use crate::access::limits::SocketSlot;
use crate::access::rights::Caller;
use crate::app::Gateway;
use crate::error::ErrorCode;
use crate::metrics::METRICS;
use crate::problem::Problem;

/// Where Socket.IO is served.
const PATH: &str = "/socket.io";

/// Lets only those requests to Socket.IO that may come; the others are no business of it.
///
/// A browser shows the page's origin with every websocket, whatever CORS says.
pub async fn admit(
    State(gateway): State<Arc<Gateway>>,
    mut request: Request,
    next: Next,
) -> Response {
    if request.uri().path().starts_with(PATH) {
        if let Err(problem) = check(&gateway, &mut request) {
            return problem.into_response();
        }
        detach(&mut request);
    }
    next.run(request).await
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
#[derive(Deserialize)]
pub struct Handshake {
    #[serde(default)]
    token: Option<serde_json::Value>,
}

/// Lets a socket connect, or says why not; `handshake` is none if it cannot be read.
pub fn authenticate(
    gateway: &Gateway,
    socket: &SocketRef,
    handshake: Option<Handshake>,
) -> Result<(), String> {
    // Something that is no text is no valid token, and surely not none.
    let token = match handshake {
        Some(Handshake { token }) => {
            token.map(|token| token.as_str().unwrap_or_default().to_owned())
        }
        None => Some(String::new()),
    };
    let caller = gateway.config.caller(token.as_deref()).map_err(|error| {
        METRICS.refuse(error.code);
        error.message
    })?;
    // Extensions cost memory: visitors have none.
    if caller.subject.is_some() {
        socket.extensions.insert(caller);
    }
    Ok(())
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
