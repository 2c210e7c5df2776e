//! Makes the faults of the schedule, each at its time, and mends them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::join_all;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{sleep, sleep_until};

use crate::{Link, Service, Stack};

use super::broken::{Broken, Promise};
use super::erasures;
use super::fill;
use super::foreign;
use super::older_log::{self, OlderLog};
use super::restore::Dumps;
use super::schedule::{Fault, Target, What};
use super::world::{Leave, World};

/// How often it is looked whether the processes live.
const LOOK: Duration = Duration::from_millis(500);
/// How exactly it is told how long a backlog took.
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// A full log is trimmed every 5 s, once what fills it is stored.
const TAKES_AGAIN_WITHIN: Duration = Duration::from_secs(20);

/// After a restore, shares of the clients lose their connections after these pauses.
const RETURNS_MS: [u64; 4] = [0, 150, 300, 600];
const RETURN_PERCENT: u64 = 12;

/// Makes the faults.
#[derive(Debug)]
pub(super) struct Faults {
    world: Arc<World>,
    dumps: Dumps,
    /// Only one fault at a time has a process, also when the one before took longer than planned.
    processes: BTreeMap<Target, Mutex<()>>,
}

impl Faults {
    pub(super) fn new(world: &Arc<World>, dumps: Dumps) -> Arc<Self> {
        let gateways = (0..world.stack.gateways().len()).map(Target::Gateway);
        let persisters = (0..world.stack.persisters().len()).map(Target::Persister);
        let targets = gateways.chain(persisters).chain([Target::Nats, Target::Postgres]);
        let processes = targets.map(|target| (target, Mutex::default())).collect();
        Arc::new(Self { world: Arc::clone(world), dumps, processes })
    }

    /// Makes all faults and waits until they are mended.
    pub(super) async fn make(self: Arc<Self>, plan: Vec<Fault>) {
        let mut under_way = JoinSet::new();
        for (number, fault) in plan.into_iter().enumerate() {
            sleep_until((self.world.started + fault.at).into()).await;
            let faults = Arc::clone(&self);
            under_way.spawn_local(async move { faults.make_one(number, fault).await });
        }
        while under_way.join_next().await.is_some() {}
    }

    async fn make_one(self: Arc<Self>, number: usize, fault: Fault) {
        let faults = Arc::clone(&self);
        // The harness panics where a process does not come back.
        let made = spawn_local(async move { faults.carry_out(number, fault).await }).await;
        let error = match made {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => match panic.try_into_panic() {
                Ok(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
                Err(error) => error.to_string(),
            },
        };
        self.world.break_promise(Broken::new(Promise::Alive, format!("{}: {error}", fault.what)));
    }

    async fn carry_out(&self, number: usize, fault: Fault) -> Result<()> {
        let Fault { what, lasts, .. } = fault;
        if what == What::Restore {
            return self.restore(number, lasts).await;
        }
        if let What::OlderLog { late_ms } = what {
            return self.put_older_log_back(what, lasts, Duration::from_millis(late_ms)).await;
        }
        let _held = self.hold(self.targets(what)).await;
        let span = self.world.spans.begin(what);
        match what {
            What::LoseLog { all } => self.lose_log(all, lasts).await?,
            What::Kill(target) => self.kill(target, lasts).await,
            What::Stop(target) => self.stop(target, lasts).await,
            What::Pause(target) => self.pause(target, lasts).await,
            What::Cut(link, index) => self.part(link, index, lasts, crate::Proxy::cut).await,
            What::Freeze(link, index) => self.part(link, index, lasts, crate::Proxy::freeze).await,
            What::Fill { stopped } => self.fill(stopped, lasts).await?,
            What::Leave { percent, salt } => {
                self.world.leave.send_replace(Leave::new(percent, salt, lasts));
            }
            What::ClockStep(target) => self.step_clock_back(target, lasts).await?,
            What::Foreign { count, salt } => foreign::put(&self.world, count, salt).await?,
            What::Restore | What::OlderLog { .. } => {}
        }
        self.world.spans.end(span);
        if self.world.arguments.postgres_away.is_some() {
            self.world.has_drained(self.drain().await);
        }
        Ok(())
    }

    /// Waits until everything that was acked before is shown; how long it took.
    async fn drain(&self) -> Duration {
        let back = Instant::now();
        while self.world.rooms().iter().any(|room| room.waits_since(back)) {
            sleep(DRAIN_LOOK).await;
        }
        back.elapsed()
    }

    fn targets(&self, what: What) -> BTreeSet<Target> {
        let persister = |target: &&Target| matches!(target, Target::Persister(_));
        match what {
            What::Fill { .. } => self.processes.keys().filter(persister).copied().collect(),
            What::LoseLog { .. } => self.processes.keys().copied().collect(),
            _ => what.targets(),
        }
    }

    /// In one order for all, so that nobody waits for each other.
    async fn hold(&self, targets: BTreeSet<Target>) -> Vec<MutexGuard<'_, ()>> {
        let mut held = Vec::new();
        for target in targets {
            if let Some(process) = self.processes.get(&target) {
                held.push(process.lock().await);
            }
        }
        held
    }

    async fn kill(&self, target: Target, lasts: Duration) {
        let stack = &self.world.stack;
        match target {
            Target::Nats => stack.nats().kill().await,
            Target::Postgres => stack.postgres().kill().await,
            _ => service(stack, target).map(Service::kill).unwrap_or_default(),
        }
        sleep(lasts).await;
        self.start(target).await;
    }

