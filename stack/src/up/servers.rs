//! Postgres and NATS: given ones, or our own.

use std::fs;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use stack::cluster::Cluster;
use stack::launch::Output;
use stack::machine::Machine;
use stack::nats::{self, Nats};
use stack::port::Port;
use stack::postgres::{self, Postgres};
use stack::prefix::Lines;
use stack::secret;
use url::Url;

use super::home::{Home, URLS};
use super::settings::Settings;

const POSTGRES_PORT: u16 = 5432;
const NATS_PORT: u16 = 4222;
/// What the servers say when all is well. Of NATS also its warning of a password in its own file,
/// which nobody else can read.
const POSTGRES_CHATTER: &[&str] = &["LOG:  "];
const NATS_CHATTER: &[&str] = &["[INF]", "Plaintext passwords"];
/// For one attempt to connect to a given server.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);

/// Both servers.
#[derive(Debug)]
pub(crate) struct Servers {
    postgres: Server<Postgres>,
    nats: Server<Nats>,
}

/// One of them.
#[derive(Debug)]
enum Server<T> {
    Given(String),
    Own(T),
}

impl Servers {
    /// Finds or fetches what is needed and makes the data folders; starts nothing.
    pub(crate) fn prepare(machine: &Machine, settings: &Settings, home: &Home) -> Result<Self> {
        let postgres = match &settings.database_url {
            Some(url) => Server::Given(answering_postgres(url)?),
            None => Server::Own(own_postgres(machine, home)?),
        };
        let nats = match &settings.nats_url {
            Some(url) => Server::Given(answering_nats(url)?),
            None => Server::Own(own_nats(machine, home.path())?),
        };
        Ok(Self { postgres, nats })
    }

    /// Starts our own ones, and notes where all of them are.
    pub(crate) fn start(&self, home: &Home) -> Result<()> {
        if let Server::Own(nats) = &self.nats {
            nats.start()?;
        }
        if let Server::Own(postgres) = &self.postgres {
            postgres.start()?;
        }
        let urls = format!("DATABASE_URL={}\nNATS_URL={}\n", self.database_url(), self.nats_url());
        secret::write(&home.path().join(URLS), &urls)
    }

    /// Stops our own ones, the log before what it is stored in.
    pub(crate) fn stop(&self) {
        if let Server::Own(nats) = &self.nats {
            report(nats.stop());
        }
        if let Server::Own(postgres) = &self.postgres {
            report(postgres.stop());
        }
    }

    pub(crate) fn database_url(&self) -> String {
        match &self.postgres {
            Server::Given(url) => url.clone(),
            Server::Own(postgres) => postgres.data_url(),
        }
    }

    /// Where the database is, without its password.
    pub(crate) fn database(&self) -> String {
        let url = self.database_url();
        let Ok(mut shown) = Url::parse(&url) else { return String::new() };
        // Neither can fail for a URL that has a password.
        let _ = shown.set_password(None);
        shown.set_query(None);
        shown.into()
    }

    pub(crate) fn nats_url(&self) -> String {
        match &self.nats {
            Server::Given(url) => url.clone(),
            Server::Own(nats) => nats.url(),
        }
    }

    /// The first of our own ones that ended by itself.
    pub(crate) fn ended(&self) -> Result<Option<(&'static str, ExitStatus)>> {
        let nats = if let Server::Own(nats) = &self.nats { nats.ended()? } else { None };
        let postgres =
            if let Server::Own(postgres) = &self.postgres { postgres.ended()? } else { None };
        let named = |name| move |status| (name, status);
        Ok(nats.map(named("nats-server")).or(postgres.map(named("Postgres"))))
    }
}

/// What goes wrong while stopping keeps nothing else from being stopped.
pub(crate) fn report(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("{error:#}");
    }
}

fn own_postgres(machine: &Machine, home: &Home) -> Result<Postgres> {
    let cluster = if home.is_fresh() {
        Cluster::scratch(machine, &home.path().join("postgres"))?
    } else {
        Cluster::lasting(machine, home.path())?
    };
    let settings = postgres::Settings {
        output: Output::Prefixed(Lines::Except(POSTGRES_CHATTER)),
        ..postgres::Settings::default()
    };
    Ok(Postgres::new(machine, cluster, same_port(home.path(), "postgres")?, settings))
}

fn own_nats(machine: &Machine, home: &Path) -> Result<Nats> {
    let settings = nats::Settings {
        sync_interval: Some(nats::SYNC_INTERVAL.to_owned()),
        password: true,
        output: Output::Prefixed(Lines::Except(NATS_CHATTER)),
        ..nats::Settings::default()
    };
    Nats::new(machine, &home.join("nats"), same_port(home, "nats")?, settings)
}

/// The port of the last start if it is free, so that other programs find the server again.
fn same_port(home: &Path, name: &str) -> Result<Port> {
    let note = home.join(format!("{name}.port"));
    let last = fs::read_to_string(&note).ok().and_then(|text| text.parse().ok());
    let port = Port::reserve_preferring(last)?;
    fs::write(note, port.number().to_string())?;
    Ok(port)
}

fn answering_postgres(text: &str) -> Result<String> {
    let url = parsed("DATABASE_URL", text)?;
    // A URL without a host means a socket file: the services will say if that is wrong.
    let Some(host) = url.host_str().filter(|host| !host.is_empty()) else { return Ok(text.into()) };
    let port = url.port().unwrap_or(POSTGRES_PORT);
    connect("DATABASE_URL", "Postgres", host, port)?;
    Ok(text.into())
}

fn answering_nats(text: &str) -> Result<String> {
    let first = text.split(',').next().unwrap_or_default().trim();
    let with_scheme = if first.contains("://") { first.into() } else { format!("nats://{first}") };
    let url = parsed("NATS_URL", &with_scheme)?;
    let host = url.host_str().context("NATS_URL names no host")?;
    let address = connect("NATS_URL", "nats-server", host, url.port().unwrap_or(NATS_PORT))?;
    // One that greets in another way, say behind TLS or a proxy, is left to the services.
    if let Ok(greeting) = nats::greeting(address) {
        greeting.check().context("NATS_URL")?;
    }
    Ok(text.into())
}

/// The error must not repeat the text, which may hold a password.
fn parsed(name: &str, text: &str) -> Result<Url> {
    Url::parse(text).with_context(|| format!("{name} is not a URL"))
}

fn connect(name: &str, what: &str, host: &str, port: u16) -> Result<SocketAddr> {
    let addresses = (host.trim_matches(['[', ']']), port).to_socket_addrs();
    let answers =
        |address: &SocketAddr| TcpStream::connect_timeout(address, CONNECTS_WITHIN).is_ok();
    match addresses.into_iter().flatten().find(answers) {
        Some(address) => Ok(address),
        None => bail!(
            "{name} points at {host}:{port}, where nothing answers: start that {what}, or remove \
             {name} from the environment and .env, and one is started for you"
        ),
    }
}
