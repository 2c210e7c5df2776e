//! What a run is told.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use stack::nats::SYNC_INTERVAL;

use crate::power::{Case, Plan};

use super::{random, schedule};

/// Breaks everything under load and looks whether a promise breaks with it.
///
/// Kills, stops, freezes and cuts off gateways, persisters, NATS and Postgres as a seed says, fills the log,
/// puts foreign records into it, wipes the log or tears its tail off, puts older logs and dumps back, steps the clock of the leases, deletes
/// sessions by SQL, while real clients talk. Ends at once with what broke, or after all
/// was mended with a table.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo chaos")]
pub struct Arguments {
    /// How long faults are made, in minutes; a fraction will do.
    #[arg(long, default_value_t = 10.0)]
    pub minutes: f64,
    /// Which schedule of faults; a random one if none is given.
    #[arg(long, default_value_t = random::any_seed())]
    pub seed: u64,
    /// Gateways.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub gateways: u16,
    /// Persisters.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub persisters: u16,
    /// Messages sent per second by all clients together.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=5_000))]
    pub rate: u64,
    /// Clients that are the real JavaScript one, by websocket and by polling; 0 for none.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=32))]
    pub javascript: u16,
    /// Programs that read the feed of all sessions; 0 for none.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=32))]
    pub feeds: u16,
    /// Only these kinds of fault, by the first words of their names in the table, with commas.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Not these kinds of fault.
    #[arg(long, value_delimiter = ',')]
    pub without: Vec<String>,
    /// In place of the schedule: Postgres is stopped once, for so many seconds, and no sender may see an
    /// error meanwhile.
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["only", "without", "minutes"])]
    pub postgres_away: Option<u64>,
    /// In place of the schedule: processes are only asked to stop, and started again.
    #[arg(long, value_enum, conflicts_with_all = ["only", "without", "minutes", "postgres_away"])]
    pub restart: Option<Restart>,
    /// In place of the schedule: NATS and Postgres lie on a disk whose power is cut under load; only these cases,
    /// with commas, or all. Root's, where loop devices may be mounted.
    #[arg(long, value_enum, value_name = "CASES", value_delimiter = ',', num_args = 0..,
        conflicts_with_all = ["only", "without", "minutes", "postgres_away", "restart"])]
    pub power_cut: Option<Vec<Case>>,
    /// How often each case of `--power-cut`.
    #[arg(long, default_value_t = 1)]
    pub rounds: u32,
    /// `sync_interval` of the nats-server under `--power-cut`.
    #[arg(long, default_value = SYNC_INTERVAL)]
    pub sync_interval: String,
    /// Seconds that anything may take longer than promised: for the load of this machine.
    #[arg(long, default_value_t = 3)]
    pub slack: u64,
}

/// What is restarted, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Restart {
    /// Gateways and persisters in turn, three times, as for an upgrade: no send may be refused but as
    /// `unavailable` by a gateway that restarts.
    Rolling,
    /// Everything: gateways, persisters, NATS and Postgres, in each of their 24 orders.
    Everything,
}

/// Talk before and after a single outage.
const AROUND_AN_OUTAGE: Duration = Duration::from_secs(30);

impl Arguments {
    /// How long faults are made.
    pub(super) fn time(&self) -> Duration {
        if let Some(seconds) = self.postgres_away {
            return Duration::from_secs(seconds) + AROUND_AN_OUTAGE;
        }
        if let Some(restart) = self.restart {
            return schedule::restarts_end(self, restart) + AROUND_AN_OUTAGE;
        }
        Duration::try_from_secs_f64(self.minutes * 60.0).unwrap_or_default()
    }

    /// Whether faults with this name are to be made.
    pub(super) fn wants(&self, name: &str) -> bool {
        let is_of = |kind: &String| name.starts_with(kind.as_str());
        self.postgres_away.is_none()
            && self.restart.is_none()
            && (self.only.is_empty() || self.only.iter().any(is_of))
            && !self.without.iter().any(is_of)
    }

    /// Which power cuts are asked for, if any.
    pub(super) fn power_cases(&self) -> Option<Vec<Case>> {
        let cases = self.power_cut.as_deref()?;
        Some(if cases.is_empty() { &Case::ALL } else { cases }.to_vec())
    }

    /// What each power cut is made of.
    pub(super) fn power_plan(&self) -> Plan {
        Plan {
            gateways: self.gateways.into(),
            persisters: self.persisters.into(),
            rate: self.rate,
            sync_interval: self.sync_interval.clone(),
            seed: self.seed,
        }
    }

    /// What to type to repeat it.
    pub(super) fn command(&self) -> String {
        let Self { minutes, seed, gateways, persisters, rate, javascript, feeds, slack, .. } = self;
        let kinds = |option: &str, kinds: &[String]| match kinds {
            [] => String::new(),
            kinds => format!(" {option} '{}'", kinds.join(",")),
        };
        let only = kinds("--only", &self.only) + &kinds("--without", &self.without);
        let faults = match (self.postgres_away, self.restart) {
            (Some(seconds), _) => format!("--postgres-away {seconds}"),
            (None, Some(Restart::Rolling)) => "--restart rolling".to_owned(),
            (None, Some(Restart::Everything)) => "--restart everything".to_owned(),
            (None, None) => format!("--minutes {minutes}"),
        };
        format!(
            "cargo chaos {faults} --seed {seed} --gateways {gateways} --persisters {persisters} \
             --rate {rate} --javascript {javascript} --feeds {feeds} --slack {slack}{only}"
        )
    }
}