    async fn stop(&self, target: Target, lasts: Duration) {
        let stack = &self.world.stack;
        match target {
            Target::Nats => stack.nats().stop().await,
            Target::Postgres => stack.postgres().stop().await,
            _ => {
                if let Some(service) = service(stack, target) {
                    self.end(service).await;
                }
            }
        }
        sleep(lasts).await;
        self.start(target).await;
    }

    async fn end(&self, service: &Service) {
        let status = service.terminate().await;
        if !status.success() {
            self.world.ended_badly(format!("{}: {status}", service.name()));
        }
    }

    async fn start(&self, target: Target) {
        let stack = &self.world.stack;
        match target {
            Target::Nats => stack.nats().start().await,
            Target::Postgres => stack.postgres().start().await,
            _ => {
                if let Some(service) = service(stack, target) {
                    service.start().await;
                }
            }
        }
    }

    async fn pause(&self, target: Target, lasts: Duration) {
        let stack = &self.world.stack;
        match target {
            Target::Nats => stack.nats().pause().await,
            Target::Postgres => stack.postgres().pause().await,
            _ => service(stack, target).map(Service::pause).unwrap_or_default(),
        }
        sleep(lasts).await;
        match target {
            Target::Nats => stack.nats().resume().await,
            Target::Postgres => stack.postgres().resume().await,
            _ => service(stack, target).map(Service::resume).unwrap_or_default(),
        }
    }

    async fn part(&self, link: Link, index: usize, lasts: Duration, part: fn(&crate::Proxy)) {
        let proxy = self.world.stack.proxy(link, index);
        part(proxy);
        sleep(lasts).await;
        proxy.mend();
    }

    async fn fill(&self, stopped: bool, lasts: Duration) -> Result<()> {
        let stack = &self.world.stack;
        let persisters = stack.persisters();
        if stopped {
            join_all(persisters.iter().map(|persister| self.end(persister))).await;
        } else {
            persisters.iter().for_each(Service::pause);
        }
        let mut filler = fill::filler(stack.nats_client()).await?;
        let full = async {
            filler.fill_to_the_brim().await?;
            filler.keep_full(lasts).await
        };
        let full = full.await;
        if stopped {
            join_all(persisters.iter().map(Service::start)).await;
        } else {
            persisters.iter().for_each(Service::resume);
        }
        full?;
        self.world.recovered(filler.until_taken(TAKES_AGAIN_WITHIN).await?);
        Ok(())
    }

    async fn restore(&self, number: usize, age: Duration) -> Result<()> {
        let taken = tokio::time::Instant::now();
        let dump = {
            let _held = self.hold([Target::Postgres].into()).await;
            self.dumps.take(&format!("chaos_dump_{number}")).await?
        };
        sleep_until(taken + age).await;
        let _held = self.hold([Target::Postgres].into()).await;
        let span = self.world.spans.begin(What::Restore);
        self.dumps.put_back(dump).await?;
        erasures::delete_again(&self.world).await;
        // Some come back while what they have seen is not stored again yet.
        for pause in RETURNS_MS {
            sleep(Duration::from_millis(pause)).await;
            self.world.leave.send_replace(Leave::new(RETURN_PERCENT, pause, Duration::ZERO));
        }
        self.world.spans.end(span);
        Ok(())
    }

    async fn put_older_log_back(&self, what: What, age: Duration, late: Duration) -> Result<()> {
        let taken = tokio::time::Instant::now();
        let copy = {
            let _held = self.hold([Target::Nats].into()).await;
            OlderLog::copy(&self.world).await?
        };
        sleep_until(taken + age).await;
        let _held = self.hold(self.processes.keys().copied().collect()).await;
        let span = self.world.spans.begin(what);
        copy.put_back(&self.world, late).await?;
        self.world.spans.end(span);
        Ok(())
    }

    /// Nothing else is broken until what the gateways published again is stored: it was with them alone.
    async fn lose_log(&self, all: bool, behind: Duration) -> Result<()> {
        older_log::lose(&self.world, all, behind).await?;
        self.drain().await;
        Ok(())
    }

    /// Kills an owner, and moves all leases as a clock would that steps back; the others must take what it had
    /// all the same.
    async fn step_clock_back(&self, target: Target, lasts: Duration) -> Result<()> {
        let stack = &self.world.stack;
        service(stack, target).map(Service::kill).unwrap_or_default();
        crate::step_clock_back(&stack.pool()).await?;
        sleep(lasts).await;
        self.start(target).await;
        Ok(())
    }

    /// Looks for processes that ended though nobody told them to.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            sleep(LOOK).await;
            for (target, process) in &self.processes {
                let untouched = process.try_lock();
                let Some(service) = service(&self.world.stack, *target) else { continue };
                if untouched.is_ok() && !service.is_running() {
                    let text = format!("{target} ended by itself");
                    return self.world.break_promise(Broken::new(Promise::Alive, text));
                }
            }
        }
    }
}

fn service(stack: &Stack, target: Target) -> Option<&Service> {
    match target {
        Target::Gateway(index) => Some(stack.gateway(index)),
        Target::Persister(index) => Some(stack.persister(index)),
        Target::Nats | Target::Postgres | Target::Log | Target::Clients => None,
    }
}
