//! One process of a gateway or a persister.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use stack::child::Signal;
use stack::launch::Program;
use stack::{Child, Machine, Port, stats};

use crate::wait::{eventually, must};

/// From the start of the process to `200` of `/ready`.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// The services' own deadline for a stop is shorter.
const STOPS_WITHIN: Duration = Duration::from_secs(30);
/// One look at `/ready`.
const ASKS_WITHIN: Duration = Duration::from_secs(5);

/// Where a service listens.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: Arc<Port>,
    /// Where operators look, if that is another one.
    pub(crate) ops: Option<Arc<Port>>,
}

impl Place {
    /// The port where operators look.
    pub(crate) fn ops_port(&self) -> u16 {
        self.ops.as_ref().unwrap_or(&self.port).number()
    }
}

/// A service that can be killed, frozen and started again, on the same port.
#[derive(Debug)]
pub struct Service {
    machine: Machine,
    place: Place,
    log: PathBuf,
    program: Mutex<Program>,
    child: Mutex<Option<Child>>,
}

impl Service {
    pub(crate) fn new(machine: &Machine, place: Place, log: PathBuf, program: Program) -> Self {
        let (program, child) = (Mutex::new(program), Mutex::default());
        Self { machine: machine.clone(), place, log, program, child }
    }

    /// Its name in the logs: `gateway-0`.
    pub fn name(&self) -> String {
        self.program().name.clone()
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.place.address
    }

    /// The port of its HTTP server.
    pub fn port(&self) -> u16 {
        self.place.port.number()
    }

    /// The port where operators look.
    pub fn ops_port(&self) -> u16 {
        self.place.ops_port()
    }

    /// The URL of a path on it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.address(), self.port())
    }

    /// The URL of a path where operators look.
    pub fn ops_url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.address(), self.ops_port())
    }

    /// Sets a variable for the next start.
    pub fn set_env(&self, name: &str, value: &str) {
        self.program().env.push((name.into(), value.into()));
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&self) {
        self.spawn();
        self.ready().await;
    }

    /// Starts it and does not wait.
    pub fn spawn(&self) {
        let child = must(self.program().start(&self.machine), "starting a service");
        *self.child() = Some(child);
    }

    /// Waits for `200` of `/ready`.
    ///
    /// # Panics
    /// If the process ends before, with its log; or past the deadline.
    pub async fn ready(&self) {
        let client = reqwest::Client::new();
        let url = self.url("/ready");
        eventually(
            READY_WITHIN,
            &format!("{} is ready\n{}", self.name(), self.log.display()),
            async || {
                assert!(
                    self.is_running(),
                    "{} ended before it was ready:\n{}",
                    self.name(),
                    self.logs()
                );
                let answer = client.get(&url).timeout(ASKS_WITHIN).send().await;
                answer.is_ok_and(|answer| answer.status().is_success())
            },
        )
        .await;
    }

    /// `kill -9`; returns once it is gone.
    pub fn kill(&self) {
        if let Some(child) = self.child().take() {
            must(child.kill(), "killing a service");
        }
    }

    /// Sends SIGTERM and does not wait.
    pub fn ask_to_stop(&self) {
        self.with("terminating", |child| child.signal(Signal::TERM));
    }

    /// Sends SIGTERM, waits, and returns how it ended.
    pub async fn terminate(&self) -> ExitStatus {
        self.ask_to_stop();
        self.exit_status(STOPS_WITHIN).await
    }

    /// Waits until it ends by itself.
    pub async fn exit_status(&self, within: Duration) -> ExitStatus {
        let mut status = None;
        let what = format!("{} ends", self.name());
        eventually(within, &what, async || {
            status = self.with("looking after", Child::ended);
            status.is_some()
        })
        .await;
        must(status.context("it ended"), "waiting for a service")
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.with("freezing", Child::pause);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.with("thawing", Child::resume);
    }

    /// Whether the process exists, frozen or not.
    pub fn is_running(&self) -> bool {
        self.child().as_ref().is_some_and(Child::is_running)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.with("asking", |child| Ok(child.id()))
    }

    /// A number of its metrics that has no labels; `None` if it has none of that name.
    pub async fn metric(&self, name: &str) -> Option<u64> {
        let answer = must(reqwest::get(self.ops_url("/metrics")).await, "asking for metrics");
        let text = must(answer.text().await, "reading metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|number| must(number.parse(), "reading a metric"))
    }

    /// Its memory in RAM, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        must(stats::resident_bytes(self.id()), "the memory of a service")
    }

    /// The processor time that it has used.
    pub fn cpu_time(&self) -> Duration {
        must(stats::cpu_time(self.id()), "the processor time of a service")
    }

    /// Everything that it printed, in all its lives.
    pub fn logs(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn with<T>(&self, doing: &str, work: impl FnOnce(&Child) -> anyhow::Result<T>) -> T {
        let slot = self.child();
        let child = slot.as_ref().context("it is not running");
        must(child.and_then(work), &format!("{doing} {}", self.name()))
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn program(&self) -> MutexGuard<'_, Program> {
        self.program.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
