//! `cargo load`: what a server can do, what it takes for it, and what its parts could do.
//!
//! `talk` is the closed and the open loop of `talker`s, who keep `account` of what they are shown; `idle`,
//! `redeploy`, `history`, `backlog` and `outage` are the other ways to measure, `parts` is the floor. What comes out
//! are `figures`. Everything runs on one thread.

mod account;
mod arguments;
mod backlog;
mod figures;
mod history;
mod idle;
mod outage;
mod pacer;
mod parts;
mod redeploy;
mod talk;
mod talker;
mod tally;
mod target;
mod usage;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::task::LocalSet;

pub use arguments::Arguments;

use arguments::{Closed, What};
use figures::{Figures, Runs, Unit};
use talk::Load;
use target::Target;

/// Runs it; the exit code says whether everything could be measured.
pub async fn run(arguments: Arguments) -> ExitCode {
    let attempt = Box::pin(attempt(arguments));
    match LocalSet::new().run_until(attempt).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("not measured: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn attempt(mut arguments: Arguments) -> Result<()> {
    if let What::Echo = arguments.what {
        return parts::echo::serve().await;
    }
    raise_file_limit();
    if let What::Backlog(backlog) = &arguments.what {
        let most = backlog.by.iter().copied().max().unwrap_or(1);
        arguments.persisters = arguments.persisters.max(u16::try_from(most)?);
    }
    let mut builds = match &arguments.against {
        Some(other) => vec![Runs::of("ours"), Runs::of(&other.display().to_string())],
        None => vec![Runs::default()],
    };
    for run in 0..arguments.runs {
        for (turn, build) in builds.iter_mut().enumerate() {
            println!("run {} of {} {}", run + 1, arguments.runs, build.name);
            let programs = arguments.against.as_deref().filter(|_| turn > 0);
            build.push(once(&arguments, programs).await?);
        }
    }
    for build in &builds {
        println!("\n{}", build.table());
    }
    if let Some(file) = &arguments.json {
        let builds: Vec<_> = builds.iter().map(Runs::json).collect();
        let command: Vec<_> = std::env::args().skip(1).collect();
        let json = json!({"command": command.join(" "), "builds": builds});
        std::fs::write(file, format!("{json:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// One run, with everything made anew.
async fn once(arguments: &Arguments, programs: Option<&Path>) -> Result<Figures> {
    if let What::Parts(parts) = &arguments.what {
        return parts::measure(arguments, Duration::from_secs(parts.seconds)).await;
    }
    let target = Target::of(arguments, programs).await?;
    match &arguments.what {
        What::Closed(closed) => measure_closed(&target, closed).await,
        What::Open(open) => talk::measure(&target, &open.crowd, open.load()).await,
        What::Idle(idle) => idle::measure(&target, idle).await,
        What::Redeploy(redeploy) => redeploy::measure(&target, redeploy).await,
        What::History(history) => history::measure(&target, history).await,
        What::Backlog(backlog) => backlog::measure(&target, backlog).await,
        What::Outage(outage) => outage::measure(&target, outage).await,
        What::Parts(_) | What::Echo => Ok(Figures::default()),
    }
}

async fn measure_closed(target: &Target, closed: &Closed) -> Result<Figures> {
    let load = Load::Closed(closed.in_flight);
    let mut figures = talk::measure(target, &closed.crowd, load).await?;
    if closed.floor {
        let batch = figures.get("messages a commit").context("only a stack of ours has a floor")?;
        let floor = parts::floor(target, closed.crowd.sessions, closed.in_flight, batch).await?;
        let (all, least) = (figures.get("processor, all servers"), floor.get("floor, all parts"));
        figures.extend(floor);
        if let (Some(all), Some(least)) = (all, least) {
            figures.add("processor, all servers, in floors", Unit::Ratio, all / least);
        }
    }
    Ok(figures)
}

/// Ten thousand connections need as many files, here and in the gateway that inherits the limit.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        eprintln!("the number of open files stays at {:?}: {error}", limit.current);
    }
}
