//! Every event that a client is given, on one screen; those that clients emit stand in [`crate::socket::events`].

/// An event of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emitted {
    /// A message of a session that the socket is in was stored.
    Message,
    /// A send without ack was not taken, or one that was accepted is refused.
    MessageError,
    /// The active sessions.
    SessionsList,
    /// Active and older sessions.
    AllSessionsList,
    /// Messages of a session.
    MessagesHistory,
    /// A visitor's message was stored, in whichever session.
    NewMessage,
    /// The AI of a session was switched.
    AiModeChanged,
    /// A side has read a session that the socket is in up to a message.
    Read,
    /// A side of a session that the socket is in types, or does not any more.
    Typing,
    /// Something was decided about a session, or, for those who asked for deltas, its entry in the lists changed.
    SessionUpdated,
}

impl Emitted {
    /// The event as clients see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::MessageError => "message_error",
            Self::SessionsList => "sessions-list",
            Self::AllSessionsList => "all-sessions-list",
            Self::MessagesHistory => "messages-history",
            Self::NewMessage => "new-message",
            Self::AiModeChanged => "ai-mode-changed",
            Self::Read => "read",
            Self::Typing => "typing",
            Self::SessionUpdated => "session-updated",
        }
    }
}
