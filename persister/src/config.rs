//! The persister's settings.

use std::net::SocketAddr;
use std::time::Duration;

use shared::database::Database;
use shared::log::LogSettings;
use shared::nats::NatsUrl;
use shared::settings::{self, Address, Mistakes, SHUTDOWN_SECONDS_MAX, Setting, Settings, Span};
use shared::telemetry::{Filter, LogFormat};

/// Settings that only the persister has.
pub const OWN: &[Setting] = &[
    Setting {
        name: "OPS_ADDRESS",
        default: "127.0.0.1:4010",
        help: "Where the persister serves /health, /ready and /metrics to operators",
    },
    Setting {
        name: "LOG_KEEP",
        default: "7d",
        help: "How long records stay in the log after they were stored, as 30s, 15m, 12h or 7d, while they \
               take at most half of LOG_MAX_BYTES; a database restored from a backup younger than this catches up",
    },
];

/// Everything a persister is told.
#[derive(Debug)]
pub struct Config {
    pub database: Database,
    pub nats: NatsUrl,
    /// The log in NATS.
    pub log: LogSettings,
    /// Where health and metrics are served.
    pub ops_address: SocketAddr,
    /// How long records stay in the log after they were stored.
    pub log_keep: Duration,
    /// Longest time from the stop to the end.
    pub shutdown: Duration,
}

/// The settings as `--help` prints them.
pub fn help() -> String {
    settings::help(&[settings::COMMON, OWN])
}

/// Reads the environment and `.env`; logging is started with what they say.
pub fn from_environment() -> Result<Config, Mistakes> {
    let mut settings = Settings::from_environment(&[settings::COMMON, OWN]);
    let filter: Filter = settings.get("RUST_LOG");
    let format: LogFormat = settings.get("LOG_FORMAT");
    let config = Config {
        database: settings.get("DATABASE_URL"),
        nats: settings.get("NATS_URL"),
        log: LogSettings::read(&mut settings),
        ops_address: settings.get::<Address>("OPS_ADDRESS").0,
        log_keep: settings.get::<Span>("LOG_KEEP").0,
        shutdown: Duration::from_secs(
            settings.number("SHUTDOWN_SECONDS", 0..=SHUTDOWN_SECONDS_MAX),
        ),
    };
    settings.finish()?;
    shared::telemetry::start(filter, format);
    config.database.warn_of_unknown_parameters();
    Ok(config)
}
