//! What operators ask for, on an address of its own: `/health`, `/ready` and `/metrics`. It answers
//! from the first moment to the last, also while the gateway drains.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::http::readiness::Readiness;
use crate::http::routes;
use crate::metrics::METRICS;

/// Listens where the settings say.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("OPS_ADDRESS: cannot listen on {address}"))
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, readiness: Readiness) -> anyhow::Result<()> {
    let ready = readiness.clone();
    let router = Router::new()
        .route("/health", get(routes::health))
        .route("/ready", get(move || async move { ready.answer().await }))
        .route("/metrics", get(move || async move { metrics(&readiness).await }));
    Ok(axum::serve(listener, router).await?)
}

async fn metrics(readiness: &Readiness) -> Response {
    readiness.measure(&METRICS.connections).await;
    match METRICS.text() {
        Ok(text) => ([(header::CONTENT_TYPE, shared::metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
