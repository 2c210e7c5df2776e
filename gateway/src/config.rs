//! The gateway's settings.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use shared::database::Database;
use shared::log::LogSettings;
use shared::nats::NatsUrl;
use shared::settings::{
    self, Address, DotEnv, Mistakes, SHUTDOWN_SECONDS_MAX, Setting, Settings, Switch,
};
use shared::telemetry::{Filter, LogFormat};

use crate::access::client_address::TrustedProxies;
use crate::access::limits::LimitSettings;
use crate::access::origins::Origins;
use crate::access::rights::{Caller, Role};
use crate::access::token::{Keys, PublicKeys, Secrets};
use crate::error::ClientError;
use crate::inbox::entry::Zone;
use crate::log::pending_sends::AckSettings;
use crate::transport::backlog::WaitingLimits;
use crate::transport::client_files::ClientFiles;
use crate::transport::http_limits::HttpLimits;
use crate::transport::serve::Host;

/// Longer contents do not fit into a record of the log.
const CONTENT_CHARS_MAX: usize = 100_000;
/// Smaller packets could not carry a message of usual length.
const PAYLOAD_BYTES_MIN: usize = 8_000;
/// Larger packets are no chat.
const PAYLOAD_BYTES_MAX: usize = 100_000_000;

/// Settings that only the gateway has.
pub const OWN: &[Setting] = &[
    Setting {
        name: "HOST",
        default: "localhost",
        help: "Address to listen on; localhost is 127.0.0.1 and ::1, 0.0.0.0 or :: is every address",
    },
    Setting { name: "PORT", default: "4000", help: "Port to listen on" },
    Setting {
        name: "OPS_ADDRESS",
        default: "127.0.0.1:4009",
        help: "Where the gateway serves /health, /ready and /metrics to operators",
    },
    Setting {
        name: "JWT_SECRET",
        default: "",
        help: "Secrets of agents' tokens (HS256), separated by commas, at least 32 bytes each; the first one signs",
    },
    Setting {
        name: "JWT_PUBLIC_KEY",
        default: "",
        help: "Public keys of agents' tokens in PEM (RSA for RS256, P-256 for ES256, Ed25519 for EdDSA), \
               one after the other, or the name of a file with them",
    },
    Setting {
        name: "JWT_AUDIENCE",
        default: "",
        help: "What must stand in the aud of every token; not looked at where this is not set",
    },
    Setting {
        name: "ALLOW_INSECURE_OPEN",
        default: "false",
        help: "true serves everybody everything on other addresses than loopback too, where no key is set: \
               nobody authenticates",
    },
    Setting {
        name: "TRY_PAGE",
        default: "auto",
        help: "on serves pages to try the chat under / and /agent, off does not; auto does where nobody authenticates \
               and only this machine can connect",
    },
    Setting {
        name: "SOCKET_IO_CLIENT",
        default: "",
        help: "Folder with the files of Socket.IO's client for browsers, dist of the npm package socket.io-client: \
               served under /socket.io/, as Socket.IO's own server does",
    },
    Setting {
        name: "CORS_ORIGINS",
        default: "*",
        help: "Origins that browsers may call and connect from, separated by commas, as \
               https://www.example.com,https://*.example.org; * is every origin",
    },
    Setting {
        name: "CORS_CREDENTIALS",
        default: "false",
        help: "true lets pages of the origins that CORS_ORIGINS lists send cookies along (withCredentials)",
    },
    Setting {
        name: "TRUSTED_PROXIES",
        default: "",
        help: "Addresses and networks of proxies, separated by commas, whose Forwarded or X-Forwarded-For names \
               the client, as 10.0.0.0/8,::1",
    },
    Setting {
        name: "STORED_WAIT",
        default: "1s",
        help: "Longest wait for a message that is in the log to be stored, before its send is acked as accepted",
    },
    Setting {
        name: "LOG_SYNC",
        default: "100ms",
        help: "The sync_interval of nats-server, which no client can ask it for: an accepted message was synced",
    },
    Setting {
        name: "GUARD_BYTES",
        default: "67108864",
        help: "Most bytes of messages that are acked as accepted and not stored yet; the oldest are forgotten first, \
               and nobody is told then if they are refused",
    },
    Setting {
        name: "LIMITS",
        default: "on",
        help: "off takes the limits of messages, reads, new sessions, sockets, connections and handshakes away, for \
               load tests; sizes and times stay",
    },
    Setting {
        name: "MESSAGES_PER_SECOND",
        default: "20",
        help: "Most events of one socket per second in the long run",
    },
    Setting { name: "MESSAGES_BURST", default: "200", help: "Most events of one socket at once" },
    Setting {
        name: "HTTP_MESSAGES_PER_SECOND",
        default: "100",
        help: "Most messages of one client address over HTTP per second in the long run",
    },
    Setting {
        name: "HTTP_MESSAGES_BURST",
        default: "1000",
        help: "Most messages of one client address over HTTP at once",
    },
    Setting {
        name: "HTTP_READS_PER_SECOND",
        default: "50",
        help: "Most reads of histories and lists of one client address over HTTP per second in the long run",
    },
    Setting {
        name: "HTTP_READS_BURST",
        default: "500",
        help: "Most reads of histories and lists of one client address over HTTP at once",
    },
    Setting {
        name: "HTTP_READS_AT_ONCE",
        default: "100",
        help: "Most reads of histories and lists of one client address over HTTP that are under way, until their answers are taken",
    },
    Setting {
        name: "HTTP_REQUESTS_PER_SECOND",
        default: "1000",
        help: "Most requests of one client address per second in the long run, whatever they ask for, those of polling clients too",
    },
    Setting {
        name: "HTTP_REQUESTS_BURST",
        default: "5000",
        help: "Most requests of one client address at once",
    },
    Setting {
        name: "NEW_SESSIONS_PER_MINUTE",
        default: "60",
        help: "Most new sessions of one client address per minute; an IPv6 client's address is its /64",
    },
    Setting {
        name: "SOCKETS_PER_ADDRESS",
        default: "200",
        help: "Most sockets of one client address at a time",
    },
    Setting {
        name: "CONNECTIONS_PER_ADDRESS",
        default: "500",
        help: "Most TCP connections of one peer at a time, unless TRUSTED_PROXIES names it; never fewer than \
               SOCKETS_PER_ADDRESS, never more than half of what the limit of open files leaves room for",
    },
    Setting {
        name: "HANDSHAKES_PER_MINUTE",
        default: "600",
        help: "Most new sockets of one client address per minute; all of its sockets may come back at once",
    },
    Setting {
        name: "ROOMS_PER_SOCKET",
        default: "1000",
        help: "Most sessions that one socket may be in at a time",
    },
    Setting {
        name: "INBOX_TZ",
        default: "UTC",
        help: "Time zone of the clock times in the agents' lists, as in Europe/Berlin",
    },
    Setting {
        name: "MAX_CONTENT_CHARS",
        default: "8000",
        help: "Most characters (Unicode scalar values) of a message",
    },
    Setting {
        name: "MAX_PAYLOAD_BYTES",
        default: "1100000",
        help: "Most bytes of one Socket.IO packet; a larger one ends its connection",
    },
    Setting {
        name: "WAITING_BYTES_PER_SOCKET",
        default: "4194304",
        help: "Most bytes that wait for one socket, in memory, until it reads them, with what is held back while it \
               resumes; one answer of any size comes on top. A socket for which more waits ends",
    },
    Setting {
        name: "WAITING_BYTES_PER_ADDRESS",
        default: "67108864",
        help: "Most bytes that wait for all sockets of one client address, beyond which the largest ends; and most bytes \
               kept of what it sends",
    },
    Setting {
        name: "WAITING_BYTES",
        default: "268435456",
        help: "Most bytes that wait for all sockets, beyond which the largest ends; and most bytes kept of what all send",
    },
    Setting {
        name: "MAX_HEADER_BYTES",
        default: "16384",
        help: "Most bytes of the headers of an HTTP request",
    },
    Setting {
        name: "HEADER_SECONDS",
        default: "15",
        help: "Longest time that the headers of an HTTP request may take, and until the first request of a \
               connection is there",
    },
    Setting {
        name: "SLOW_SECONDS",
        default: "20",
        help: "How long the body of a request, a message over a websocket, or the reading of what is sent, may be slower than \
               MIN_BYTES_PER_SECOND before the connection ends",
    },
    Setting {
        name: "MIN_BYTES_PER_SECOND",
        default: "1000",
        help: "Least rate at which clients send the bodies of requests and messages over websockets, and read what is sent to \
               them",
    },
    Setting {
        name: "IDLE_SECONDS",
        default: "75",
        help: "Longest time that an HTTP connection stays open without a request, longer than that of your proxy",
    },
];

