//! `cargo chaos`: everything is broken under load, as a seed says, while real clients talk; whether every
//! promise holds is looked at all the time and at the end.
//!
//! `schedule` decides the faults, `faults` makes them, `crowd` lets clients in, each `client` keeps
//! account in its room's `ledger`, `verdict` compares that with what is stored, and with it what programs were told by
//! `feeds`. Some sessions are erased or deleted by SQL meanwhile: `erasures`.

mod arguments;
mod broken;
mod client;
mod crowd;
mod erasures;
mod events;
mod faults;
mod feeds;
mod fill;
mod foreign;
mod javascript;
mod ledger;
mod older_log;
mod outbox;
mod random;
mod report;
mod restore;
mod schedule;
mod socket;
mod spans;
mod verdict;
mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use stack::nats::SYNC_INTERVAL;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, sleep_until, timeout};

pub use arguments::{Arguments, Restart};
pub(crate) use random::Random;

use crate::binaries::{Binaries, workspace};
use crate::{Link, Stack, power};

use broken::Broken;
use faults::Faults;
use javascript::Javascript;
use restore::{Dump, Dumps};
use schedule::{Fault, What};
use verdict::Verdict;
use world::{Phase, World};

/// Bytes of the log: it is trimmed to half of that several times in ten minutes.
const LOG_MAX_BYTES: &str = "67108864";
/// Records are trimmed at this age too; no dump of a run is older.
const LOG_KEEP: &str = "120s";
/// Everything was mended: so long it may take until every client was shown everything.
const QUIET_WITHIN: Duration = Duration::from_secs(90);
/// And so long until those that are late have said what they lack.
const LAST_WORDS: Duration = Duration::from_secs(40);
/// Faults that are shown when a promise broke.
const FAULTS_SHOWN: usize = 15;
/// The dump that is put in place when all is quiet.
const LAST_DUMP: &str = "chaos_dump_last";
const TALK_AFTER_DUMP: Duration = Duration::from_secs(5);
/// So long it may take until the database is complete again, and the log holds nothing of erased sessions.
const REPLAYS_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(500);
const MIGRATES_WITHIN: Duration = Duration::from_mins(1);

