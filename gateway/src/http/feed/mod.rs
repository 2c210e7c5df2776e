//! `GET /api/events`: what happens in all sessions, for programs, as server-sent events (WHATWG HTML, section 9.2).
//!
//! A feed keeps one position per partition, as the delivery to rooms does: what is announced behind it comes next,
//! anything else means that something was missed, and is read from Postgres. The `id` of its last event in a batch
//! holds all these positions, and goes on from there on any gateway.

pub mod cursor;
pub mod reader;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use crate::access::rights::Caller;
use crate::app::Gateway;
use crate::error::ClientError;
use crate::http::pagination::{Parameters, wrong};
use crate::problem::Problem;
use cursor::Cursor;
use reader::FeedReader;

/// Where feeds are read.
pub const PATH: &str = "/api/events";
/// Feeds of a gateway at a time.
const FEEDS_MAX: usize = 64;
/// Most partitions: each takes some 20 characters of every cursor.
const PARTITIONS_MAX: u16 = 64;
/// With it an `EventSource` that comes back says how far it was.
const LAST_EVENT_ID: &str = "last-event-id";

/// Begins a feed: now, or behind a cursor.
pub async fn events(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let cursor = cursor_of(&headers, &uri)?;
    if gateway.config.log.partitions.get() > PARTITIONS_MAX {
        let text = format!("a feed is of {PARTITIONS_MAX} partitions at most");
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, text));
    }
    if gateway.ring.readers() >= FEEDS_MAX {
        return Err(ClientError::overloaded().into());
    }
    let reader = FeedReader::new(gateway, caller, cursor);
    let body = stream::unfold(reader, |mut reader| async move {
        let chunk = reader.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), reader))
    });
    let head = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx would keep it back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((head, Body::from_stream(body)).into_response())
}

/// Whoever comes back says so in a header; the address is that of the first time.
fn cursor_of(headers: &HeaderMap, uri: &Uri) -> Result<Option<Cursor>, Problem> {
    let last = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty());
    let (name, text) = match last {
        Some(value) => ("Last-Event-ID", Some(value.to_str().unwrap_or_default().to_owned())),
        None => ("after", Parameters::of(uri).text("after")?),
    };
    let Some(text) = text else { return Ok(None) };
    let cursor = Cursor::parse(&text).ok_or_else(|| wrong(name, "must be an id of this feed"))?;
    Ok(Some(cursor))
}
