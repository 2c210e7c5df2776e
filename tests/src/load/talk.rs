//! Closed and open loops: opens the sessions, lets everybody talk, measures a stretch of it, waits until
//! everything was shown, and adds up.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::socket_client::SocketClient;

use super::account::{Faults, Shown};
use super::arguments::Crowd;
use super::figures::{Figures, Unit, float};
use super::pacer;
use super::talker::{MEMBERS, Pace, Phase, Talker, join};
use super::tally::{IN_TIME, Tally};
use super::target::Target;

/// Connections that are made at a time.
const JOIN_AT_ONCE: usize = 64;
/// Longest wait, after the last send, until everything was shown: what was said while Postgres was away for an hour
/// takes minutes.
const DRAINS_WITHIN: Duration = Duration::from_mins(15);
/// Without anything new for so long, what is missing is missing.
const QUIET: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);
/// Endings of connections that are shown.
const ENDINGS_SHOWN: usize = 3;

/// How everybody sends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// Each has so many on their way.
    Closed(u64),
    /// So many a second of all together, so many of a sender at once.
    Open { rate: u64, burst: u64 },
}

/// Clients that talk.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) tally: Rc<Tally>,
    phase: watch::Sender<Phase>,
    talkers: JoinSet<Talker>,
}

/// One run: everything about it but the state that it leaves.
pub(super) async fn measure(target: &Target, crowd: &Crowd, load: Load) -> Result<Figures> {
    let conversation = Conversation::begin(target, crowd.sessions, load).await?;
    let tally = Rc::clone(&conversation.tally);
    let talking = async {
        sleep(crowd.warms_up()).await;
        let mut figures = stretch(target, &tally, crowd.measured()).await?;
        figures.extend(conversation.finish(target).await?);
        target.servers.add_memory(&mut figures)?;
        Ok(figures)
    };
    tokio::select! {
        figures = talking => figures,
        () = tally.show_progress() => unreachable!("it never ends"),
    }
}

/// Measures so long.
pub(super) async fn stretch(target: &Target, tally: &Tally, lasts: Duration) -> Result<Figures> {
    let (begun, commits) = (Instant::now(), commits(target).await?);
    let (seen, acked, used) = (tally.seen.get(), tally.acked.get(), target.servers.used()?);
    tally.begin();
    sleep(lasts).await;
    tally.end();
    let (seen, used_now) = (tally.seen.get() - seen, target.servers.used()?);
    let mut figures = Figures::default();
    let lasted = begun.elapsed().as_secs_f64();
    figures.add("messages", Unit::PerSecond, float(seen) / lasted);
    figures.add("acks", Unit::PerSecond, float(tally.acked.get() - acked) / lasted);
    used_now.add_since(&used, seen, &mut figures);
    if let (Some(before), Some(now)) = (commits, self::commits(target).await?) {
        figures.add("messages a commit", Unit::Ratio, float(seen) / float((now - before).max(1)));
    }
    Ok(figures)
}

/// Transactions of the database so far; of a few processes a second is not in it yet.
async fn commits(target: &Target) -> Result<Option<u64>> {
    const COMMITS: &str =
        "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    let Some(pool) = target.pool() else { return Ok(None) };
    let commits: i64 = sqlx::query_scalar(COMMITS).fetch_one(&pool).await?;
    pool.close().await;
    Ok(Some(commits.unsigned_abs()))
}

impl Conversation {
    /// Opens the sessions, then lets everybody talk.
    pub(super) async fn begin(target: &Target, sessions: usize, load: Load) -> Result<Self> {
        let joined = stream::iter(0..sessions)
            .map(|number| pair(target, number))
            .buffered(JOIN_AT_ONCE)
            .try_collect::<Vec<_>>();
        let joined = joined.await.context("the sessions cannot be opened")?;
        let tally = Rc::new(Tally::new());
        let phase = watch::Sender::new(Phase::Talking);
        let mut talkers = JoinSet::new();
        let mut paced = Vec::new();
        let members = joined
            .into_iter()
            .flat_map(|(session, pair)| pair.map(|client| (session.clone(), client)));
        for (number, (session, client)) in members.enumerate() {
            let pace = match load {
                Load::Closed(most) => Pace::InFlight(most),
                Load::Open { .. } => {
                    let (sender, due) = mpsc::unbounded_channel();
                    paced.push(sender);
                    Pace::Due(due)
                }
            };
            let talker = Talker::new(&tally, &session, number, pace, phase.subscribe());
            talkers.spawn_local(talker.run(client));
        }
        if let Load::Open { rate, burst } = load {
            pacer::start(rate, burst, paced);
        }
        Ok(Self { tally, phase, talkers })
    }

