//! Who may do what: the one table for sockets and HTTP.
//!
//! In open mode, the seed's, nobody authenticates and everybody may do everything. In keyed mode a
//! caller without a token is a visitor, whom knowing a session's id lets into that session; agents
//! and integrators show a token ([`crate::access::token`]).

use std::sync::Arc;

use time::OffsetDateTime;

use crate::error::{ClientError, ErrorCode};

/// What somebody is to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Anybody, where nobody authenticates.
    Open,
    /// Somebody without a token.
    Visitor,
    /// A program that reads and answers.
    Integrator,
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
    /// `admin-connect`, `get-sessions`, `get-all-sessions`.
    Inbox,
    /// `get-messages`, `get-session`.
    ReadSession,
    /// `admin-join-session`, `admin-leave-session`.
    JoinSession,
    /// `toggle-ai-mode`, `claim-session`, `release-session`, `set-status`.
    ChangeSession,
    /// `mark-read`, `typing`.
    TakePart,
    /// `GET /api/chats`.
    ListChats,
    /// `GET /api/messages`.
    SearchMessages,
    /// `GET /api/chats/:sessionId`.
    ReadChat,
    /// `POST /api/chats/:sessionId/messages`.
    PostMessage,
    /// `PATCH /api/chats/:sessionId`, `POST /api/chats/:sessionId/typing`.
    ChangeChat,
    /// `GET /api/events`.
    ReadEvents,
    /// `GET /api/chats/:sessionId/export`.
    ExportChat,
    /// `DELETE /api/chats/:sessionId`.
    EraseChat,
}

impl Role {
    pub fn may(self, action: Action) -> bool {
        use Action::{
            ChangeChat, ChangeSession, EraseChat, ExportChat, Inbox, InitSession, JoinSession,
            ListChats, PostMessage, ReadChat, ReadEvents, ReadSession, SearchMessages, SendAsAdmin,
            SendAsUser, TakePart,
        };
        match (self, action) {
            (Self::Open | Self::Admin, _)
            | (_, InitSession | SendAsUser | ReadChat | TakePart)
            | (Self::Integrator, PostMessage | ChangeChat | ReadEvents) => true,
            (
                Self::Visitor | Self::Integrator,
                SendAsAdmin | ListChats | SearchMessages | PostMessage | ChangeChat | ReadEvents
                | ExportChat | EraseChat | Inbox | ReadSession | JoinSession | ChangeSession,
            ) => false,
        }
    }
}

/// Who emits an event or asks for a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
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

    /// The same caller shows two tokens: its rights end with the first of them.
    pub fn and(self, other: &Self) -> Result<Self, ClientError> {
        if (self.role, &self.subject) != (other.role, &other.subject) {
            let text = "two tokens are shown, of different owners";
            return Err(ClientError::new(ErrorCode::Unauthorized, text));
        }
        Ok(Self { expires_at: self.expires_at.min(other.expires_at), ..self })
    }

    /// Whether its rights have ended.
    pub fn has_expired(&self) -> bool {
        self.expires_at.is_some_and(|end| end <= OffsetDateTime::now_utc())
    }

    /// Whether it has this right now.
    pub fn may(&self, action: Action) -> Result<(), ClientError> {
        if self.has_expired() {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Role by role, in the order of [`ROLES`]; a new action does not compile until it stands here.
    fn wanted(action: Action) -> [bool; 4] {
        match action {
            Action::InitSession | Action::SendAsUser | Action::ReadChat | Action::TakePart => {
                [true; 4]
            }
            Action::PostMessage | Action::ChangeChat | Action::ReadEvents => {
                [true, false, true, true]
            }
            Action::SendAsAdmin
            | Action::Inbox
            | Action::ReadSession
            | Action::JoinSession
            | Action::ChangeSession
            | Action::ListChats
            | Action::SearchMessages
            | Action::ExportChat
            | Action::EraseChat => [true, false, false, true],
        }
    }

    const ROLES: [Role; 4] = [Role::Open, Role::Visitor, Role::Integrator, Role::Admin];

    #[test]
    fn every_cell_of_the_table_is_meant() {
        use Action::{
            ChangeChat, ChangeSession, EraseChat, ExportChat, Inbox, InitSession, JoinSession,
            ListChats, PostMessage, ReadChat, ReadEvents, ReadSession, SearchMessages, SendAsAdmin,
            SendAsUser, TakePart,
        };
        for action in [
            InitSession,
            SendAsUser,
            SendAsAdmin,
            Inbox,
            ReadSession,
            JoinSession,
            ChangeSession,
            TakePart,
            ChangeChat,
            ReadEvents,
            ListChats,
            SearchMessages,
            ReadChat,
            PostMessage,
            ExportChat,
            EraseChat,
        ] {
            assert_eq!(ROLES.map(|role| role.may(action)), wanted(action), "{action:?}");
        }
    }

    #[test]
    fn rights_end_with_the_token() {
        let now = OffsetDateTime::now_utc();
        let caller = |expires_at| Caller { expires_at, ..Caller::anonymous(Role::Admin) };
        assert!(caller(Some(now + time::Duration::MINUTE)).may(Action::ListChats).is_ok());
        let error = caller(Some(now)).may(Action::InitSession).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthorized);
    }
}
