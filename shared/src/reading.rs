//! What is told beside the log, and lost without harm: who types, and up to which message a side has read.

use serde::{Deserialize, Serialize};

use crate::ids::{MessageId, SessionId};
use crate::message::Sender;
use crate::presence::GatewayId;

/// A side of a session types, or does not any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typing {
    /// Where it does: that gateway has told its own sockets.
    pub gateway: GatewayId,
    pub session: SessionId,
    pub sender: Sender,
    pub typing: bool,
}

/// A side of a session has read it up to a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadMark {
    pub session: SessionId,
    /// Which side.
    pub reader: Sender,
    pub message: MessageId,
}

/// Marks that travel together: on their way to a persister, or kept and on their way to gateways.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadMarks {
    pub marks: Vec<ReadMark>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_were_written() {
        let mark = ReadMark {
            session: SessionId::random(),
            reader: Sender::Admin,
            message: MessageId::random(),
        };
        let marks = ReadMarks { marks: vec![mark] };
        let json = serde_json::to_string(&marks).unwrap();
        assert_eq!(serde_json::from_str::<ReadMarks>(&json).unwrap(), marks);
        assert!(serde_json::from_str::<ReadMarks>(&json.replace("admin", "nobody")).is_err());
    }
}
