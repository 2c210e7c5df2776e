//! `POST /api/chats/:sessionId/messages`: how a program answers. What it says takes the way of an
//! `admin_message` through the log; the order of several is that in which the caller waits for them.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use shared::content::{ClientOffset, Content};
use shared::ids::{MessageId, SessionId};
use shared::message::Sender;
use shared::record::NewMessage;

use crate::access::rights::Caller;
use crate::app::Gateway;
use crate::error::ClientError;
use crate::fields::{Field, Fields, Kind};
use crate::http::pagination::wrong;
use crate::http::{chats, json_body, json_stream};
use crate::log::accept_message::{self, Acked, Send};
use crate::log::pending_sends::Outcome;
use crate::problem::Problem;

/// What a `clientOffset` is on sockets: of one key one message is stored.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What a program says.
#[derive(Deserialize)]
struct Payload {
    content: String,
    #[serde(rename = "isAI")]
    is_ai: Option<bool>,
}

impl Fields for Payload {
    const FIELDS: &'static [Field] =
        &[Field::required("content", Kind::Text), Field::optional("isAI", Kind::Flag)];
}

/// Posts a message; it is stored when this one's answer comes, or in the log and surely will be.
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
    let payload: Payload = json_body::read(request, gateway.config.max_payload_bytes).await?;
    let content = Content::parse(payload.content, gateway.config.max_content_chars);
    let content = content.map_err(ClientError::from)?;
    let session = SessionId::parse(&session).map_err(|_| ClientError::session_not_found())?;
    let (has_offset, is_ai) = (offset.is_some(), payload.is_ai.unwrap_or_default());
    let id = match offset {
        Some(offset) => {
            MessageId::derived(session, Sender::Admin, caller.subject.as_deref(), &offset)
        }
        None => MessageId::random(),
    };
    let message = NewMessage { id: id.clone(), sender: Sender::Admin, content, is_ai };
    let send = Send::message(session, message, has_offset);
    let (code, answer) = match accept_message::outcome(gateway.way_of_sends(), send).await {
        Outcome::Stored => (StatusCode::CREATED, Acked::stored(&id)),
        Outcome::Accepted => (StatusCode::ACCEPTED, Acked::accepted(&id)),
        Outcome::Failed(error) => return Err(error.into()),
    };
    let kind = [(header::CONTENT_TYPE, json_stream::JSON)];
    Ok((code, kind, Json(answer)).into_response())
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
