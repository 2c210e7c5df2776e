//! The events by which agents change something about a session: who answers it, whether it is open, whether an AI may
//! answer. Each is decided by its place in the log and acked once it is.

use std::borrow::Cow;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::change::{Agent, Assignment, Change, Status};
use shared::ids::SessionId;

use crate::access::rights::{Action, Role};
use crate::delivery::inboxes::AiMode;
use crate::error::{ClientError, ErrorCode};
use crate::fields::{Field, Fields, Kind};
use crate::log::accept_message::{self, Send};
use crate::log::pending_sends::{Outcome, Waiter};
use crate::log::send_permits::SendPermit;
use crate::socket::ack::Ack;
use crate::socket::connection::Connection;
use crate::socket::payload::RawEvent;

/// `toggle-ai-mode`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Switch {
    session_id: String,
    enabled: bool,
}

impl Fields for Switch {
    const FIELDS: &'static [Field] =
        &[Field::required("sessionId", Kind::Text), Field::required("enabled", Kind::Flag)];
}

/// `claim-session`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claim {
    session_id: String,
    agent: Option<String>,
}

impl Fields for Claim {
    const FIELDS: &'static [Field] =
        &[Field::required("sessionId", Kind::Text), Field::optional("agent", Kind::Text)];
}

/// `release-session`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Release {
    session_id: String,
}

impl Fields for Release {
    const FIELDS: &'static [Field] = &[Field::required("sessionId", Kind::Text)];
}

/// `set-status`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SetStatus {
    session_id: String,
    status: String,
}

impl Fields for SetStatus {
    const FIELDS: &'static [Field] =
        &[Field::required("sessionId", Kind::Text), Field::required("status", Kind::Text)];
}

/// The ack of a change that counts.
#[derive(Serialize)]
struct Changed<'a> {
    session: &'a RawValue,
}

/// The ack of a claim that does not count; if it came too late, with the session as it is.
#[derive(Serialize)]
struct Lost<'a> {
    error: &'a ClientError,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a RawValue>,
}

/// A change that was checked and waits for its turn.
struct Waiting {
    connection: Arc<Connection>,
    send: Send,
    permit: SendPermit,
    asked: Asked,
}

/// Who asked.
struct Asked {
    connection: Arc<Connection>,
    session: SessionId,
    /// Until it is given.
    ack: Option<Ack>,
    /// What `toggle-ai-mode` is answered with.
    mode: Option<bool>,
}

/// `toggle-ai-mode`: from there on in the log no message of an AI is stored, or it is again.
pub fn on_toggle_ai_mode(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    let switch = object::<Switch>(connection, event, "sessionId and enabled");
    let change = switch.and_then(|switch| {
        let change = Change { ai_enabled: Some(switch.enabled), ..Change::default() };
        Ok((parse(&switch.session_id)?, change))
    });
    change_session(connection, event, ack, change);
}

/// `claim-session`: the first claim in the log has the session until it is released.
pub fn on_claim(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    let claim = object::<Claim>(connection, event, "sessionId");
    let change = claim.and_then(|claim| {
        let session = parse(&claim.session_id)?;
        let agent = agent(connection, claim.agent)?;
        let assignment = Some(Assignment::Claim(agent));
        Ok((session, Change { assignment, ..Change::default() }))
    });
    change_session(connection, event, ack, change);
}

/// `release-session`: whoever has it.
pub fn on_release(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    let release = object::<Release>(connection, event, "sessionId");
    let change = release.and_then(|release| {
        let assignment = Some(Assignment::Release);
        Ok((parse(&release.session_id)?, Change { assignment, ..Change::default() }))
    });
    change_session(connection, event, ack, change);
}

/// `set-status`.
pub fn on_set_status(connection: &Arc<Connection>, event: &RawEvent, ack: Ack) {
    let wanted = object::<SetStatus>(connection, event, "sessionId and status");
    let change = wanted.and_then(|wanted| {
        let status = Status::parse(&wanted.status);
        let status = status.ok_or_else(|| invalid("status must be open or closed"))?;
        let change = Change { status: Some(status), ..Change::default() };
        Ok((parse(&wanted.session_id)?, change))
    });
    change_session(connection, event, ack, change);
}

