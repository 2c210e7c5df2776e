//! What operators ask for: `/health` while the process lives, `/ready` while it can work, `/metrics`.
//! It answers from the first moment to the last, also while the persister drains.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::METRICS;
use crate::readiness::Readiness;

/// Listens where the settings say.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("OPS_ADDRESS: cannot listen on {address}"))
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, readiness: Readiness) -> anyhow::Result<()> {
    let measured = readiness.clone();
    let router = Router::new()
        .route("/health", get(health))
        .route("/ready", get(move || async move { ready(&readiness).await }))
        .route("/metrics", get(move || async move { metrics(&measured).await }));
    Ok(axum::serve(listener, router).await?)
}

async fn health() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#)
}

async fn ready(readiness: &Readiness) -> (StatusCode, String) {
    let report = readiness.report().await;
    let ready = report.is_ready();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, report.to_string())
}

async fn metrics(readiness: &Readiness) -> Response {
    readiness.measure().await;
    match METRICS.text() {
        Ok(text) => ([(header::CONTENT_TYPE, shared::metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
