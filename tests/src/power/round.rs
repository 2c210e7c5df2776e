//! One cut: a stack whose servers lie on a disk, clients who talk, the power goes, everything starts again.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::chaos::Random;
use crate::wait::must;
use crate::{BlockDisk, Service, Stack, workspace};

use super::case::{Case, Victim};
use super::crowd::Crowd;
use super::verdict::{Blackout, Verdict, judge};

/// How long clients talk before anything happens, in milliseconds.
const TALK_MS: (u64, u64) = (4_000, 8_000);
/// The first start is this young at most when the power goes.
const FIRST: Duration = Duration::from_secs(10);
/// And clients have talked for so long at least.
const FIRST_TALK_MS: u64 = 500;
/// How long they talk once everything is back.
const TALK_AFTER: Duration = Duration::from_secs(3);
/// From the start of the servers until everybody can go on.
const GOES_ON_WITHIN: Duration = Duration::from_secs(90);
/// Until everything that was said is stored, and shown to everybody.
const QUIET_WITHIN: Duration = Duration::from_secs(90);

/// What a round is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Gateways.
    pub gateways: usize,
    /// Persisters.
    pub persisters: usize,
    /// Messages a second of all clients together.
    pub rate: u64,
    /// `sync_interval` of the nats-server.
    pub sync_interval: String,
    /// Decides when the power goes.
    pub seed: u64,
}

/// Makes one cut; `None`, and a line that says so, where this machine has no disk to cut off.
pub async fn play(case: Case, plan: Plan) -> Option<Verdict> {
    let disk = BlockDisk::make().await?;
    let mut random = Random::new(plan.seed);
    let begun = Instant::now();
    let stack = builder(case, &plan, &disk).start().await;
    let first = case == Case::FirstStart;
    if !first {
        disk.settle().await;
    }
    let crowd = Crowd::enter(&stack, plan.rate).await;
    let talk =
        if first { first_talk(begun, &mut random) } else { random.between(TALK_MS.0, TALK_MS.1) };
    let talking = Instant::now();
    sleep(talk).await;
    stand_still(case, &stack, &mut random).await;
    let blackout = cut(case, &stack, &disk).await;
    let back = start_again(case, &stack, &disk).await;
    let goes_on = crowd.goes_on(blackout.until, GOES_ON_WITHIN).await;
    sleep(TALK_AFTER).await;
    let rooms = crowd.finish(QUIET_WITHIN).await;
    let verdict = Verdict {
        load: blackout.from.duration_since(talking),
        back: goes_on.map(|took| back + took),
        ..judge(case, &stack, &rooms, &blackout).await
    };
    if !verdict.held() {
        let kept = workspace().join(format!("target/power-cut/{case:?}-{}", plan.seed));
        must(stack.keep_logs(&kept), "keeping logs");
        println!("the logs are kept in {}", kept.display());
    }
    Some(verdict)
}

fn builder(case: Case, plan: &Plan, disk: &BlockDisk) -> crate::Builder {
    let builder = Stack::builder().gateways(plan.gateways).persisters(plan.persisters);
    let builder = match case.victim() {
        Victim::Everything => builder.nats_on(disk).postgres_on(disk),
        Victim::Nats => builder.nats_on(disk),
        Victim::Postgres => builder.postgres_on(disk),
    };
    builder.durable().nats_sync_interval(&plan.sync_interval)
}

/// At random within what is left of the time.
fn first_talk(begun: Instant, random: &mut Random) -> Duration {
    let left = FIRST.saturating_sub(begun.elapsed()).as_millis();
    let left = u64::try_from(left).unwrap_or_default().max(FIRST_TALK_MS);
    random.between(FIRST_TALK_MS, left)
}

/// What does not work for a while before the cut.
async fn stand_still(case: Case, stack: &Stack, random: &mut Random) {
    match case {
        Case::PersisterStopped => {
            // Those that ended leave nothing in the sockets of NATS, those that were frozen do.
            let stop = if random.chance(50) { Service::pause } else { Service::kill };
            stack.persisters().iter().for_each(stop);
        }
        Case::PostgresStopped => stack.postgres().stop().await,
        _ => {}
    }
    sleep(case.standstill()).await;
}

/// The disk first: what is written afterwards is lost, whoever still runs.
async fn cut(case: Case, stack: &Stack, disk: &BlockDisk) -> Blackout {
    let switch = must(disk.switch(), "reaching for the switch");
    let from = Instant::now();
    must(switch.off(), "cutting the power");
    match case.victim() {
        Victim::Everything => {
            stack.gateways().iter().chain(stack.persisters()).for_each(Service::kill);
            tokio::join!(stack.nats().kill(), stack.postgres().kill());
        }
        Victim::Nats => stack.nats().kill().await,
        Victim::Postgres => stack.postgres().kill().await,
    }
    let everything = case.victim() == Victim::Everything;
    Blackout { from, until: Instant::now(), everything }
}

/// How long it took until the services were ready.
async fn start_again(case: Case, stack: &Stack, disk: &BlockDisk) -> Duration {
    must(disk.power_on(), "mounting a disk again");
    let begun = Instant::now();
    match case.victim() {
        Victim::Everything => {
            tokio::join!(stack.postgres().start(), stack.nats().start());
            stack.start_services().await;
        }
        Victim::Nats => stack.nats().start().await,
        Victim::Postgres => stack.postgres().start().await,
    }
    begun.elapsed()
}
