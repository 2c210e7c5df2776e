//! What gateways tell each other: whose visitors are connected where.
//!
//! Each gateway counts the changes of the set of its own sessions. One that hears a change that does
//! not follow the last one it knows asks for the whole set. Nothing of this is stored.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::SessionId;

/// Names one life of one gateway: random, made at the start of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GatewayId(Uuid);

impl GatewayId {
    /// A new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

/// Something that a gateway says to all the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    pub gateway: GatewayId,
    pub says: Says,
}

/// What a gateway says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Says {
    /// Visitors came or left; without any it only says that the gateway lives.
    #[serde(rename = "changed")]
    Delta(Delta),
    /// A part of the whole set.
    #[serde(rename = "all")]
    Snapshot(SnapshotPart),
    /// Tell me the whole set.
    #[serde(rename = "ask")]
    SnapshotRequest(SnapshotRequest),
    /// The gateway stops, and its visitors are gone.
    #[serde(rename = "gone")]
    Leave,
}

/// A change of the set of a gateway's sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The change that this one follows.
    pub since: u64,
    /// The number of this change; equal to `since` if there is none.
    pub revision: u64,
    /// Sessions whose first visitor came.
    pub came: Vec<SessionId>,
    /// Sessions whose last visitor left.
    pub left: Vec<SessionId>,
}

/// A part of the set of a gateway's sessions. The parts of a set follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPart {
    /// Up to which change the set holds.
    pub revision: u64,
    /// Which part, from 0.
    pub part: usize,
    /// How many parts there are.
    pub parts: usize,
    pub sessions: Vec<SessionId>,
}

impl SnapshotPart {
    /// Whether `next` is the part that comes after this one.
    pub fn is_before(&self, next: &Self) -> bool {
        (next.revision, next.part, next.parts) == (self.revision, self.part + 1, self.parts)
    }
}

/// A request for whole sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// Whose; everybody's if none is named.
    pub of: Option<GatewayId>,
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;

    const GATEWAY: &str = "1b4e28ba-2fa1-4d2b-883f-0016d3cca427";
    const SESSION: &str = "550e8400-e29b-41d4-a716-446655440000";

    fn round_trips<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
        value: &T,
        json: &str,
    ) {
        assert_eq!(serde_json::to_string(value).unwrap(), json);
        assert_eq!(&serde_json::from_str::<T>(json).unwrap(), value);
    }

    fn session() -> SessionId {
        SessionId::parse(SESSION).unwrap()
    }

    fn says(says: Says, json: &str) {
        let gateway = GatewayId(GATEWAY.parse().unwrap());
        let json = format!(r#"{{"gateway":"{GATEWAY}","says":{json}}}"#);
        round_trips(&Statement { gateway, says }, &json);
    }

    #[test]
    fn a_change() {
        let changed = Delta { since: 4, revision: 5, came: vec![session()], left: vec![] };
        let json =
            format!(r#"{{"changed":{{"since":4,"revision":5,"came":["{SESSION}"],"left":[]}}}}"#);
        says(Says::Delta(changed), &json);
    }

    #[test]
    fn a_part_of_the_whole() {
        let part = SnapshotPart { revision: 5, part: 0, parts: 1, sessions: vec![session()] };
        let json =
            format!(r#"{{"all":{{"revision":5,"part":0,"parts":1,"sessions":["{SESSION}"]}}}}"#);
        says(Says::Snapshot(part), &json);
    }

    #[test]
    fn a_question_and_a_farewell() {
        says(Says::SnapshotRequest(SnapshotRequest { of: None }), r#"{"ask":{"of":null}}"#);
        let of = Some(GatewayId(GATEWAY.parse().unwrap()));
        says(
            Says::SnapshotRequest(SnapshotRequest { of }),
            &format!(r#"{{"ask":{{"of":"{GATEWAY}"}}}}"#),
        );
        says(Says::Leave, r#""gone""#);
    }
}
