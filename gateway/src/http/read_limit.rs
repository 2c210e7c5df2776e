//! How often one client address may read what is stored, which costs Postgres time.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::Gateway;
use crate::problem::Problem;

/// Where what is stored is read.
const STORED: &str = "/api/";

/// Refuses reads beyond the limit.
pub async fn limit(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    if reads(&request)
        && let Some(address) = gateway.config.trusted_proxies.client_of(&request)
        && let Err(error) = gateway.limits.http_read(address)
    {
        return Problem::from(error).into_response();
    }
    next.run(request).await
}

/// Whether it reads what is stored, and does not change it.
fn reads(request: &Request) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && request.uri().path().starts_with(STORED)
}
