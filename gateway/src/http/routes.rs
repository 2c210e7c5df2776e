//! Every route, on one screen.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{delete, get, patch, post};
use socketioxide::{ParserConfig, SocketIo};
use tower::Layer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tower_http::normalize_path::NormalizePathLayer;

use crate::access::origins::Origins;
use crate::access::rights::Action;
use crate::app::Gateway;
use crate::config::Config;
use crate::http::readiness::Readiness;
use crate::http::writes::{change_session, erase_session, post_message};
use crate::http::{
    authenticate, chats, etag, feed, json_stream, openapi, rate_limits, search, try_page,
};
use crate::problem::Problem;
use crate::socket::{events, handshake};
use crate::transport::client_files;
use crate::transport::packets::ATTACHED_BYTES_MAX;

/// Packets that wait for a client at a time. The library's 128 lost most of a burst of 1,000; room
/// costs nothing while it is empty.
const SEND_BUFFER_PACKETS: usize = 8_192;
/// Attachments of an event that is refused; with more of them its connection ends.
const ATTACHMENTS_MAX: usize = 64;
/// Buffer of a websocket for reading; the library's costs 3 KB more per idle connection.
const READ_BUFFER_BYTES: usize = 1_024;
/// How long browsers may remember a preflight.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_mins(10);

/// All routes and, for its end, Socket.IO.
pub fn router(gateway: &Arc<Gateway>, readiness: Readiness) -> (Router, SocketIo) {
    let may = |action| from_fn_with_state((Arc::clone(gateway), action), authenticate::require);
    let rest = Router::new()
        .route("/health", get(health))
        .route("/ready", get(move || async move { readiness.answer().await }))
        .route("/api/chats", get(chats::list).route_layer(may(Action::ListChats)))
        .route("/api/chats/{session_id}", get(chats::messages).route_layer(may(Action::ReadChat)))
        .route(
            "/api/chats/{session_id}",
            delete(erase_session::erase).route_layer(may(Action::EraseChat)),
        )
        .route(
            "/api/chats/{session_id}",
            patch(change_session::change).route_layer(may(Action::ChangeChat)),
        )
        .route(
            "/api/chats/{session_id}/typing",
            post(change_session::typing).route_layer(may(Action::ChangeChat)),
        )
        .route(
            "/api/chats/{session_id}/export",
            get(chats::export).route_layer(may(Action::ExportChat)),
        )
        .route(
            "/api/chats/{session_id}/messages",
            post(post_message::post).route_layer(may(Action::PostMessage)),
        )
        .route("/api/events", get(feed::events).route_layer(may(Action::ReadEvents)))
        .route("/api/messages", get(search::search).route_layer(may(Action::SearchMessages)))
        .route("/openapi.json", get(openapi::document))
        .route("/asyncapi.json", get(openapi::events))
        .route("/docs", get(openapi::page))
        .route("/", get(try_page::visitor))
        .route("/agent", get(try_page::agent))
        .route("/page/{file}", get(try_page::file))
        .layer(DefaultBodyLimit::max(gateway.config.max_payload_bytes))
        .fallback(|| async { Problem::not_found() })
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed() })
        .layer(from_fn(etag::name))
        .with_state(Arc::clone(gateway));
    let rest = from_fn_with_state(Arc::clone(gateway), rate_limits::limit_reads).layer(rest);
    // As Express: a trailing slash makes no difference. It must go before a route is chosen, and before it is
    // looked what is asked for.
    let rest = NormalizePathLayer::trim_trailing_slash().layer(rest);
    let (layer, io) = socket_io(&gateway.config);
    events::register(&io, gateway);
    let files = from_fn_with_state(gateway.config.client_files.clone(), client_files::serve);
    let admit = from_fn_with_state(Arc::clone(gateway), handshake::admit);
    let limit = from_fn_with_state(Arc::clone(gateway), rate_limits::limit_requests);
    let router = Router::new()
        .fallback_service(rest)
        .layer(layer)
        .layer(admit)
        .layer(files)
        .layer(cors(&gateway.config))
        .layer(limit);
    (router, io)
}

/// What is served while the gateway waits for what it needs.
pub fn starting(config: &Config) -> Router {
    let starting = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "starting: try again");
    Router::new()
        .route("/health", get(health))
        .fallback(move || async move { starting() })
        .layer(cors(config))
}

/// Answers while the process lives.
pub async fn health() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, json_stream::JSON)], r#"{"status":"ok"}"#)
}

fn socket_io(config: &Config) -> (socketioxide::layer::SocketIoLayer, SocketIo) {
    SocketIo::builder()
        .max_buffer_size(SEND_BUFFER_PACKETS)
        .max_payload(config.max_payload_bytes as u64)
        // `max_payload` alone limits polling only.
        .ws_max_message_size(config.max_payload_bytes)
        .ws_max_frame_size(config.max_payload_bytes)
        .ws_read_buffer_size(READ_BUFFER_BYTES)
        // The contract is text only: an event with a few attachments is taken so far that it can be told so.
        .with_parser(
            ParserConfig::common()
                .max_incoming_binaries(ATTACHMENTS_MAX)
                .max_incoming_binary_buf_size(ATTACHED_BYTES_MAX),
        )
        .build_layer()
}

fn cors(config: &Config) -> CorsLayer {
    let origin = match &config.cors_origins {
        Origins::Any => AllowOrigin::any(),
        list @ Origins::List(_) => {
            let list = list.clone();
            AllowOrigin::predicate(move |origin, _| list.name(origin))
        }
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_credentials(config.cors_credentials)
        .allow_methods([
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ])
        // A `*` would not cover Authorization.
        .allow_headers(AllowHeaders::mirror_request())
        // Scripts see no others.
        .expose_headers([header::LINK, header::RETRY_AFTER])
        .max_age(PREFLIGHT_MAX_AGE)
}
