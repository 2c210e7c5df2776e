//! What can break.

use std::fmt;

/// A promise of the contract, as the table counts its breakages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Promise {
    /// Acked and not stored.
    Stored,
    /// Stored or shown twice.
    NothingTwice,
    /// Messages of a sender in the order of its acks.
    OrderOfSender,
    /// Every member of a room is shown every message, in one order.
    SameForAll,
    /// What was sent is what is stored and shown.
    Content,
    /// One offset, one id, for ever.
    OneId,
    /// An answer that the contract does not allow there.
    Contract,
    /// Of an erased session nothing is left.
    Erased,
    /// Feeds tell of what is stored, in its order.
    Fed,
    /// In time.
    InTime,
    /// The processes come back, and end only when told to.
    Alive,
}

impl Promise {
    /// Every one, in the order of the table.
    pub(super) const ALL: [Self; 11] = [
        Self::Stored,
        Self::NothingTwice,
        Self::OrderOfSender,
        Self::SameForAll,
        Self::Content,
        Self::OneId,
        Self::Contract,
        Self::Erased,
        Self::Fed,
        Self::InTime,
        Self::Alive,
    ];

    /// Its line in the table.
    pub(super) fn breakage(self) -> &'static str {
        match self {
            Self::Stored => "missing (acked and not stored)",
            Self::NothingTwice => "doubled (stored or shown twice)",
            Self::OrderOfSender => "out of order",
            Self::SameForAll => "unseen by a connected client",
            Self::Content => "altered content",
            Self::OneId => "another id for the same offset",
            Self::Contract => "answers against the contract",
            Self::Erased => "left of erased sessions",
            Self::Fed => "told by a feed not as it is stored",
            Self::InTime => "too late",
            Self::Alive => "processes that did not live",
        }
    }
}

/// A promise that broke, and how.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    pub(super) promise: Promise,
    pub(super) text: String,
}

impl Broken {
    pub(super) fn new(promise: Promise, text: impl Into<String>) -> Self {
        Self { promise, text: text.into() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise.breakage(), self.text)
    }
}

impl std::error::Error for Broken {}
