//! Whether a service can do its work: what `/ready` answers, and how a container that holds nothing
//! but the service asks it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::lifecycle::Stop;

/// Longest wait for the answer; the service bounds its own looks below it.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Records may wait for so long before nothing being stored is a fault: a takeover takes half of it.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// The line of a report that says that the service does its work.
const SERVING: &str = "service: serving";

/// Where a service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not everything that it needs was there yet.
    Starting,
    /// It does its work.
    Serving,
    /// It was asked to stop.
    Stopping,
}

impl Phase {
    /// The phase of a service that was stopped or not, and has begun its work or not.
    pub fn of(stop: &Stop, has_begun: bool) -> Self {
        match has_begun {
            _ if stop.is_cancelled() => Self::Stopping,
            true => Self::Serving,
            false => Self::Starting,
        }
    }
}

/// Whether a service can do its work now, and what it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    phase: Phase,
    dependencies: Vec<(&'static str, bool)>,
    faults: Vec<String>,
    warnings: Vec<String>,
}

impl Report {
    /// The phase, and whether each dependency answers.
    pub fn new(phase: Phase, dependencies: Vec<(&'static str, bool)>) -> Self {
        Self { phase, dependencies, faults: Vec::new(), warnings: Vec::new() }
    }

    /// The same, and what else keeps it from its work although everything answers.
    #[must_use]
    pub fn with_fault(mut self, fault: Option<String>) -> Self {
        self.faults.extend(fault);
        self
    }

    /// The same, and what an operator should know although it is ready.
    #[must_use]
    pub fn with_warning(mut self, warning: Option<String>) -> Self {
        self.warnings.extend(warning);
        self
    }

    /// Whether it does its work and everything answers.
    pub fn is_ready(&self) -> bool {
        let everything_answers = self.dependencies.iter().all(|(_, up)| *up);
        self.phase == Phase::Serving && everything_answers && self.faults.is_empty()
    }

    /// What it depends on, and whether that answers.
    pub fn dependencies(&self) -> &[(&'static str, bool)] {
        &self.dependencies
    }
}

/// A line for the phase and one for each dependency, fault and warning.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = match self.phase {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Stopping => "stopping",
        };
        writeln!(f, "service: {phase}")?;
        for (dependency, up) in &self.dependencies {
            writeln!(f, "{dependency}: {}", if *up { "ok" } else { "unavailable" })?;
        }
        for fault in &self.faults {
            writeln!(f, "fault: {fault}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

/// Since when records wait in the log and nothing is stored; `None` while something is, or nothing waits.
pub type Waiting = watch::Receiver<Option<Instant>>;

/// What readiness says of records that wait for too long.
pub fn stalled(waiting: &Waiting) -> Option<String> {
    let waited = waiting.borrow().map(|since| since.elapsed())?;
    let told = || format!("records wait and nothing was stored for {} s", waited.as_secs());
    (waited >= STALLED_AFTER).then(told)
}

/// Why a service is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("nobody answers at {0}: {1}")]
    Unreachable(SocketAddr, std::io::Error),
    /// It took the request and did not answer in time.
    #[error("no answer from {0}")]
    Silent(SocketAddr),
    /// It says itself that it does not serve; one line per dependency.
    #[error("not serving:\n{0}")]
    Report(String),
}

/// Asks the service at this address whether it serves, as the balancer does. What it depends on may be away
/// meanwhile: a gateway goes on taking messages, and no restart of a container brings Postgres back.
pub async fn ask(address: SocketAddr) -> Result<(), NotReady> {
    let answer = tokio::time::timeout(TIMEOUT, answer(address)).await;
    let answer = answer.map_err(|_| NotReady::Silent(address))?;
    let answer = answer.map_err(|error| NotReady::Unreachable(address, error))?;
    let report = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if report.lines().any(|line| line == SERVING) {
        return Ok(());
    }
    Err(NotReady::Report(report.trim().to_owned()))
}

async fn answer(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_stops_or_lacks_something_is_not_ready_and_says_why() {
        let report = |phase, nats| Report::new(phase, vec![("postgres", true), ("nats", nats)]);
        assert!(report(Phase::Serving, true).is_ready());
        assert!(!report(Phase::Stopping, true).is_ready());
        let lacking = report(Phase::Serving, false);
        assert!(!lacking.is_ready());
        assert_eq!(lacking.to_string(), format!("{SERVING}\npostgres: ok\nnats: unavailable\n"));
        let warned = report(Phase::Serving, true).with_warning(Some("it is late".into()));
        assert!(warned.is_ready() && warned.to_string().ends_with("warning: it is late\n"));
        let stalled = warned.with_fault(Some("nothing moves".into()));
        assert!(!stalled.is_ready() && stalled.to_string().contains("fault: nothing moves\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn ten_seconds_are_told_and_less_is_not() {
        let (waiting, waits) = watch::channel(None);
        assert_eq!(stalled(&waits), None);
        waiting.send_replace(Some(Instant::now()));
        tokio::time::advance(Duration::from_millis(9_999)).await;
        assert_eq!(stalled(&waits), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(stalled(&waits).unwrap(), "records wait and nothing was stored for 10 s");
        waiting.send_replace(None);
        assert_eq!(stalled(&waits), None);
    }
}
