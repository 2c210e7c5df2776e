//! The persister's settings.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use shared::database::Database;
use shared::log::LogSettings;
use shared::nats::NatsUrl;
use shared::settings::{
    self, Address, DotEnv, Mistakes, SHUTDOWN_SECONDS_MAX, Setting, Settings, Span, Switch,
};
use shared::telemetry::{Filter, LogFormat};

/// Settings that only the persister has.
pub const OWN: &[Setting] = &[
    Setting {
        name: "OPS_ADDRESS",
        default: "127.0.0.1:4010",
        help: "Where the persister serves /health, /ready and /metrics to operators",
    },
    Setting {
        name: "DIRECT_URL",
        default: "",
        help: "Postgres itself, where DATABASE_URL names a pooler, as Prisma's directUrl: a persister needs it",
    },
    Setting {
        name: "LOG_KEEP",
        default: "7d",
        help: "How long records stay in the log after they were stored, as 30s, 15m, 12h or 7d, while they \
               take at most half of LOG_MAX_BYTES; a database restored from a backup younger than this catches up",
    },
    Setting {
        name: "RETENTION",
        default: "off",
        help: "After how long without a message a session is erased, as 90d, 1h at least; off: never",
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
    /// How long a session is kept in which nothing happens; forever without.
    pub retention: Option<Duration>,
    /// Whether messages can be searched: there is an index then.
    pub search: bool,
    /// Longest time from the stop to the end.
    pub shutdown: Duration,
}

/// How long a session is kept in which nothing happens; `off` is for ever.
#[derive(Debug, Clone, Copy)]
struct Retention(Option<Duration>);

impl FromStr for Retention {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        /// A typing error must not erase what was said today.
        const LEAST: Duration = Duration::from_hours(1);
        const INVALID: &str = "must be off or a span of time of at least 1h, such as 90d";
        if text == "off" {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(Span(retention)) if retention >= LEAST => Ok(Self(Some(retention))),
            _ => Err(INVALID),
        }
    }
}

/// The settings as `--help` prints them.
pub fn help() -> String {
    settings::help(&[settings::COMMON, OWN])
}

/// Reads the environment and `.env`; logging is started with what they say.
pub fn from_environment() -> Result<Config, Mistakes> {
    let file = DotEnv::read();
    let mut settings = Settings::from_environment(&[settings::COMMON, OWN], &file);
    let filter: Filter = settings.get("RUST_LOG");
    let format: LogFormat = settings.get("LOG_FORMAT");
    let config = Config {
        database: database(&mut settings),
        nats: settings.get("NATS_URL"),
        log: LogSettings::read(&mut settings),
        ops_address: settings.get::<Address>("OPS_ADDRESS").0,
        log_keep: settings.get::<Span>("LOG_KEEP").0,
        retention: settings.get::<Retention>("RETENTION").0,
        search: settings.get::<Switch>("SEARCH").0,
        shutdown: Duration::from_secs(
            settings.number("SHUTDOWN_SECONDS", 0..=SHUTDOWN_SECONDS_MAX),
        ),
    };
    settings.finish()?;
    shared::telemetry::start(filter, format);
    file.warn();
    config.database.warn_of_unknown_parameters();
    Ok(config)
}

/// Postgres itself. A worker that is frozen within a transaction, which a pooler needs, would hold up who takes over;
/// migrations need a session.
fn database(settings: &mut Settings) -> Database {
    let named: Database = settings.get("DATABASE_URL");
    let direct: Option<Database> = settings.optional("DIRECT_URL");
    let database = direct.unwrap_or(named);
    if database.through_pooler {
        settings.mistake(
            "DATABASE_URL: a persister cannot keep its promises through a pooler (pgbouncer=true); set DIRECT_URL to \
             the URL of Postgres itself",
        );
    }
    database
}
