//! How often one client address may ask for anything, and how often it may read what is stored, which costs Postgres
//! time.

use std::sync::Arc;

use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::access::limits::ReadSlot;
use crate::app::Gateway;
use crate::problem::Problem;
use crate::transport::leaving_body::{Leaves, LeavingBody, PIECE_BYTES};

/// Where what is stored is read.
const STORED: &str = "/api/";

/// Refuses requests beyond the limit, and ends their connection: answers are cheap, and who sends requests without
/// waiting for them could have as many as the processor makes.
pub async fn limit_requests(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(address) = gateway.config.trusted_proxies.client_of(&request)
        && let Err(error) = gateway.limits.http_request(address)
    {
        let mut refused = Problem::from(error).into_response();
        refused.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return refused;
    }
    next.run(request).await
}

/// Refuses reads beyond the limits: too many one after the other, or at once. An answer is under way until its client
/// has taken it, as what is read for it is kept as long.
pub async fn limit_reads(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
    next: Next,
) -> Response {
    let client = gateway.config.trusted_proxies.client_of(&request);
    let Some(address) = client.filter(|_| reads(&request)) else { return next.run(request).await };
    let limits = &gateway.limits;
    match limits.http_read(address).and_then(|()| limits.read_under_way(address)) {
        Ok(Some(slot)) => next.run(request).await.map(|body| until_taken(body, slot)),
        Ok(None) => next.run(request).await,
        Err(error) => Problem::from(error).into_response(),
    }
}

/// Gives the place back when the answer has left; at once where it is short.
fn until_taken(body: Body, slot: ReadSlot) -> Body {
    let is_short = body.size_hint().upper().is_some_and(|bytes| bytes <= PIECE_BYTES as u64);
    if is_short { body } else { Body::new(LeavingBody::new(body, Held(Some(slot)))) }
}

/// The place of a read whose answer is on its way.
struct Held(Option<ReadSlot>);

impl Leaves for Held {
    fn took(&mut self, _: usize) {}

    fn left(&mut self) {
        self.0 = None;
    }
}

/// Whether it reads what is stored, and does not change it.
fn reads(request: &Request) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && request.uri().path().starts_with(STORED)
}