/// Everything a gateway is told.
#[derive(Debug)]
pub struct Config {
    pub database: Database,
    pub nats: NatsUrl,
    /// The log in NATS.
    pub log: LogSettings,
    pub host: Host,
    /// Port to listen on; 0 lets the system choose.
    pub port: u16,
    /// Where health and metrics are served.
    pub ops_address: SocketAddr,
    /// Keys of tokens; none in open mode.
    pub keys: Keys,
    /// Whether there are pages to try the chat.
    pub try_page: bool,
    /// The files of Socket.IO's client for browsers, where there are any.
    pub client_files: Option<Arc<ClientFiles>>,
    /// Who may call from a browser.
    pub cors_origins: Origins,
    /// Whether they may send cookies along.
    pub cors_credentials: bool,
    /// Time zone of the clock times in the agents' lists.
    pub inbox_zone: Zone,
    /// Whose word about a client's address is taken.
    pub trusted_proxies: Arc<TrustedProxies>,
    /// Who may do how much.
    pub limits: LimitSettings,
    /// What may wait for sockets.
    pub waiting: WaitingLimits,
    /// When a send is acked.
    pub acks: AckSettings,
    /// Bounds of HTTP connections.
    pub http: HttpLimits,
    /// Most Unicode scalar values of a message.
    pub max_content_chars: usize,
    /// Most bytes of a Socket.IO packet.
    pub max_payload_bytes: usize,
    /// Whether messages can be searched.
    pub search: bool,
    /// Longest time from the stop to the end.
    pub shutdown: Duration,
}

