//! Who is let in to Socket.IO: the client's address, its origin, and a place for its connection. And how
//! often what is stored is read.

use std::sync::Arc;

use axum::extract::{OriginalUri, Request, State};
use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::Gateway;
use crate::client_info::ClientAddress;
use crate::error::ErrorCode;
use crate::problem::Problem;

/// Where Socket.IO is served.
const PATH: &str = "/socket.io";
/// Where what is stored is read.
const STORED: &str = "/api/";

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
    } else if reads(&request)
        && let Some(address) = gateway.config.trusted_proxies.client_of(&request)
        && let Err(error) = gateway.limits.http_read(address)
    {
        return Problem::from(error).into_response();
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
        && let Some(place) = gateway.limits.admit(address)?
    {
        request.extensions_mut().insert(Arc::new(place));
    }
    Ok(())
}

/// Whether it reads what is stored, which costs Postgres time.
fn reads(request: &Request) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && request.uri().path().starts_with(STORED)
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
