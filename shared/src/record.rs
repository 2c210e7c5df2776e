//! What the gateway and the persister's commands ask for: the records of the log.

use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::content::Content;
use crate::ids::{ChatSessionId, MessageId, SessionId};
use crate::message::Sender;

/// One record of the log. The session it belongs to stands in its subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// Open a session. It stands in the log before every message of that session.
    Session(NewSession),
    Message(NewMessage),
    /// Change something about a session that exists; it opens none. Persisters of before session changes set it
    /// aside: see `Worker` in the migrations.
    Change(NewChange),
    /// Erase the session and what was said in it, for good: what follows in the log is not stored.
    Erase(Erasure),
}

/// The session to open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewSession {
    /// Primary key of the session's row.
    pub id: ChatSessionId,
    /// The visitor's address, where it is known.
    pub ip: Option<String>,
    /// The visitor's browser, where it said so.
    pub user_agent: Option<String>,
}

/// The message to store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewMessage {
    /// Primary key of the message; the same id is stored once.
    pub id: MessageId,
    pub sender: Sender,
    pub content: Content,
    /// Written by a machine.
    #[serde(rename = "isAI", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_ai: bool,
}

/// The change to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewChange {
    /// Primary key of the change, made as that of a message; the same id counts once.
    pub id: MessageId,
    #[serde(flatten)]
    pub change: Change,
}

/// The session to erase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Erasure {
    /// What its row is called by. An adopter's may be any text, which cannot stand in a subject:
    /// there stands [`SessionId::standing_for`] it.
    pub session_id: String,
}

impl Record {
    /// The bytes of the record.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Asks for the end of a session, and says on whose subject.
    pub fn erase(session: &str) -> (SessionId, Self) {
        let erasure = Erasure { session_id: session.to_owned() };
        (SessionId::standing_for(session), Self::Erase(erasure))
    }

    /// Reads a record's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Agent, Assignment, Status};

    fn round_trips(record: &Record, json: &str) {
        assert_eq!(String::from_utf8(record.encode().unwrap()).unwrap(), json);
        assert_eq!(&Record::decode(json.as_bytes()).unwrap(), record);
    }

    #[test]
    fn a_session_record() {
        let session = NewSession {
            id: String::from("cm4abc123000000000000000a").try_into().unwrap(),
            ip: Some("127.0.0.1".into()),
            user_agent: None,
        };
        let json =
            r#"{"session":{"id":"cm4abc123000000000000000a","ip":"127.0.0.1","userAgent":null}}"#;
        round_trips(&Record::Session(session), json);
    }

    #[test]
    fn a_message_record() {
        let message = NewMessage {
            id: String::from("cm4xyz789000000000000000a").try_into().unwrap(),
            sender: Sender::User,
            content: Content::parse("Hello!".into(), 10).unwrap(),
            is_ai: false,
        };
        let json =
            r#"{"message":{"id":"cm4xyz789000000000000000a","sender":"user","content":"Hello!"}}"#;
        round_trips(&Record::Message(message), json);
    }

    #[test]
    fn a_change_record() {
        let id = String::from("cm4xyz789000000000000000a").try_into().unwrap();
        let agent = Agent::try_from("anna".to_owned()).unwrap();
        let change = Change {
            status: Some(Status::Open),
            ai_enabled: Some(false),
            assignment: Some(Assignment::Claim(agent)),
        };
        let json = r#"{"change":{"id":"cm4xyz789000000000000000a","status":"open","aiEnabled":false,"assignment":{"claim":"anna"}}}"#;
        round_trips(&Record::Change(NewChange { id, change }), json);
        let id = String::from("cm4xyz789000000000000000a").try_into().unwrap();
        let change = Change { assignment: Some(Assignment::Release), ..Change::default() };
        let json = r#"{"change":{"id":"cm4xyz789000000000000000a","assignment":"release"}}"#;
        round_trips(&Record::Change(NewChange { id, change }), json);
    }

    #[test]
    fn an_erasure_record() {
        let text = "550e8400-e29b-41d4-a716-446655440000";
        let (session, record) = Record::erase(text);
        assert_eq!(session.to_string(), text);
        round_trips(&record, &format!(r#"{{"erase":{{"sessionId":"{text}"}}}}"#));
    }

    #[test]
    fn bytes_that_are_no_record_are_refused() {
        for bytes in
            ["", "null", "{}", r#"{"message":{"id":"x"}}"#, r#"{"erase":{}}"#, r#"{"other":{}}"#]
        {
            assert!(Record::decode(bytes.as_bytes()).is_err(), "{bytes}");
        }
    }
}