impl Config {
    /// Who comes with these tokens, each of which must be valid; nobody has two names. In open mode nobody looks
    /// at them.
    pub fn caller<'a>(
        &self,
        tokens: impl IntoIterator<Item = &'a str>,
    ) -> Result<Caller, ClientError> {
        if self.keys.is_empty() {
            return Ok(self.anonymous());
        }
        let callers = tokens.into_iter().map(|token| self.keys.caller(token));
        let caller = callers.reduce(|one, other| one?.and(&other?));
        caller.unwrap_or_else(|| Ok(self.anonymous()))
    }

    /// Whether there is a key: tokens count.
    pub fn is_keyed(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Who comes without a token.
    pub fn anonymous(&self) -> Caller {
        Caller::anonymous(if self.keys.is_empty() { Role::Open } else { Role::Visitor })
    }
}

/// Whether there are pages to try the chat.
enum TryPage {
    Auto,
    Set(Switch),
}

impl FromStr for TryPage {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            text => text.parse().map(Self::Set).map_err(|_| "must be on, off or auto"),
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
    let config = read(settings)?;
    shared::telemetry::start(filter, format);
    file.warn();
    config.database.warn_of_unknown_parameters();
    config.limits.warn();
    Ok(config)
}

fn read(mut settings: Settings) -> Result<Config, Mistakes> {
    let mut config = Config {
        database: settings.get("DATABASE_URL"),
        nats: settings.get("NATS_URL"),
        log: LogSettings::read(&mut settings),
        host: settings.get("HOST"),
        port: settings.number("PORT", 0..=u16::MAX),
        ops_address: settings.get::<Address>("OPS_ADDRESS").0,
        keys: keys(&mut settings),
        try_page: false,
        client_files: settings.optional("SOCKET_IO_CLIENT").map(Arc::new),
        cors_origins: settings.get("CORS_ORIGINS"),
        cors_credentials: settings.get::<Switch>("CORS_CREDENTIALS").0,
        inbox_zone: settings.get("INBOX_TZ"),
        trusted_proxies: settings.optional("TRUSTED_PROXIES").map(Arc::new).unwrap_or_default(),
        limits: LimitSettings::read(&mut settings),
        acks: AckSettings::read(&mut settings),
        http: HttpLimits::read(&mut settings),
        waiting: WaitingLimits::read(&mut settings),
        max_content_chars: settings.number("MAX_CONTENT_CHARS", 1..=CONTENT_CHARS_MAX),
        max_payload_bytes: settings
            .number("MAX_PAYLOAD_BYTES", PAYLOAD_BYTES_MIN..=PAYLOAD_BYTES_MAX),
        search: settings.get::<Switch>("SEARCH").0,
        shutdown: Duration::from_secs(
            settings.number("SHUTDOWN_SECONDS", 0..=SHUTDOWN_SECONDS_MAX),
        ),
    };
    config.try_page = match settings.get("TRY_PAGE") {
        TryPage::Auto => config.keys.is_empty() && config.host.is_loopback(),
        TryPage::Set(Switch(on)) => on,
    };
    if config.cors_credentials && config.cors_origins == Origins::Any {
        settings.mistake(
            "CORS_CREDENTIALS: no browser sends cookies where CORS_ORIGINS is *; list the origins",
        );
    }
    let open: Switch = settings.get("ALLOW_INSECURE_OPEN");
    if config.keys.is_empty() && !config.host.is_loopback() && !open.0 {
        settings.mistake(
            "HOST: listening beyond this machine without a key lets everybody read and write every \
             conversation; set JWT_SECRET or JWT_PUBLIC_KEY, or say ALLOW_INSECURE_OPEN=true if that is meant",
        );
    }
    settings.finish()?;
    Ok(config)
}

