//! `DELETE /api/chats/:sessionId`: erases a session and what was said in it. The erasure goes through
//! the log, as everything does: what stands before it there goes, what comes behind it is refused.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use shared::ids::SessionId;
use shared::record::Record;

use crate::app::Gateway;
use crate::error::ClientError;
use crate::http::{chats, json_stream};
use crate::log::accept_message;
use crate::log::pending_sends::Key;
use crate::log::session_lookup::Existence;
use crate::problem::Problem;

/// The answer to an erasure that is in the log.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Accepted<'a> {
    session_id: &'a str,
    status: &'static str,
}

/// Asks for an erasure; it is in the log when this one's answer comes.
pub async fn erase(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let session_id = chats::session_of(path, &uri)?;
    match exists(&gateway, &session_id).await? {
        Existence::Exists => {}
        Existence::Absent => return Err(ClientError::session_not_found().into()),
        Existence::Unknown => return Err(ClientError::unavailable().into()),
    }
    let (session, request) = Record::erase(&session_id);
    let way = gateway.way_of_sends();
    let sequence = accept_message::request(way, Key::Erasure(session), session, &request).await?;
    gateway.lookup.forget(session);
    gateway.publisher.tell_ended(session).await;
    tracing::info!(session = session.short(), sequence, "a session is to be erased");
    let kind = [(header::CONTENT_TYPE, json_stream::JSON)];
    let accepted = Accepted { session_id: &session_id, status: "accepted" };
    Ok((StatusCode::ACCEPTED, kind, Json(accepted)).into_response())
}

async fn exists(gateway: &Gateway, session_id: &str) -> Result<Existence, Problem> {
    if let Ok(session) = SessionId::parse(session_id) {
        return Ok(gateway.lookup.check(session).await);
    }
    // An adopter's: the log knows none of these.
    let stored = gateway.history.session(session_id).await?;
    Ok(stored.map_or(Existence::Absent, |_| Existence::Exists))
}
