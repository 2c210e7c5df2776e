//! Bounded waiting.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a state is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(10);

/// Looks every few milliseconds until `probe` has an answer; an error says what was waited for.
pub fn until<T>(
    within: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}", within.as_secs());
        }
        thread::sleep(POLL);
    }
}
