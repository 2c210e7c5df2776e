//! In which states the power is cut, and of what.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

/// What is cut off, and what went on before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Case {
    /// All machines at once, with everything up.
    Everything,
    /// All machines at once, with every persister stopped for 3 s.
    PersisterStopped,
    /// All machines at once, with Postgres stopped for 10 s.
    PostgresStopped,
    /// The disk under NATS alone; gateways and persisters live on.
    Nats,
    /// The disk under Postgres alone.
    Postgres,
    /// All machines at once, within 10 s of the very first start.
    FirstStart,
}

/// What loses its power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    Everything,
    Nats,
    Postgres,
}

impl Case {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::Everything,
        Self::PersisterStopped,
        Self::PostgresStopped,
        Self::Nats,
        Self::Postgres,
        Self::FirstStart,
    ];

    pub(super) fn victim(self) -> Victim {
        match self {
            Self::Nats => Victim::Nats,
            Self::Postgres => Victim::Postgres,
            _ => Victim::Everything,
        }
    }

    /// How long something stands still before the cut.
    pub(super) fn standstill(self) -> Duration {
        match self {
            Self::PersisterStopped => Duration::from_secs(3),
            Self::PostgresStopped => Duration::from_secs(10),
            _ => Duration::ZERO,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Everything => "everything up",
            Self::PersisterStopped => "persisters stopped for 3 s",
            Self::PostgresStopped => "Postgres stopped for 10 s",
            Self::Nats => "NATS's disk alone",
            Self::Postgres => "Postgres's disk alone",
            Self::FirstStart => "within 10 s of the first start",
        })
    }
}
