//! How a process ends: the first signal asks, the second forces.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken as Stop;

/// Exit status after a forced end; 128 + SIGTERM, as shells report it.
const FORCED: i32 = 143;

/// A stop that SIGTERM or SIGINT asks for. The second signal ends the process at once.
pub fn stop_on_signal() -> std::io::Result<Stop> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = Stop::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        next(&mut terminate, &mut interrupt).await;
        tracing::info!("stopping");
        asked.cancel();
        next(&mut terminate, &mut interrupt).await;
        tracing::warn!("second signal, ending at once");
        std::process::exit(FORCED);
    });
    Ok(stop)
}

async fn next(
    terminate: &mut tokio::signal::unix::Signal,
    interrupt: &mut tokio::signal::unix::Signal,
) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Runs `work` to its end, or for as long as `deadline` after the stop.
///
/// Returns `None` if the deadline ended it.
pub async fn until_deadline<T>(
    stop: &Stop,
    deadline: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = async {
            stop.cancelled().await;
            tokio::time::sleep(deadline).await;
        } => None,
    }
}

/// Waits for a pause, or for the stop: `false` if the stop came first.
pub async fn pause(stop: &Stop, duration: Duration) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(duration)).await.is_some()
}

/// Pauses between tries: doubling from a start up to a cap, back to the start after a success.
#[derive(Debug, Clone)]
pub struct Backoff {
    start: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses from `start` up to `cap`.
    pub fn new(start: Duration, cap: Duration) -> Self {
        Self { start, cap, next: start }
    }

    /// The pause before the next try.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.cap);
        pause
    }

    /// A try succeeded.
    pub fn reset(&mut self) {
        self.next = self.start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let pauses: Vec<_> = (0..4).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.pause().as_millis(), 100);
    }
}