fn keys(settings: &mut Settings) -> Keys {
    let secrets: Secrets = settings.optional("JWT_SECRET").unwrap_or_default();
    let public: PublicKeys = settings.optional("JWT_PUBLIC_KEY").unwrap_or_default();
    let audience: Option<String> = settings.optional("JWT_AUDIENCE");
    let is_looked_at = audience.is_some();
    let keys = Keys::new(&secrets, public, audience);
    if is_looked_at && keys.is_empty() {
        settings.mistake(
            "JWT_AUDIENCE: nobody looks at a token without a key; set JWT_SECRET or JWT_PUBLIC_KEY, or take it away",
        );
    }
    keys
}

#[cfg(test)]
mod tests {
    use shared::content::DEFAULT_MAX_CONTENT_CHARS;

    use super::*;

    fn config(set: &'static [(&str, &str)]) -> Result<Config, Mistakes> {
        let find = move |name: &str| set.iter().find(|(key, _)| *key == name);
        read(Settings::new(&[settings::COMMON, OWN], move |name| {
            find(name).map(|(_, value)| (*value).into())
        }))
    }

    #[test]
    fn every_default_holds() {
        let config = config(&[]).unwrap();
        assert_eq!((config.host, config.port), (Host::Localhost, 4000));
        assert_eq!(config.max_content_chars, DEFAULT_MAX_CONTENT_CHARS);
        assert_eq!(config.cors_origins, Origins::Any);
    }

    #[test]
    fn open_mode_off_loopback_needs_to_be_said_in_so_many_words() {
        for host in ["0.0.0.0", "::", "192.0.2.1"] {
            let set = Box::leak(Box::new([("HOST", host)]));
            assert!(config(set).unwrap_err().to_string().contains("ALLOW_INSECURE_OPEN=true"));
        }
        assert!(config(&[("HOST", "0.0.0.0"), ("ALLOW_INSECURE_OPEN", "true")]).is_ok());
        assert!(config(&[("HOST", "127.0.0.2")]).is_ok());
    }

    #[test]
    fn pages_to_try_the_chat_are_for_this_machine_unless_it_is_said_otherwise() {
        let try_page = |set| config(set).unwrap().try_page;
        let secret = ("JWT_SECRET", "a secret of this test alone of 32 bytes or more");
        let keyed: &'static [_] = Box::leak(Box::new([secret]));
        let keyed_on: &'static [_] = Box::leak(Box::new([secret, ("TRY_PAGE", "on")]));
        assert!(try_page(&[]) && !try_page(&[("TRY_PAGE", "off")]));
        assert!(!try_page(&[("HOST", "0.0.0.0"), ("ALLOW_INSECURE_OPEN", "true")]));
        assert!(!try_page(keyed) && try_page(keyed_on));
    }

    #[test]
    fn each_mistake_is_a_line() {
        let mistakes =
            config(&[("PORT", "x"), ("CORS_ORIGINS", "example.com"), ("PARTITIONS", "0")]);
        let lines = mistakes.unwrap_err().to_string();
        assert_eq!(lines.lines().count(), 3, "{lines}");
    }
}
