//! `GET /openapi.json`, `GET /asyncapi.json`, which is made from it ([`asyncapi`]), and `GET /docs`: both as a page for
//! people ([`docs_page`]).

pub mod asyncapi;
pub mod docs_page;
pub mod ordered_json;

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{Html, IntoResponse};

/// The document; tests compare it with what is served.
pub const DOCUMENT: &str = include_str!("openapi.json");
/// Nothing but the page's own style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

static PAGE: LazyLock<String> = LazyLock::new(|| {
    serde_json::from_str(DOCUMENT).map(|document| docs_page::render(&document)).unwrap_or_default()
});

/// What `/asyncapi.json` answers; tests compare it with what is said and heard.
pub static EVENTS: LazyLock<String> = LazyLock::new(|| {
    let made = serde_json::from_str(DOCUMENT).map(|document| asyncapi::made_of(&document));
    made.and_then(|events| serde_json::to_string_pretty(&events)).unwrap_or_default()
});

/// The routes as `OpenAPI` 3.1.
pub async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], DOCUMENT)
}

/// The events as `AsyncAPI` 3.
pub async fn events() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], EVENTS.as_str())
}

/// The routes and the events as a page.
pub async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(PAGE.as_str()))
}
