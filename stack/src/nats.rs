//! A nats-server of our own, with `JetStream` on disk.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::child::Child;
use crate::find;
use crate::launch::{Output, Program};
use crate::machine::Machine;
use crate::port::Port;
use crate::secret;
use crate::version::Version;
use crate::wait;

/// Reading a long log back is part of a start.
const STARTS_WITHIN: Duration = Duration::from_mins(1);
const STOPS_WITHIN: Duration = Duration::from_secs(15);
/// For one attempt to hear the server's greeting.
const GREETS_WITHIN: Duration = Duration::from_secs(2);

/// How often what was acknowledged is written through to the disk. Shorter than the server's own two minutes by as much as
/// costs nothing that could be measured; `always` costs four fifths of what one server can take.
pub const SYNC_INTERVAL: &str = "100ms";

/// The user in the URL of a server with a password.
const USER: &str = "chat";

/// How a server is run.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `sync_interval`: `always`, or a duration; the server's own default if none is given.
    pub sync_interval: Option<String>,
    /// How much the streams together may promise to hold (`max_file_store`); by default what the
    /// server makes of the free disk.
    pub max_file_store: Option<String>,
    /// Whether clients need the password that stands in the URL.
    pub password: bool,
    /// The cluster that it belongs to, if any.
    pub cluster: Option<Member>,
    /// Where its log goes.
    pub output: Output,
}

/// One server's place in a cluster on this machine.
#[derive(Clone, Debug)]
pub struct Member {
    /// Where it listens for the others.
    pub port: Arc<Port>,
    /// Where all of them listen for each other.
    pub all: Vec<u16>,
}

/// A server with its data and its port, running or not.
#[derive(Debug)]
pub struct Nats {
    machine: Machine,
    file: PathBuf,
    home: PathBuf,
    password: Option<String>,
    port: Port,
    settings: Settings,
    child: Mutex<Option<Child>>,
}

impl Nats {
    /// A server that is not started yet, with its data in `home`.
    pub fn new(machine: &Machine, home: &Path, port: Port, settings: Settings) -> Result<Self> {
        let file = find::nats(machine)?;
        std::fs::create_dir_all(home)?;
        let password =
            settings.password.then(|| secret::kept_in(&home.join("password"))).transpose()?;
        let child = Mutex::default();
        Ok(Self {
            machine: machine.clone(),
            file,
            home: home.to_path_buf(),
            password,
            port,
            settings,
            child,
        })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        let login = self
            .password
            .as_ref()
            .map(|password| format!("{USER}:{password}@"))
            .unwrap_or_default();
        format!("nats://{login}127.0.0.1:{}", self.port.number())
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// What it is called in its cluster.
    pub fn name(&self) -> String {
        format!("nats-{}", self.port.number())
    }

    /// Where its streams lie.
    pub fn store(&self) -> PathBuf {
        self.home.join("store")
    }

    /// Starts it, or starts it again, and waits until it takes connections and the log is open.
    pub fn start(&self) -> Result<()> {
        let mut slot = self.child();
        let config = self.home.join("nats.conf");
        secret::write(&config, &self.config())?;
        let child = self.program(&config).start(&self.machine)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.number()));
        let greeted = || match child.ended()? {
            Some(status) => bail!("nats-server ended at its start ({status})"),
            None => Ok(greeting(address).ok()),
        };
        wait::until(STARTS_WITHIN, "nats-server to take connections", greeted)?.check()?;
        *slot = Some(child);
        Ok(())
    }

    /// Stops it in order.
    pub fn stop(&self) -> Result<()> {
        let Some(child) = self.child().take() else { return Ok(()) };
        child.stop(Signal::TERM, STOPS_WITHIN).map(drop)
    }

    /// `kill -9`.
    pub fn kill(&self) -> Result<()> {
        self.child().take().map_or(Ok(()), |child| child.kill().map(drop))
    }

    /// Freezes it: connections stay and nothing answers.
    pub fn pause(&self) -> Result<()> {
        self.child().as_ref().context("nats-server is not running")?.pause()
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.child().as_ref().context("nats-server is not running")?.resume()
    }

    /// Why it ended, if it did though nobody stopped it.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        self.child().as_ref().map_or(Ok(None), Child::ended)
    }

    /// The process id of the server, if it runs.
    pub fn id(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    fn program(&self, config: &Path) -> Program {
        Program {
            output: self.settings.output.clone(),
            pid_folder: self.home.parent().map(|home| home.join("pids")),
            ..Program::new("nats", &self.file).args(["-c".as_ref(), config.as_os_str()])
        }
    }

    fn config(&self) -> String {
        let Settings { sync_interval, max_file_store, .. } = &self.settings;
        let line = |name: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!("  {name}: {value}\n")).unwrap_or_default()
        };
        let login = self.password.as_ref().map(|password| {
            format!("authorization {{ user: {USER}, password: \"{password}\" }}\n")
        });
        format!(
            "listen: \"127.0.0.1:{}\"\n{}{}jetstream {{\n  store_dir: {}\n{}{}}}\n",
            self.port.number(),
            self.cluster(),
            login.unwrap_or_default(),
            Value::from(self.store().to_string_lossy()),
            line("sync_interval", sync_interval),
            line("max_file_store", max_file_store),
        )
    }

    fn cluster(&self) -> String {
        let Some(Member { port, all }) = &self.settings.cluster else { return String::new() };
        let routes: Vec<_> = all.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        format!(
            "server_name: {}\ncluster {{ name: chat, listen: \"127.0.0.1:{}\", routes: [{}] }}\n",
            self.name(),
            port.number(),
            routes.join(", "),
        )
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a server says of itself to every client that connects.
#[derive(Clone, Debug)]
pub struct Greeting {
    version: Option<Version>,
    jetstream: bool,
}

impl Greeting {
    /// Refuses a server that would not do.
    pub fn check(&self) -> Result<()> {
        let version = self.version.context("the nats-server does not tell its version")?;
        find::require("the nats-server", version, find::OLDEST_NATS)?;
        ensure!(self.jetstream, "the nats-server runs without JetStream: start it with -js");
        Ok(())
    }
}

/// Connects and reads the greeting, which comes before encryption and login.
pub fn greeting(address: SocketAddr) -> Result<Greeting> {
    let stream = TcpStream::connect_timeout(&address, GREETS_WITHIN)?;
    stream.set_read_timeout(Some(GREETS_WITHIN))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let info: Value =
        serde_json::from_str(line.strip_prefix("INFO ").context("not a nats-server")?)?;
    let version = info["version"].as_str().and_then(Version::find);
    Ok(Greeting { version, jetstream: info["jetstream"].as_bool().unwrap_or_default() })
}