fn object<T: DeserializeOwned + Fields>(
    connection: &Connection,
    event: &RawEvent,
    names: &str,
) -> Result<T, ClientError> {
    connection.caller.may(Action::ChangeSession)?;
    event.object()?.ok_or_else(|| invalid(format!("an object with {names} is missing")))
}

fn parse(session: &str) -> Result<SessionId, ClientError> {
    SessionId::parse(session).map_err(|_| ClientError::session_not_found())
}

/// Who claims: the token's owner, or in open mode whoever it says it is.
fn agent(connection: &Connection, given: Option<String>) -> Result<Agent, ClientError> {
    if connection.caller.role == Role::Open {
        let agent = given.ok_or_else(|| {
            invalid("agent is missing: where nobody shows a token it says who claims")
        })?;
        return Agent::try_from(agent).map_err(|error| invalid(error.to_string()));
    }
    let subject = connection.caller.subject.as_deref().unwrap_or_default();
    Agent::try_from(subject.to_owned())
        .map_err(|error| invalid(format!("the token's sub: {error}")))
}

fn invalid(text: impl Into<Cow<'static, str>>) -> ClientError {
    ClientError::new(ErrorCode::InvalidPayload, text)
}

/// Queues a change behind what this socket has sent before: the log has them in this order.
fn change_session(
    connection: &Arc<Connection>,
    event: &RawEvent,
    ack: Ack,
    change: Result<(SessionId, Change), ClientError>,
) {
    let (session, change) = match change {
        Ok(change) => change,
        Err(error) => return ack.refuse(&error),
    };
    if connection.gateway.stop.is_cancelled() {
        return ack.refuse(&ClientError::stopping());
    }
    let permit = connection.gateway.publisher.send_permit(Some(ack.socket.id));
    let (Some(permit), Some(slot)) = (permit, connection.sends.reserve(event.bytes())) else {
        return ack.refuse(&ClientError::overloaded());
    };
    let (owner, mode) = (Arc::clone(connection), change.ai_enabled);
    let asked = Asked { connection: Arc::clone(connection), session, ack: Some(ack), mode };
    let send = Send::change(session, change);
    let waiting = Waiting { connection: owner, send, permit, asked };
    slot.run(move || waiting.run());
}

impl Waiting {
    async fn run(self) {
        let Self { connection, send, permit, asked } = self;
        accept_message::put(connection.gateway.way_of_sends(), send, permit, Box::new(asked)).await;
    }
}

impl Waiter for Asked {
    fn tell(&mut self, outcome: Outcome) {
        // That it was refused after all is seen in the session.
        let Some(ack) = self.ack.take() else { return };
        match (outcome, self.mode) {
            (Outcome::Accepted, _) => ack.refuse(&ClientError::undecided()),
            (Outcome::Stored, Some(enabled)) => {
                ack.send(&AiMode { session_id: self.session, enabled });
            }
            (Outcome::Stored, None) => self.show(ack, None),
            (Outcome::Failed(error), _) if error == ClientError::claimed() => {
                self.show(ack, Some(error));
            }
            (Outcome::Failed(error), _) => ack.refuse(&error),
        }
    }
}

impl Asked {
    /// Answers with the session as it is now.
    fn show(&self, ack: Ack, error: Option<ClientError>) {
        let (connection, session) = (Arc::clone(&self.connection), self.session);
        tokio::spawn(async move {
            let entry = connection.gateway.entries.one(session).await;
            match (entry, error) {
                (Ok(Some(session)), None) => ack.send(&Changed { session: &session }),
                (Ok(Some(session)), Some(error)) => {
                    let lost = Lost { error: &error, session: Some(&session) };
                    ack.refuse_with(&error, &lost);
                }
                (Ok(None), _) => ack.refuse(&ClientError::session_not_found()),
                (Err(error), _) => {
                    tracing::warn!(%error, "a session that was changed cannot be read");
                    ack.refuse(&ClientError::undecided());
                }
            }
        });
    }
}
