//! Who may do what: the one table for sockets and HTTP.
//!
//! In open mode, the seed's, nobody authenticates and everybody may do everything. In keyed mode a
//! caller without a token is a visitor, whom knowing a session's id lets into that session; agents
//! and integrators show a token ([`crate::token`]).

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use time::OffsetDateTime;

use crate::Gateway;
use crate::error::{ClientError, ErrorCode};
use crate::problem::Problem;

/// What somebody is to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Anybody, where nobody authenticates.
    Open,
    /// Somebody without a token.
    Visitor,
    /// A program that reads and answers.
    Integrator,
    /// A support agent.
    Admin,
}

/// Everything that needs a right: an event, or a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `init_session`.
    InitSession,
    /// `user_message`.
    SendAsUser,
    /// `admin_message`.
    SendAsAdmin,
    /// `GET /api/chats`.
    ListChats,
    /// `GET /api/chats/:sessionId`.
    ReadChat,
}

impl Role {
    /// The table.
    pub fn may(self, action: Action) -> bool {
        use Action::{InitSession, ListChats, ReadChat, SendAsAdmin, SendAsUser};
        match (self, action) {
            (Self::Open | Self::Admin, _) | (_, InitSession | SendAsUser | ReadChat) => true,
            (Self::Visitor | Self::Integrator, SendAsAdmin | ListChats) => false,
        }
    }
}

/// Who emits an event or asks for a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// What it is.
    pub role: Role,
    /// The token's `sub`.
    pub subject: Option<Arc<str>>,
    /// When its rights end.
    pub expires_at: Option<OffsetDateTime>,
}

impl Caller {
    /// Somebody without a token.
    pub fn anonymous(role: Role) -> Self {
        Self { role, subject: None, expires_at: None }
    }

    /// Whether it has this right now.
    pub fn may(&self, action: Action) -> Result<(), ClientError> {
        if self.expires_at.is_some_and(|end| end <= OffsetDateTime::now_utc()) {
            return Err(ClientError::new(ErrorCode::Unauthorized, "the token has expired"));
        }
        match self.role {
            role if role.may(action) => Ok(()),
            Role::Visitor => Err(ClientError::new(ErrorCode::Unauthorized, "this needs a token")),
            _ => {
                Err(ClientError::new(ErrorCode::Forbidden, "the token's role does not allow this"))
            }
        }
    }
}

/// Lets only those callers to a route who may.
///
/// The caller stands among the request's extensions from here on.
pub async fn require(
    State((gateway, action)): State<(Arc<Gateway>, Action)>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = gateway.config.caller();
    match caller.may(action) {
        Ok(()) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => Problem::from(error).into_response(),
    }
}