/// Runs it; the exit code says whether every promise held.
pub async fn run(arguments: Arguments) -> ExitCode {
    println!("{}", arguments.command());
    if let Some(cases) = arguments.power_cases() {
        let held = power::drill(&cases, arguments.rounds, &arguments.power_plan()).await;
        return if held { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    // The harness's futures stay on one thread.
    match LocalSet::new().run_until(Box::pin(attempt(arguments.clone()))).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("repeat it with: {}", arguments.command());
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("the run cannot be made: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn attempt(arguments: Arguments) -> Result<bool> {
    let plan = schedule::plan(&arguments);
    let stack = stack(&arguments).await;
    let (dumps, pristine) = Dumps::of(stack.database_url()).await?;
    migrate(pristine).await?;
    let world = Arc::new(World::new(arguments, stack));
    println!(
        "{} faults are planned; logs are in {}",
        plan.len(),
        world.stack.home.path().display()
    );
    let stopped_by = tokio::select! {
        verdict = play(&world, dumps, plan.clone()) => Ok(verdict?),
        broken = first_breakage(&world) => Err(broken),
    };
    let (verdict, broken) = match stopped_by {
        Ok(verdict) => (verdict, world.broken.borrow().clone()),
        Err(broken) => (Verdict::default(), vec![broken]),
    };
    let broken: Vec<Broken> = broken.into_iter().chain(verdict.broken.iter().cloned()).collect();
    println!("\n{}", report::table(&world, &verdict, &broken));
    for broken in &broken {
        println!("BROKEN at {:.1} s: {broken}\n", world.started.elapsed().as_secs_f64());
    }
    if !broken.is_empty() {
        let faults = world.spans.account(world.started);
        let last = faults.len().saturating_sub(FAULTS_SHOWN);
        println!("the last faults:\n{}", faults[last..].join("\n"));
        let kept = keep_logs(&world, &plan, &broken)?;
        println!("the logs are kept in {}", kept.display());
    }
    Ok(broken.is_empty())
}

async fn stack(arguments: &Arguments) -> Stack {
    let builder = Stack::builder()
        .gateways(arguments.gateways.into())
        .persisters(arguments.persisters.into())
        .durable()
        .nats_sync_interval(SYNC_INTERVAL)
        .env("LOG_MAX_BYTES", LOG_MAX_BYTES)
        .persister_env("LOG_KEEP", LOG_KEEP)
        .proxy(Link::GatewayNats)
        .proxy(Link::GatewayPostgres)
        .proxy(Link::PersisterNats)
        .proxy(Link::PersisterPostgres);
    builder.start().await
}

async fn migrate(url: String) -> Result<()> {
    let mut persister = Command::new(Binaries::get().path("persister"));
    persister.arg("migrate").env_clear().env("DATABASE_URL", url).current_dir(std::env::temp_dir());
    let migrated = move || stack::tool::run(persister, MIGRATES_WITHIN);
    tokio::task::spawn_blocking(migrated).await?.map(drop)
}

/// Clients and faults, then quiet, then the verdict.
async fn play(world: &Arc<World>, dumps: Dumps, plan: Vec<Fault>) -> Result<Verdict> {
    let faults = Faults::new(world, dumps.clone());
    let javascript = match usize::from(world.arguments.javascript) {
        0 => None,
        count => Some(Javascript::start(count).await?),
    };
    let _reading = feeds::enter(world).await?;
    let mut crowd = crowd::enter(world, javascript.as_ref());
    let making = async {
        Arc::clone(&faults).make(plan).await;
        sleep_until((world.started + world.arguments.time()).into()).await;
        let last = last_dump(world, &dumps).await?;
        println!("everything is mended, waiting for quiet");
        quiet(world, &mut crowd).await;
        if let Some(last) = last {
            println!(
                "an older dump is put in place, and nobody talks who could wake the persisters"
            );
            dumps.put_back(last).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        made = making => made?,
        () = report::progress(world) => {}
        () = Arc::clone(&faults).watch() => {}
    }
    let deadline = Instant::now() + REPLAYS_WITHIN;
    loop {
        erasures::delete_again(world).await;
        // A look takes as long as there is much to look at: what it saw first is of when it began.
        let begun = Instant::now();
        let verdict = verdict::judge(world).await.context("looking at what is stored")?;
        if verdict.broken.is_empty() || begun > deadline {
            return Ok(verdict);
        }
        sleep(LOOK).await;
    }
}

/// A dump that lacks what is said last.
async fn last_dump(world: &World, dumps: &Dumps) -> Result<Option<Dump>> {
    if !world.arguments.wants(&What::Restore.to_string()) {
        return Ok(None);
    }
    let dump = dumps.take(LAST_DUMP).await?;
    sleep(TALK_AFTER_DUMP).await;
    Ok(Some(dump))
}

/// Every client is shown everything, or says what it lacks.
async fn quiet(world: &World, crowd: &mut JoinSet<()>) {
    world.phase.send_replace(Phase::Finishing);
    if timeout(QUIET_WITHIN, ended(crowd)).await.is_err() {
        world.phase.send_replace(Phase::TooLate);
        timeout(LAST_WORDS, ended(crowd)).await.ok();
    }
}

async fn ended(crowd: &mut JoinSet<()>) {
    while crowd.join_next().await.is_some() {}
}

/// Not those that are told at the end, all together.
async fn first_breakage(world: &World) -> Broken {
    let mut broken = world.broken.subscribe();
    loop {
        let first = broken.borrow_and_update().first().cloned();
        match first {
            Some(first) if *world.phase.borrow() != Phase::TooLate => return first,
            _ => {}
        }
        if broken.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Copies what the processes printed, the schedule and the breakages to where they outlive the run.
fn keep_logs(world: &World, plan: &[Fault], broken: &[Broken]) -> Result<PathBuf> {
    let kept = workspace().join(format!("target/chaos/seed-{}", world.arguments.seed));
    world.stack.keep_logs(&kept)?;
    write(&kept.join("schedule.txt"), plan)?;
    write(&kept.join("faults.txt"), &world.spans.account(world.started))?;
    write(&kept.join("broken.txt"), broken)?;
    Ok(kept)
}

fn write<T: std::fmt::Display>(path: &Path, lines: &[T]) -> Result<()> {
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    Ok(fs::write(path, lines.join("\n") + "\n")?)
}
