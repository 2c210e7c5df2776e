//! A Postgres server of our own.

use std::ffi::OsString;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::child::{self, Child};
use crate::cluster::{Cluster, SUPERUSER};
use crate::launch::{Orphaned, Output, Program};
use crate::machine::Machine;
use crate::port::Port;
use crate::run_dir;
use crate::stats;
use crate::tool::tail;
use crate::wait;

/// Recovery after a crash is part of a start.
const STARTS_WITHIN: Duration = Duration::from_mins(1);
/// A fast shutdown ends the connections and writes a checkpoint.
const STOPS_WITHIN: Duration = Duration::from_secs(20);
/// The server's own children after a SIGKILL.
const DIES_WITHIN: Duration = Duration::from_secs(10);

/// Lines of the log to show when it does not start.
const LAST_WORDS: usize = 20;

/// How a server is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether data survive a power cut; tests are faster without.
    pub durable: bool,
    /// Enough for everybody who shares the server.
    pub max_connections: u32,
    /// Where its log goes.
    pub output: Output,
}

impl Default for Settings {
    fn default() -> Self {
        Self { durable: true, max_connections: 200, output: Output::Ours }
    }
}

/// A server with its data and its port, running or not.
#[derive(Debug)]
pub struct Postgres {
    machine: Machine,
    cluster: Cluster,
    port: Port,
    settings: Settings,
    child: Mutex<Option<Child>>,
}

impl Postgres {
    /// A server that is not started yet.
    pub fn new(machine: &Machine, cluster: Cluster, port: Port, settings: Settings) -> Self {
        Self { machine: machine.clone(), cluster, port, settings, child: Mutex::default() }
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        let Cluster { password, .. } = &self.cluster;
        format!("postgresql://{SUPERUSER}:{password}@127.0.0.1:{}/{database}", self.port.number())
    }

    /// The URL of the database that its data lie in.
    pub fn data_url(&self) -> String {
        self.url(self.cluster.database)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Starts it, or starts it again, and waits until it takes connections.
    pub fn start(&self) -> Result<()> {
        let mut slot = self.child();
        let child = self.program().start(&self.machine)?;
        let ready = || match child.ended()? {
            Some(status) => bail!("Postgres ended at its start ({status}){}", self.last_words()),
            None => Ok(self.says_ready(child.id()).then_some(())),
        };
        wait::until(STARTS_WITHIN, "Postgres to take connections", ready)?;
        *slot = Some(child);
        Ok(())
    }

    /// Stops it in order: connections are ended, everything is written.
    pub fn stop(&self) -> Result<()> {
        let Some(child) = self.child().take() else { return Ok(()) };
        // The fast shutdown.
        child.signal(Signal::INT)?;
        if child.wait(STOPS_WITHIN).is_err() {
            kill_family(&child)?;
            bail!("Postgres did not stop in {} s and was killed", STOPS_WITHIN.as_secs());
        }
        Ok(())
    }

    /// Ends it at once where the data do not matter any more; unlike after a `kill -9`, the server
    /// itself buries its children.
    pub fn discard(&self) -> Result<()> {
        let Some(child) = self.child().take() else { return Ok(()) };
        child.signal(Signal::QUIT)?;
        wake_family(&child)?;
        child.wait(DIES_WITHIN).map(drop).or_else(|_| kill_family(&child))
    }

    /// `kill -9` of the server and all its processes.
    pub fn kill(&self) -> Result<()> {
        self.child().take().map_or(Ok(()), |child| kill_family(&child))
    }

    /// Freezes all its processes: connections stay and nothing answers.
    pub fn pause(&self) -> Result<()> {
        let slot = self.child();
        let child = slot.as_ref().context("Postgres is not running")?;
        child.pause()?;
        // No new process appears now.
        let children = stats::children(child.id());
        run_dir::signal_all(&children, Signal::STOP);
        child::stand_still("Postgres", &children)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        let slot = self.child();
        let child = slot.as_ref().context("Postgres is not running")?;
        wake_family(child)
    }

    /// Why it ended, if it did though nobody stopped it.
    pub fn ended(&self) -> Result<Option<std::process::ExitStatus>> {
        self.child().as_ref().map_or(Ok(None), Child::ended)
    }

    /// The process id of the server, if it runs.
    pub fn id(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    fn program(&self) -> Program {
        let pid_folder = self.cluster.data.parent().map(|home| home.join("pids"));
        Program {
            user: self.machine.postgres_user().cloned(),
            folder: Some("/".into()),
            orphaned: Orphaned::Quits,
            output: self.settings.output.clone(),
            pid_folder,
            ..Program::new("postgres", self.cluster.bin.join("postgres")).args(self.args())
        }
    }

    fn args(&self) -> Vec<OsString> {
        let Settings { durable, max_connections, .. } = self.settings;
        let mut settings = vec![
            format!("port={}", self.port.number()),
            "listen_addresses=127.0.0.1".to_owned(),
            "unix_socket_directories=".to_owned(),
            format!("max_connections={max_connections}"),
            "timezone=UTC".to_owned(),
            "log_checkpoints=off".to_owned(),
        ];
        if !durable {
            settings.extend(
                ["fsync", "synchronous_commit", "full_page_writes"]
                    .map(|name| format!("{name}=off")),
            );
        }
        let settings = settings.into_iter().flat_map(|setting| ["-c".into(), setting.into()]);
        ["-D".into(), self.cluster.data.clone().into_os_string()]
            .into_iter()
            .chain(settings)
            .collect()
    }

    /// The server writes its state into the eighth line of its pid file.
    fn says_ready(&self, id: u32) -> bool {
        let text = fs::read_to_string(self.cluster.data.join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        lines.first() == Some(&id.to_string().as_str()) && lines.get(7) == Some(&"ready")
    }

    fn last_words(&self) -> String {
        match &self.settings.output {
            Output::File(path) => format!(":\n{}", tail(path, LAST_WORDS)),
            _ => String::new(),
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure.
        let _ = self.discard();
    }
}

/// Wakes the server and its children.
fn wake_family(server: &Child) -> Result<()> {
    run_dir::signal_all(&stats::children(server.id()), Signal::CONT);
    server.resume()
}

/// Kills the server and its children: as long as one of them lives, no server starts on the data.
fn kill_family(server: &Child) -> Result<()> {
    server.pause()?;
    let children = stats::children(server.id());
    run_dir::signal_all(&children, Signal::KILL);
    server.kill()?;
    let gone = || Ok(run_dir::all_gone(&children).then_some(()));
    wait::until(DIES_WITHIN, "the processes of Postgres to end", gone)
}
