//! What a run shows: a line every few seconds, and a table at the end.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::broken::{Broken, Promise};
use super::verdict::Verdict;
use super::world::{World, read};

const EVERY: Duration = Duration::from_secs(5);

/// Shows progress until it is dropped.
pub(super) async fn progress(world: &World) {
    loop {
        println!("{}", line(world));
        sleep(EVERY).await;
    }
}

fn line(world: &World) -> String {
    let tally = &world.tally;
    let faults = world.spans.counts().values().sum::<usize>();
    let unseen = world.rooms().iter().filter_map(|room| room.oldest_unseen()).min();
    let silent = unseen.map_or(0.0, |acked| acked.elapsed().as_secs_f64());
    let (sent, acked) = (read(&tally.sent), read(&tally.acked));
    let refused: u64 = tally.refusals().values().sum();
    let now = world.spans.present();
    let now = if now.is_empty() { "nothing".to_owned() } else { now.join(" + ") };
    format!(
        "{:5.0} s  faults {faults:3}  sent {sent:6}  acked {acked:6}  shown {:7}  refused {refused:5}  \
         silent {silent:4.1} s  broken now: {now}",
        world.started.elapsed().as_secs_f64(),
        read(&tally.shown),
    )
}

/// The table.
pub(super) fn table(world: &World, verdict: &Verdict, broken: &[Broken]) -> String {
    let tally = &world.tally;
    let mut table = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(table, "  {name:<46} {value}");
    };
    row("sessions", world.rooms().len().to_string());
    row("sent", read(&tally.sent).to_string());
    row("emitted, with resends", read(&tally.emitted).to_string());
    row("acked", read(&tally.acked).to_string());
    row("stored", verdict.stored.to_string());
    row("shown live", read(&tally.shown).to_string());
    row("came back with `after`", read(&tally.resumed).to_string());
    row("  and were told `more`", read(&tally.mores).to_string());
    row("sessions erased", world.erased().len().to_string());
    row("sessions deleted by SQL", world.deleted().len().to_string());
    row("  sends acked after it was asked for", read(&tally.behind_an_end).to_string());
    for (number, feed) in world.feeds().iter().enumerate() {
        row(&format!("told by feed {number}"), feed.to_string());
    }
    row("foreign records", world.foreign().len().to_string());
    for promise in Promise::ALL {
        let count = broken.iter().filter(|broken| broken.promise == promise).count();
        row(promise.breakage(), count.to_string());
    }
    for (reason, count) in tally.refusals() {
        row(&format!("refused: {reason}"), count.to_string());
    }
    let (alone, calm, (longest, kinds)) = world.spans.silences();
    let felt_within = |from, to| world.spans.was_felt(from, to);
    let calm_acks = tally.acks(|from, to| !felt_within(from, to));
    row("acks while nothing was felt, p50 / p99 / slowest", quantiles(&calm_acks));
    if let Some((_, begun)) = calm_acks.last() {
        let mended = world.spans.mended_before(*begun);
        let mended = mended.map(|(what, ago)| format!("{} after: {what}", seconds(ago)));
        row("  the slowest was sent", mended.unwrap_or_else(|| "before any fault".to_owned()));
    }
    row("acks while something was, with resends", quantiles(&tally.acks(felt_within)));
    if let Some(drained) = world.drained() {
        row("backlog shown, after Postgres was back", seconds(drained));
    }
    row("longest silence without a fault", seconds(calm));
    let kinds: Vec<_> = kinds.into_iter().collect();
    row("longest silence", format!("{} in: {}", seconds(longest), kinds.join(", ")));
    for (kind, count) in world.spans.counts() {
        let alone = alone.get(&kind).map_or_else(|| "-".to_owned(), |time| seconds(*time));
        row(&format!("fault: {kind}"), format!("{count:3}   longest silence alone {alone}"));
    }
    for end in world.bad_ends() {
        row("was asked to stop and ended with", end);
    }
    for time in world.recoveries() {
        row("a full log took sends again after", seconds(time));
    }
    table
}

/// Of times that are sorted.
fn quantiles(took: &[(Duration, Instant)]) -> String {
    let at = |percent: usize| took.get((took.len() * percent / 100).min(took.len().max(1) - 1));
    let times =
        [50, 99, 100].map(|percent| at(percent).map_or("-".into(), |(took, _)| millis(*took)));
    times.join(" / ")
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
