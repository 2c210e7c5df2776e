//! `POST /api/chats/:sessionId/messages`: how a program answers. What it says takes the way of an
//! `admin_message` through the log; the order of several is that in which the caller waits for them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Extension, FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use shared::content::{ClientOffset, Content};
use shared::ids::{MessageId, SessionId};
use shared::message::Sender;
use shared::record::NewMessage;

use crate::access::rights::Caller;
use crate::app::Gateway;
use crate::error::{ClientError, ErrorCode};
use crate::http::pagination::wrong;
use crate::http::{chats, json_stream};
use crate::log::accept_message::{self, Accepted};
use crate::log::publisher::Publisher;
use crate::problem::Problem;
use crate::socket::payload::Object;

/// Longest wait for a body; its size has a limit of its own.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// What a `clientOffset` is on sockets: of one key one message is stored.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What a program says.
#[derive(Deserialize)]
struct Payload {
    content: String,
    #[serde(rename = "isAI", default)]
    is_ai: bool,
}

/// Posts a message; it is in the log when this one's answer comes.
pub async fn post(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    if let Some(address) = gateway.config.trusted_proxies.client_of(&request) {
        gateway.limits.http_message(address)?;
    }
    let session = chats::session_of(path, request.uri())?;
    let offset = idempotency_key(request.headers())?;
    let payload = body(request).await?;
    let content = Content::parse(payload.content, gateway.config.max_content_chars);
    let content = content.map_err(ClientError::from)?;
    let session = SessionId::parse(&session).map_err(|_| ClientError::session_not_found())?;
    let id = match offset {
        Some(offset) => {
            MessageId::derived(session, Sender::Admin, caller.subject.as_deref(), &offset)
        }
        None => MessageId::random(),
    };
    let message =
        NewMessage { id: id.clone(), sender: Sender::Admin, content, is_ai: payload.is_ai };
    let pending = accept_message::put(
        &gateway.lookup,
        &gateway.publisher,
        session,
        message,
        Publisher::deadline(),
    )
    .await?;
    let sequence = pending.accepted().await?;
    let partition = gateway.config.log.partitions.partition_of(session);
    accept_message::tell_accepted(&id, session, partition, sequence);
    let kind = [(header::CONTENT_TYPE, json_stream::JSON)];
    Ok((StatusCode::ACCEPTED, kind, Json(Accepted::new(&id))).into_response())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<ClientOffset>, Problem> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let key = keys.next();
    if keys.next().is_some() {
        return Err(wrong("Idempotency-Key", "is given more than once"));
    }
    let parse = |text: &str| ClientOffset::parse(text).ok();
    key.map(|key| {
        let key = std::str::from_utf8(key.as_bytes()).ok().and_then(parse);
        key.ok_or_else(|| wrong("Idempotency-Key", "must have 1 to 64 characters"))
    })
    .transpose()
}

async fn body(request: Request) -> Result<Payload, Problem> {
    let reading = Json::<Object<Payload>>::from_request(request, &());
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(Json(Object(payload)))) => Ok(payload),
        Ok(Err(rejection)) => Err(rejected(&rejection)),
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come")),
    }
}

fn rejected(rejection: &JsonRejection) -> Problem {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            ClientError::new(ErrorCode::TooLarge, "the body is larger than MAX_PAYLOAD_BYTES")
                .into()
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Content-Type: must be application/json",
        ),
        _ => ClientError::new(ErrorCode::InvalidPayload, rejection.body_text()).into(),
    }
}
