//! A running program of ours.

use std::process::{self, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::prefix::LastWords;
use crate::{stats, wait};

/// After SIGKILL the kernel needs a moment to take a process apart.
const DIES_WITHIN: Duration = Duration::from_secs(20);
/// After SIGSTOP every thread must be scheduled once.
const STANDS_STILL_WITHIN: Duration = Duration::from_secs(10);

/// A child process; dropping it kills it.
#[derive(Debug)]
pub struct Child {
    name: String,
    id: u32,
    process: Mutex<process::Child>,
    words: LastWords,
}

impl Child {
    pub(crate) fn new(name: &str, process: process::Child, words: LastWords) -> Self {
        Self { name: name.to_owned(), id: process.id(), process: Mutex::new(process), words }
    }

    /// Why it ended, in its own words, if it said so and nobody has shown it.
    pub fn last_words(&self) -> Option<String> {
        let words = self.words.take().join("\n");
        Some(words.trim().to_owned()).filter(|words| !words.is_empty())
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// How it ended; nothing while it runs.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        Ok(self.process().try_wait()?)
    }

    /// Whether it still runs (or is frozen).
    pub fn is_running(&self) -> bool {
        matches!(self.ended(), Ok(None))
    }

    /// Sends a signal; nothing happens if it ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // The lock keeps the id from being given to somebody else between look and kill.
        let mut process = self.process();
        if process.try_wait()?.is_none() {
            kill_process(Pid::from_child(&process), signal)
                .with_context(|| format!("cannot signal {}", self.name))?;
        }
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait(DIES_WITHIN)
    }

    /// Freezes it; it does nothing any more once this returns.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        stand_still(&self.name, &[self.id])
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Waits for its end.
    pub fn wait(&self, within: Duration) -> Result<ExitStatus> {
        wait::until(within, &format!("{} to end", self.name), || self.ended())
    }

    /// Asks it to end with `signal`; past the deadline it is killed and an error returned.
    pub fn stop(&self, signal: Signal, within: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait(within).inspect_err(|_| {
            // The error to report is that it did not stop by itself.
            let _ = self.kill();
        })
    }

    fn process(&self) -> MutexGuard<'_, process::Child> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until processes that were sent SIGSTOP stand still.
pub(crate) fn stand_still(name: &str, ids: &[u32]) -> Result<()> {
    let still = || Ok(ids.iter().all(|id| stats::stands_still(*id)).then_some(()));
    wait::until(STANDS_STILL_WITHIN, &format!("{name} to stand still"), still)
}

impl Drop for Child {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure.
        let _ = self.kill();
    }
}
