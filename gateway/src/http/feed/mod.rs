//! `GET /api/events`: what happens in all sessions, for programs, as server-sent events (WHATWG HTML, section 9.2).
//!
//! A feed keeps one position per partition, as the delivery to rooms does: what is announced behind it comes next,
//! anything else means that something was missed, and is read from Postgres. The `id` of its last event in a batch
//! holds all these positions, and goes on from there on any gateway.

pub mod cursor;
pub mod reader;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use shared::lifecycle::Stop;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::access::limits::ReadSlot;
use crate::access::rights::Caller;
use crate::app::Gateway;
use crate::error::ClientError;
use crate::http::pagination::{Parameters, wrong};
use crate::problem::Problem;
use cursor::Cursor;
use reader::FeedReader;

/// Feeds of a gateway at a time.
const FEEDS_MAX: usize = 64;
/// Most partitions: each takes some 20 characters of every cursor.
const PARTITIONS_MAX: u16 = 64;
/// How often something comes, by the contract.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// What comes then.
const COMMENT: &[u8] = b":\n\n";
/// With it an `EventSource` that comes back says how far it was.
const LAST_EVENT_ID: &str = "last-event-id";

/// Begins a feed: now, or behind a cursor.
pub async fn events(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Problem> {
    let cursor = cursor_of(request.headers(), request.uri())?;
    if gateway.config.log.partitions.get() > PARTITIONS_MAX {
        let text = format!("a feed is of {PARTITIONS_MAX} partitions at most");
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, text));
    }
    if gateway.ring.readers() >= FEEDS_MAX {
        return Err(ClientError::overloaded().into());
    }
    let address = gateway.config.trusted_proxies.client_of(&request);
    let slot = address.map(|address| gateway.limits.feed_under_way(address)).transpose()?.flatten();
    let feed = Feed::begin(gateway, caller, cursor, slot);
    let body = stream::unfold(feed, |mut feed| async move {
        let chunk = feed.next().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), feed))
    });
    let head = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx would keep it back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((head, Body::from_stream(body)).into_response())
}

/// An answer that is under way. What is to be told next is read beside it: a comment that is due holds nothing up.
struct Feed {
    chunks: mpsc::Receiver<Bytes>,
    stop: Stop,
    caller: Caller,
    _reading: AbortOnDropHandle<()>,
    _slot: Option<ReadSlot>,
}

impl Feed {
    fn begin(
        gateway: Arc<Gateway>,
        caller: Caller,
        cursor: Option<Cursor>,
        slot: Option<ReadSlot>,
    ) -> Self {
        let (told, chunks) = mpsc::channel(1);
        let stop = gateway.stop.clone();
        let mut reader = FeedReader::new(gateway, cursor);
        let reading = async move {
            // Nobody takes it any more where the answer is over: then this ends too.
            while let Ok(place) = told.reserve().await {
                place.send(reader.next().await);
            }
        };
        let reading = AbortOnDropHandle::new(tokio::spawn(reading));
        Self { chunks, stop, caller, _reading: reading, _slot: slot }
    }

    /// The next part of the answer; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        let left = self.caller.expires_at.map(|end| end - OffsetDateTime::now_utc());
        let left = left.map_or(Duration::MAX, |left| left.try_into().unwrap_or_default());
        let next = tokio::time::timeout(left.min(HEARTBEAT), self.chunks.recv());
        match self.stop.run_until_cancelled(next).await? {
            Ok(chunk) => chunk,
            Err(_) if self.caller.has_expired() => None,
            Err(_) => Some(Bytes::from_static(COMMENT)),
        }
    }
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
