//! `PATCH /api/chats/:sessionId` and `POST /api/chats/:sessionId/typing`: what agents do by events, for programs.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use shared::change::{Agent, Assignment, Change, Status};
use shared::ids::SessionId;
use shared::message::Sender;

use crate::access::rights::Caller;
use crate::app::Gateway;
use crate::error::{ClientError, ErrorCode};
use crate::fields::{Field, Fields, Kind};
use crate::http::{chats, json_body, json_stream};
use crate::log::accept_message::{self, Send};
use crate::log::pending_sends::Outcome;
use crate::log::session_lookup::Existence;
use crate::problem::Problem;

/// Who claims a session by its own token.
const ME: &str = "me";

/// What a program changes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Patch {
    status: Option<String>,
    ai_enabled: Option<bool>,
    #[serde(default)]
    assignee: Assignee,
}

/// That it is there and null is something else than that it is not there.
#[derive(Default)]
enum Assignee {
    #[default]
    Missing,
    Nobody,
    Somebody(String),
}

impl<'de> Deserialize<'de> for Assignee {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Nobody, Self::Somebody))
    }
}

impl Fields for Patch {
    const FIELDS: &'static [Field] = &[
        Field::optional("status", Kind::Text),
        Field::optional("aiEnabled", Kind::Flag),
        Field::optional("assignee", Kind::Text),
    ];
}

/// What a program says of its typing.
#[derive(Deserialize)]
struct Types {
    typing: bool,
}

impl Fields for Types {
    const FIELDS: &'static [Field] = &[Field::required("typing", Kind::Flag)];
}

#[derive(Serialize)]
struct Changed {
    session: Box<RawValue>,
}

/// Changes something about a session; it is decided when this one's answer comes.
pub async fn change(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    count(&gateway, &request)?;
    let session = chats::session_of(path, request.uri())?;
    let wanted: Patch = json_body::read(request, gateway.config.max_payload_bytes).await?;
    let change = change_of(wanted, &caller)?;
    let session = SessionId::parse(&session).map_err(|_| ClientError::session_not_found())?;
    let send = Send::change(session, change);
    let lost = match accept_message::outcome(gateway.way_of_sends(), send).await {
        Outcome::Stored => None,
        Outcome::Accepted => return Err(ClientError::undecided().into()),
        Outcome::Failed(error) if error == ClientError::claimed() => Some(error),
        Outcome::Failed(error) => return Err(error.into()),
    };
    let session = gateway.entries.one(session).await.map_err(|error| {
        tracing::warn!(%error, "a session that was changed cannot be read");
        ClientError::undecided()
    })?;
    let session = session.ok_or_else(ClientError::session_not_found)?;
    if let Some(error) = lost {
        return Err(Problem { session: Some(session), ..error.into() });
    }
    let kind = [(header::CONTENT_TYPE, json_stream::JSON)];
    Ok((kind, Json(Changed { session })).into_response())
}

/// Tells those in a session that a program types, or does not any more.
pub async fn typing(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<StatusCode, Problem> {
    count(&gateway, &request)?;
    let session = chats::session_of(path, request.uri())?;
    let types: Types = json_body::read(request, gateway.config.max_payload_bytes).await?;
    let session = SessionId::parse(&session).map_err(|_| ClientError::session_not_found())?;
    match gateway.lookup.check(session).await {
        Existence::Exists => {}
        Existence::Absent => return Err(ClientError::session_not_found().into()),
        Existence::Unknown => return Err(ClientError::unavailable().into()),
    }
    gateway.typing.says(session, Sender::Admin, None, types.typing).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Both count as messages of the program's address.
fn count(gateway: &Gateway, request: &Request) -> Result<(), ClientError> {
    match gateway.config.trusted_proxies.client_of(request) {
        Some(address) => gateway.limits.http_message(address),
        None => Ok(()),
    }
}

fn change_of(wanted: Patch, caller: &Caller) -> Result<Change, ClientError> {
    let status = wanted
        .status
        .map(|text| Status::parse(&text).ok_or_else(|| invalid("status must be open or closed")));
    let assignment = match wanted.assignee {
        Assignee::Missing => None,
        Assignee::Nobody => Some(Assignment::Release),
        Assignee::Somebody(name) if name == ME => Some(Assignment::Claim(me(caller)?)),
        Assignee::Somebody(_) => return Err(invalid("assignee must be \"me\" or null")),
    };
    let change = Change { status: status.transpose()?, ai_enabled: wanted.ai_enabled, assignment };
    if change == Change::default() {
        return Err(invalid("status, aiEnabled or assignee must be there"));
    }
    Ok(change)
}

fn me(caller: &Caller) -> Result<Agent, ClientError> {
    let subject = caller.subject.as_deref();
    let subject = subject.ok_or_else(|| invalid("assignee: \"me\" is who shows a token"))?;
    Agent::try_from(subject.to_owned())
        .map_err(|error| invalid(format!("the token's sub: {error}")))
}

fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> ClientError {
    ClientError::new(ErrorCode::InvalidPayload, text)
}
