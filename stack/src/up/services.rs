//! The persisters and gateways.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use stack::build::{self, Programs};
use stack::child::{Child, Signal};
use stack::launch::{Output, Program};
use stack::machine::Machine;
use stack::port::Port;
use stack::prefix::Lines;
use stack::wait;

use super::home::Home;
use super::options::Options;
use super::ready;
use super::servers::{self, Servers};
use super::settings::Settings;

/// From the start of a process to `200` of `/ready`: migrations, and the log read back.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// More than the services give themselves by default.
const STOPS_WITHIN: Duration = Duration::from_secs(20);

/// A running service.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
    address: SocketAddr,
    /// Where metrics are.
    ops: SocketAddr,
    _port: Port,
}

/// Everything that a service is started from.
pub(crate) struct Maker<'a> {
    pub machine: &'a Machine,
    pub settings: &'a Settings,
    pub programs: &'a Programs,
    pub servers: &'a Servers,
    pub home: &'a Home,
    /// The files of Socket.IO's client for browsers, or why they are not here; nothing where the settings name some.
    pub client_files: &'a Option<Result<PathBuf>>,
}

impl Maker<'_> {
    /// Starts a persister, with its health on some port of this machine only.
    pub(crate) fn persister(&self, number: u16) -> Result<Service> {
        let port = Port::reserve()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port.number()));
        let program = self.program("persister", number)?;
        let child = program.env("OPS_ADDRESS", address.to_string()).start(self.machine)?;
        Ok(Service { child, address, ops: address, _port: port })
    }

    /// Starts a gateway, with what operators ask for on some port of this machine only.
    pub(crate) fn gateway(&self, number: u16, port: u16) -> Result<Service> {
        let ops = Port::reserve()?;
        let program = self.program("gateway", number)?.env("PORT", port.to_string());
        let ops_address = SocketAddr::from(([127, 0, 0, 1], ops.number()));
        let program = program.env("OPS_ADDRESS", ops_address.to_string());
        let program = match self.client_files {
            Some(Ok(folder)) => program.env("SOCKET_IO_CLIENT", folder),
            Some(Err(_)) | None => program,
        };
        let child = program.start(self.machine)?;
        Ok(Service { child, address: self.settings.address(port), ops: ops_address, _port: ops })
    }

    fn program(&self, name: &str, number: u16) -> Result<Program> {
        let program = Program {
            clean_env: true,
            env: build::environment().collect(),
            folder: Some(self.settings.project.clone()),
            output: Output::Prefixed(Lines::OfService),
            pid_folder: Some(self.home.path().join("pids")),
            ..Program::new(format!("{name}-{number}"), self.programs.path(name)?)
        };
        let program = program.env("DATABASE_URL", self.servers.database_url());
        Ok(program.env("NATS_URL", self.servers.nats_url()))
    }
}

impl Service {
    pub(crate) fn name(&self) -> &str {
        self.child.name()
    }

    /// Whether it serves something at this path.
    pub(crate) fn serves(&self, path: &str) -> bool {
        ready::serves(self.address, path)
    }

    /// Where it tells operators of itself.
    pub(crate) fn metrics(&self) -> String {
        format!("http://{}/metrics  {}", self.ops, self.name())
    }

    /// An error that says why, if it ended.
    pub(crate) fn check(&self) -> Result<()> {
        let Some(status) = self.child.ended()? else { return Ok(()) };
        match self.child.last_words() {
            Some(words) => bail!(words),
            None => bail!("{} ended ({status})", self.name()),
        }
    }

    /// Waits until it takes work, as long as `check` finds nothing wrong.
    pub(crate) fn wait_ready(&self, check: impl Fn() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let what = format!("{} to be ready", self.name());
        wait::until(READY_WITHIN, &what, || {
            check()?;
            match ready::ask(self.address) {
                Ok(answer) if answer.ready => Ok(Some(())),
                // The last answer says what it waits for.
                Ok(answer) if Instant::now() >= deadline => {
                    bail!("{} does not get ready: {}", self.name(), answer.text)
                }
                _ => Ok(None),
            }
        })
    }
}

/// Asks all to stop, waits, and kills those that do not.
pub(crate) fn stop(services: &mut Vec<Service>) {
    for service in &*services {
        servers::report(service.child.signal(Signal::TERM));
    }
    let deadline = Instant::now() + STOPS_WITHIN;
    for service in services.drain(..) {
        let left = deadline.saturating_duration_since(Instant::now());
        if service.child.wait(left).is_err() {
            eprintln!("{} did not stop in time and is killed", service.name());
        }
    }
}

/// Looks before anything is built or started.
pub(crate) fn refuse_taken_ports(settings: &Settings, options: &Options) -> Result<()> {
    for port in settings.ports(options) {
        let free = TcpListener::bind(settings.address(port));
        ensure!(
            !matches!(&free, Err(error) if error.kind() == std::io::ErrorKind::AddrInUse),
            "port {port} is taken: stop what listens there, or choose another: cargo up --port {}",
            port.wrapping_add(10)
        );
    }
    Ok(())
}
