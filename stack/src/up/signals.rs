//! Ctrl-C and SIGTERM.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals as Incoming;
use stack::run_dir;

use super::home::Home;

/// How often we were asked to stop.
#[derive(Clone, Debug)]
pub(crate) struct Signals(Arc<AtomicU32>);

/// The error of whatever a signal cut short.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl Signals {
    /// The first signal is noted; the second ends everything at once.
    pub(crate) fn listen(home: &Home) -> Result<Self> {
        let mut incoming = Incoming::new([SIGINT, SIGTERM, SIGHUP])?;
        let noted = Self(Arc::default());
        let (first, path, fresh) = (noted.clone(), home.path().to_path_buf(), home.is_fresh());
        thread::spawn(move || {
            for _ in &mut incoming {
                if first.0.fetch_add(1, Ordering::Relaxed) > 0 {
                    end_at_once(&path, fresh);
                }
            }
        });
        Ok(noted)
    }

    pub(crate) fn stopping(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Whether everything is being ended at once.
    pub(crate) fn forced(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 1
    }

    /// For the loops of starting: an error once we were asked to stop.
    pub(crate) fn check(&self) -> Result<()> {
        if self.stopping() { Err(Interrupted.into()) } else { Ok(()) }
    }
}

/// What is left running dies with us, or was noted.
fn end_at_once(home: &PathBuf, fresh: bool) {
    eprintln!("stopped at once");
    run_dir::end_leftovers(home);
    if fresh {
        // What a dying process still holds is swept at the next start.
        let _ = fs::remove_dir_all(home);
    }
    process::exit(super::INTERRUPTED.into());
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}
