//! What can be changed about a session beside its messages: who answers it, whether it is open, whether an AI may
//! answer. Decided by the order in the log.

use serde::{Deserialize, Serialize};

/// Most characters of an agent's name, by the contract.
pub const MAX_AGENT_CHARS: usize = 64;

/// Whether a session is being dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Open,
    Closed,
}

impl Status {
    /// The value of the `status` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }

    /// Reads a column or a client's word.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Closed].into_iter().find(|status| status.as_str() == text)
    }
}

/// Who answers a session: the `sub` of a token, or in open mode whatever somebody calls itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Agent(String);

/// The name is empty, too long, or contains U+0000.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("agent must have 1 to {MAX_AGENT_CHARS} characters and no U+0000")]
pub struct InvalidAgent;

impl TryFrom<String> for Agent {
    type Error = InvalidAgent;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let chars = text.chars().take(MAX_AGENT_CHARS + 1).count();
        if (1..=MAX_AGENT_CHARS).contains(&chars) && !text.contains('\0') {
            Ok(Self(text))
        } else {
            Err(InvalidAgent)
        }
    }
}

impl From<Agent> for String {
    fn from(agent: Agent) -> Self {
        agent.0
    }
}

impl Agent {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Who is to answer a session from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assignment {
    /// This agent, unless another one has it.
    Claim(Agent),
    /// Nobody yet.
    Release,
}

/// What is changed. All of it counts, or nothing: a claim that comes too late takes the rest with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Whether messages of an AI are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ai_enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment: Option<Assignment>,
}

/// What changes have made of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionState {
    pub status: Status,
    /// As it is stored: somebody's own SQL may have put any text there.
    pub assignee: Option<String>,
    pub ai_enabled: bool,
}

impl Default for SessionState {
    /// What a session is at first.
    fn default() -> Self {
        Self { status: Status::Open, assignee: None, ai_enabled: true }
    }
}

impl SessionState {
    /// Applies a change; `false`, and nothing is changed, if it claims what another agent has.
    pub fn apply(&mut self, change: &Change) -> bool {
        if let Some(Assignment::Claim(agent)) = &change.assignment
            && self.assignee.as_deref().is_some_and(|assignee| assignee != agent.as_str())
        {
            return false;
        }
        match &change.assignment {
            Some(Assignment::Claim(agent)) => self.assignee = Some(agent.as_str().to_owned()),
            Some(Assignment::Release) => self.assignee = None,
            None => {}
        }
        self.status = change.status.unwrap_or(self.status);
        self.ai_enabled = change.ai_enabled.unwrap_or(self.ai_enabled);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(agent: &str) -> Change {
        let agent = Agent::try_from(agent.to_owned()).unwrap();
        Change { assignment: Some(Assignment::Claim(agent)), ..Change::default() }
    }

    #[test]
    fn an_agent_has_1_to_64_characters() {
        assert!(Agent::try_from("é".repeat(64)).is_ok());
        for text in [String::new(), "x".repeat(65), "a\0b".into()] {
            assert_eq!(Agent::try_from(text), Err(InvalidAgent));
        }
    }

    #[test]
    fn the_first_claim_counts_until_somebody_releases_it() {
        let mut state = SessionState::default();
        assert!(state.apply(&claim("anna")));
        assert!(state.apply(&claim("anna")), "the same once more changes nothing");
        let late = Change { status: Some(Status::Closed), ..claim("ben") };
        assert!(!state.apply(&late));
        assert_eq!((state.assignee.as_deref(), state.status), (Some("anna"), Status::Open));
        assert!(
            state.apply(&Change { assignment: Some(Assignment::Release), ..Change::default() })
        );
        assert!(state.apply(&late));
        assert_eq!((state.assignee.as_deref(), state.status), (Some("ben"), Status::Closed));
    }

    #[test]
    fn what_a_change_does_not_name_stays() {
        let mut state = SessionState { ai_enabled: false, ..SessionState::default() };
        assert!(state.apply(&claim("anna")));
        assert!(!state.ai_enabled);
        assert!(state.apply(&Change { ai_enabled: Some(true), ..Change::default() }));
        assert_eq!((state.assignee.as_deref(), state.ai_enabled), (Some("anna"), true));
    }
}
