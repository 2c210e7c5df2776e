//! What a run is told.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use url::Url;

use super::talk::Load;

/// Measures a server that speaks the seed's protocol: ours, started for the run, or any other.
///
/// A message has 100 characters; a session has two members that both send and both see everything.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo load")]
pub struct Arguments {
    /// What is measured.
    #[command(subcommand)]
    pub(super) what: What,
    /// A server that runs already, in place of a stack of our own, as `http://127.0.0.1:4000`
    #[arg(long, global = true)]
    pub(super) url: Option<Url>,
    /// Processes of that server whose use is measured, as NAME=PID.
    #[arg(long, global = true, value_name = "NAME=PID")]
    pub(super) process: Vec<Process>,
    /// Gateways of our stack.
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub(super) gateways: u16,
    /// Persisters of our stack.
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub(super) persisters: u16,
    /// Three nats-servers in place of one, and three copies of the log.
    #[arg(long, global = true)]
    pub(super) nats_cluster: bool,
    /// When nats-server writes the log to the disk: `always`, or a time.
    #[arg(long, global = true, value_name = "INTERVAL", default_value = "2m")]
    pub(super) sync_interval: String,
    /// A variable for our gateways and persisters, as NAME=VALUE.
    #[arg(long, global = true, value_name = "NAME=VALUE")]
    pub(super) env: Vec<Variable>,
    /// How often everything is started and measured anew.
    #[arg(long, global = true, default_value_t = 1)]
    pub(super) runs: u32,
    /// A folder with another build of the two programs: runs of both alternate.
    #[arg(long, global = true, value_name = "FOLDER")]
    pub(super) against: Option<PathBuf>,
    /// Where every value of every run is written.
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum What {
    /// Every sender has so many messages on their way, and sends the next one when one was shown to it.
    Closed(Closed),
    /// Messages are sent at a fixed rate, whatever becomes of them; their times count from when they
    /// were due.
    Open(Open),
    /// Connections that say nothing, from many addresses: what each takes in the gateway's memory.
    Idle(Idle),
    /// A gateway that is stopped and started: when all its clients are in their sessions again, half of them with
    /// `after`, and what that takes.
    Redeploy(Redeploy),
    /// Reads of long histories, beside looks at /health.
    History(History),
    /// What was collected while no persister ran is stored by 1, 2 and 4 of them.
    Backlog(Backlog),
    /// Acks while Postgres is stopped, and what comes after.
    Outage(Outage),
    /// What the parts can do alone on this machine: log, database, socket library.
    Parts(Parts),
    /// Answers every message to its room and does nothing else: the socket library alone.
    #[command(hide = true)]
    Echo,
}

/// A closed loop.
#[derive(Clone, Debug, Args)]
pub(super) struct Closed {
    #[command(flatten)]
    pub(super) crowd: Crowd,
    /// Messages of each sender on their way.
    #[arg(long, default_value_t = 1)]
    pub(super) in_flight: u64,
    /// Measures the parts at the same concurrency after each run, and what the run takes of them.
    #[arg(long)]
    pub(super) floor: bool,
}

/// An open loop.
#[derive(Clone, Debug, Args)]
pub(super) struct Open {
    #[command(flatten)]
    pub(super) crowd: Crowd,
    /// Messages a second of all senders together.
    #[arg(long, default_value_t = 1_000)]
    pub(super) rate: u64,
    /// Messages that a sender sends at once.
    #[arg(long, default_value_t = 1)]
    pub(super) burst: u64,
}

/// Who talks, and for how long.
#[derive(Clone, Debug, Args)]
pub(super) struct Crowd {
    /// Sessions of two senders each.
    #[arg(long, default_value_t = 50)]
    pub(super) sessions: usize,
    /// How long is measured.
    #[arg(long, default_value_t = 10)]
    pub(super) seconds: u64,
    /// How long is talked before.
    #[arg(long, default_value_t = 3)]
    pub(super) warm_up: u64,
}

/// Idle connections.
#[derive(Clone, Debug, Args)]
pub(super) struct Idle {
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    pub(super) connections: usize,
    /// They open no session.
    #[arg(long)]
    pub(super) without_session: bool,
}

/// Clients of a gateway that is started again.
#[derive(Clone, Debug, Args)]
pub(super) struct Redeploy {
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    pub(super) connections: usize,
}

/// Readers of histories.
#[derive(Clone, Debug, Args)]
pub(super) struct History {
    /// Sessions that are stored before.
    #[arg(long, default_value_t = 20_000)]
    pub(super) sessions: u32,
    /// Messages of each.
    #[arg(long, default_value_t = 20)]
    pub(super) messages: u32,
    /// Readers of single sessions at a time.
    #[arg(long, default_value_t = 32)]
    pub(super) connections: usize,
    /// How long they read.
    #[arg(long, default_value_t = 10)]
    pub(super) seconds: u64,
    /// The database of the server that `--url` names; it is not filled.
    #[arg(long)]
    pub(super) database_url: Option<String>,
}

/// A backlog.
#[derive(Clone, Debug, Args)]
pub(super) struct Backlog {
    /// Messages to store.
    #[arg(long, default_value_t = 1_000_000)]
    pub(super) messages: u64,
    /// Sessions that they belong to.
    #[arg(long, default_value_t = 1_000)]
    pub(super) sessions: usize,
    /// Persisters that share the work, in turn.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    pub(super) by: Vec<usize>,
}

/// Postgres is away.
#[derive(Clone, Debug, Args)]
pub(super) struct Outage {
    #[command(flatten)]
    pub(super) open: Open,
}

/// The parts alone.
#[derive(Clone, Debug, Args)]
pub(super) struct Parts {
    /// How long each is measured.
    #[arg(long, default_value_t = 3)]
    pub(super) seconds: u64,
}

/// A process to measure.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) id: u32,
}

/// A variable to set.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
}

impl FromStr for Process {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Variable { name, value } = text.parse()?;
        Ok(Self { name, id: value.parse().map_err(|_| "no process id")? })
    }
}

impl FromStr for Variable {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or("a name, =, and a value")?;
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }
}

impl Open {
    pub(super) fn load(&self) -> Load {
        Load::Open { rate: self.rate, burst: self.burst }
    }
}

impl Crowd {
    pub(super) fn measured(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    pub(super) fn warms_up(&self) -> Duration {
        Duration::from_secs(self.warm_up)
    }
}
