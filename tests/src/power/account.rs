//! What one client sent, what it was told of that, and what it was shown.

use std::time::Instant;

use serde_json::Value;

/// Characters of a message, all in all.
const LENGTH: usize = 100;

/// Members of a session: the visitor and the agent.
pub(super) const MEMBERS: usize = 2;
/// The events by which they send.
pub(super) const EVENTS: [&str; MEMBERS] = ["user_message", "admin_message"];
/// `sender` of their messages.
pub(super) const SENDERS: [&str; MEMBERS] = ["user", "admin"];

/// A message by who sent it, and which of theirs it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    pub(super) member: usize,
    pub(super) number: usize,
}

/// What an ack promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    /// Committed in Postgres.
    Stored,
    /// In the log.
    Accepted,
}

/// An ack that was received.
#[derive(Clone, Debug)]
pub(super) struct Ack {
    pub(super) at: Instant,
    pub(super) status: Status,
    pub(super) id: String,
}

/// A message that was sent, perhaps several times.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) first: Instant,
    pub(super) emits: u32,
    pub(super) ack: Option<Ack>,
}

/// A message that was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) id: String,
    pub(super) name: Name,
}

/// The account of one client.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) sent: Vec<Sent>,
    pub(super) shown: Vec<Shown>,
    /// Answers that say no, and connections that ended, by the reason.
    pub(super) refused: Vec<String>,
    /// What the contract does not allow.
    pub(super) odd: Vec<String>,
    /// Whether it was shown all that was said last.
    pub(super) complete: bool,
}

impl Name {
    pub(super) fn content(self) -> String {
        let Self { member, number } = self;
        format!("{:.<LENGTH$}", format!("{} {number} ", SENDERS[member]))
    }

    /// Unique in its session.
    pub(super) fn offset(self) -> String {
        format!("{}-{}", SENDERS[self.member], self.number)
    }

    pub(super) fn of(content: &str) -> Option<Self> {
        let (sender, rest) = content.split_once(' ')?;
        let member = SENDERS.iter().position(|known| *known == sender)?;
        let number = rest.split(' ').next()?.parse().ok()?;
        let name = Self { member, number };
        (name.content() == content).then_some(name)
    }
}

impl Shown {
    /// A message as the contract has it, which we sent.
    pub(super) fn read(message: &Value) -> Option<Self> {
        let name = Name::of(message["content"].as_str()?)?;
        let id = message["id"].as_str()?.to_owned();
        (message["sender"] == SENDERS[name.member]).then_some(Self { id, name })
    }
}

impl Ack {
    /// Nothing if it is an error.
    pub(super) fn read(answer: &Value) -> Option<Self> {
        let status = match answer["status"].as_str()? {
            "stored" => Status::Stored,
            "accepted" => Status::Accepted,
            _ => return None,
        };
        Some(Self { at: Instant::now(), status, id: answer["id"].as_str()?.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_whose_it_is_and_altered_ones_do_not() {
        let name = Name { member: 1, number: 12 };
        let content = name.content();
        assert_eq!((content.len(), Name::of(&content)), (LENGTH, Some(name)));
        assert!(Name::of(&content[1..]).is_none() && Name::of(&content[..LENGTH - 1]).is_none());
    }
}