    /// Waits until everything that was sent was shown to everybody, and adds up what was not.
    pub(super) async fn finish(mut self, target: &Target) -> Result<Figures> {
        self.phase.send_replace(Phase::Listening);
        self.drain().await;
        self.phase.send_replace(Phase::Over);
        let mut talkers = Vec::new();
        while let Some(talker) = self.talkers.join_next().await {
            talkers.push(talker?);
        }
        talkers.sort_by_key(|talker| talker.number);
        let tally = &self.tally;
        let mut figures = Figures::default();
        figures.latency("delivery", &tally.delivery.borrow());
        if let Some(shown) = tally.shown_in_time() {
            let name = format!("shown within {} s", IN_TIME.as_secs());
            figures.add(name, Unit::PerSecond, shown);
        }
        figures.latency("ack", &tally.ack.borrow());
        figures.count("sent", tally.sent.get());
        for (code, count) in &*tally.refused.borrow() {
            figures.count(format!("refused: {code}"), *count);
        }
        add_faults(&talkers, &mut figures);
        if let Some(stored) = stored(target).await? {
            let surely_not: u64 = talkers.iter().map(|talker| talker.refused.len() as u64).sum();
            let unlike = (tally.sent.get() - surely_not).abs_diff(stored);
            figures.count("stored too few or too many", unlike);
        }
        Ok(figures)
    }

    async fn drain(&self) {
        let deadline = Instant::now() + DRAINS_WITHIN;
        let (mut shown, mut news) = (self.tally.shown.get(), Instant::now());
        while Instant::now() < deadline && news.elapsed() < QUIET {
            let all = self.tally.sent.get() - self.tally.surely_not_taken();
            let (acked, refused) = (self.tally.acked.get(), self.tally.refusals());
            let is_acked = acked == 0 || acked + refused >= self.tally.sent.get();
            if self.tally.shown.get() >= all * MEMBERS as u64 && is_acked {
                return;
            }
            if self.tally.shown.get() != shown {
                (shown, news) = (self.tally.shown.get(), Instant::now());
            }
            sleep(LOOK).await;
        }
    }
}

/// Two members of one session, each at a gateway in turn.
async fn pair(target: &Target, number: usize) -> Result<(String, [SocketClient; MEMBERS])> {
    let address = |member| target.addresses[(number + member) % target.addresses.len()];
    let (first, session) = join(address(0), None).await?;
    let (second, _) = join(address(1), Some(&session)).await?;
    Ok((session, [first, second]))
}

fn add_faults(talkers: &[Talker], figures: &mut Figures) {
    let mut faults = Faults::default();
    let mut disagreeing = 0;
    for members in talkers.chunks(MEMBERS) {
        for talker in members {
            for (shown, member) in talker.shown.iter().zip(members) {
                faults += Shown::faults(shown, member.sent(), &member.refused);
            }
        }
        let same = members.iter().all(|member| member.order == members[0].order);
        disagreeing += u64::from(!same);
    }
    figures.count("lost", faults.lost);
    figures.count("doubled", faults.doubled);
    figures.count("out of order", faults.turned);
    figures.count("refused and stored all the same", faults.risen);
    figures.count("sessions whose members saw another order", disagreeing);
    let mut endings = BTreeMap::<&str, u64>::new();
    for ended in talkers.iter().filter_map(|talker| talker.ended.as_deref()) {
        *endings.entry(ended).or_default() += 1;
    }
    for (ending, count) in endings.into_iter().take(ENDINGS_SHOWN) {
        figures.count(format!("connections ended: {ending}"), count);
    }
}

/// Messages in the database of a stack of ours.
async fn stored(target: &Target) -> Result<Option<u64>> {
    let Some(pool) = target.pool() else { return Ok(None) };
    let stored: i64 =
        sqlx::query_scalar(r#"SELECT count(*) FROM "Message""#).fetch_one(&pool).await?;
    Ok(Some(stored.unsigned_abs()))
}
