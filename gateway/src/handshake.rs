//! Who is let in to Socket.IO: the client's address, its origin, and a place for its connection.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::http::header::ORIGIN;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::Gateway;
use crate::client_info::ClientAddress;
use crate::error::ErrorCode;
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
    if request.uri().path().starts_with(PATH)
        && let Err(problem) = check(&gateway, &mut request)
    {
        return problem.into_response();
    }
    next.run(request).await
}

fn check(gateway: &Gateway, request: &mut Request) -> Result<(), Problem> {
    if !gateway.config.cors_origins.allow(request.headers().get(ORIGIN)) {
        let problem = Problem::new(StatusCode::FORBIDDEN, "CORS_ORIGINS does not name this origin");
        return Err(Problem { code: Some(ErrorCode::Forbidden), ..problem });
    }
    let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>() else {
        return Ok(());
    };
    let address = gateway.config.trusted_proxies.client(peer.ip(), request.headers());
    request.extensions_mut().insert(ClientAddress(address));
    if opens(request)
        && let Some(place) = gateway.limits.admit(address)?
    {
        request.extensions_mut().insert(Arc::new(place));
    }
    Ok(())
}

/// Whether it begins a connection; all others name theirs.
fn opens(request: &Request) -> bool {
    let query = request.uri().query().unwrap_or_default();
    !query.split('&').any(|pair| pair.starts_with("sid="))
}
