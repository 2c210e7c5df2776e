//! How a process ends: the first signal asks, the second forces, and a task that ends before takes it along.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{Id, JoinError, JoinSet};
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

/// Runs `work` to its end, or for as long as `deadline` after the stop: then it is an error.
pub async fn until_deadline<T>(
    stop: &Stop,
    deadline: Duration,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        () = async {
            stop.cancelled().await;
            tokio::time::sleep(deadline).await;
        } => anyhow::bail!("not everything ended within the deadline"),
    }
}

/// Tasks without which a process is of no use. They are ended with this value.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts one; its name is for the error.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let id = self.running.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Waits for as long as all of them run. Where one ends it is an error, whether it failed, panicked or
    /// came to its end.
    pub async fn one_ended(&mut self) -> anyhow::Error {
        let Some(ended) = self.running.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let name = self.name_of(&ended);
        let failed = outcome(ended).err();
        failed
            .unwrap_or_else(|| anyhow::anyhow!("it should run for ever"))
            .context(format!("{name} ended"))
    }

    /// Does something else for as long as all of them run.
    pub async fn while_they_run<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            error = self.one_ended() => Err(error),
            done = work => done,
        }
    }

    /// Waits for the end of all of them, after the stop.
    pub async fn all_ended(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.running.join_next_with_id().await {
            let name = self.name_of(&ended);
            outcome(ended).with_context(|| format!("{name} ended"))?;
        }
        Ok(())
    }

    fn name_of(&self, ended: &Ended) -> &'static str {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        self.names.get(&id).copied().unwrap_or("a task")
    }
}

/// How a task ended: by itself, or in a panic.
type Ended = Result<(Id, anyhow::Result<()>), JoinError>;

fn outcome(ended: Ended) -> anyhow::Result<()> {
    ended?.1
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

    pub fn reset(&mut self) {
        self.next = self.start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_in_whatever_way_ends_the_work_and_is_told_by_its_name() {
        type End = fn() -> anyhow::Result<()>;
        let ends: [(&str, End); 3] = [
            ("it should run for ever", || Ok(())),
            ("a failure", || anyhow::bail!("a failure")),
            ("panicked", || panic!("a panic")),
        ];
        for (why, end) in ends {
            let mut tasks = Tasks::default();
            tasks.spawn("one that runs", std::future::pending());
            tasks.spawn("one that ends", async move { end() });
            let work = async {
                tokio::time::sleep(Duration::from_hours(1)).await;
                Ok(())
            };
            let error = format!("{:#}", tasks.while_they_run(work).await.unwrap_err());
            assert!(error.starts_with("one that ends ended: ") && error.contains(why), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_ends_where_all_run_and_after_the_stop_only_failures_count() {
        let stop = Stop::new();
        let mut tasks = Tasks::default();
        let mut none = Tasks::default();
        for _ in 0..2 {
            let stop = stop.clone();
            tasks.spawn("one that stops", async move {
                stop.cancelled().await;
                Ok(())
            });
        }
        let hour = Duration::from_hours(1);
        assert!(tokio::time::timeout(hour, tasks.one_ended()).await.is_err());
        assert!(tokio::time::timeout(hour, none.one_ended()).await.is_err());
        stop.cancel();
        assert!(tasks.all_ended().await.is_ok());
        tasks.spawn("one that fails", async { anyhow::bail!("a failure") });
        let error = tasks.all_ended().await.unwrap_err();
        assert_eq!(format!("{error:#}"), "one that fails ended: a failure");
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_within_the_deadline_after_the_stop_is_an_error() {
        let stop = Stop::new();
        let second = Duration::from_secs(1);
        assert!(until_deadline(&stop, second, async { Ok(()) }).await.is_ok());
        let slow = async {
            tokio::time::sleep(Duration::from_hours(1)).await;
            Ok(())
        };
        assert!(until_deadline(&stop, second, slow).await.is_ok(), "nobody asked for the stop");
        stop.cancel();
        let ended = until_deadline(&stop, second, std::future::pending::<anyhow::Result<()>>());
        assert!(ended.await.is_err());
    }

    #[test]
    fn pauses_double_up_to_the_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let pauses: Vec<_> = (0..4).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.pause().as_millis(), 100);
    }
}
