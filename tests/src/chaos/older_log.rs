//! An older copy of the log in the place of the present one, as a restored volume would be, or a disk that
//! lost its tail.
//!
//! It is put in place in two ways: while partitions are idle, once everything that the log took is stored; and
//! under load, by a [`lose`] that takes with it what was acked and is not stored. The gateways that took it
//! live on, and publish it again.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shared::log::StreamName;
use shared::partition::Partition;
use shared::subjects;
use tokio::time::sleep;

use crate::{Link, Proxy, copy_folder};

use super::world::World;

/// How long a backlog of an earlier fault may take to be stored.
const STORED_WITHIN: Duration = Duration::from_secs(30);
/// What was on its way when the gateways were cut off is in the log or lost after this time.
const SETTLES: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(50);

/// A copy of the log's files.
#[derive(Debug)]
pub(super) struct OlderLog {
    files: PathBuf,
}

impl OlderLog {
    /// Copies the log while nats-server holds still, as a snapshot of its volume would.
    pub(super) async fn copy(world: &World) -> Result<Self> {
        let nats = world.stack.nats();
        let files = nats.store().with_extension("older");
        if files.exists() {
            fs::remove_dir_all(&files)?;
        }
        nats.pause().await;
        let copied = copy_folder(&nats.store(), &files);
        nats.resume().await;
        copied.context("copying the log")?;
        Ok(Self { files })
    }

    /// Puts it in the place of the log. The persisters come back so much later than the gateways.
    pub(super) async fn put_back(self, world: &World, late: Duration) -> Result<()> {
        let stack = &world.stack;
        let proxies = |link| stack.proxies(link).collect::<Vec<_>>();
        let (gateways, persisters) = (proxies(Link::GatewayNats), proxies(Link::PersisterNats));
        gateways.iter().copied().for_each(Proxy::cut);
        let stored = everything_is_stored(world).await;
        if stored.is_ok() {
            persisters.iter().copied().for_each(Proxy::cut);
            stack.nats().kill().await;
            stack.nats().wipe();
            fs::rename(&self.files, stack.nats().store())?;
            stack.nats().start().await;
        }
        gateways.into_iter().for_each(Proxy::mend);
        sleep(late).await;
        persisters.into_iter().for_each(Proxy::mend);
        stored
    }
}

/// The log loses what it took, under load: all of it, or what came after a copy of now. The persisters are behind
/// by then, and what was accepted meanwhile is nowhere but with its gateways.
pub(super) async fn lose(world: &World, all: bool, behind: Duration) -> Result<()> {
    // What a gateway took in an earlier life is with nobody.
    everything_is_stored(world).await?;
    let stack = &world.stack;
    let copy = if all { None } else { Some(OlderLog::copy(world).await?) };
    let persisters: Vec<_> = stack.proxies(Link::PersisterNats).collect();
    persisters.iter().copied().for_each(Proxy::cut);
    sleep(behind).await;
    stack.nats().kill().await;
    stack.nats().wipe();
    if let Some(copy) = copy {
        fs::rename(copy.files, stack.nats().store())?;
    }
    stack.nats().start().await;
    persisters.into_iter().for_each(Proxy::mend);
    Ok(())
}

/// Waits until Postgres has all that the log took before.
async fn everything_is_stored(world: &World) -> Result<()> {
    let until = Instant::now() + STORED_WITHIN;
    sleep(SETTLES).await;
    let taken = newest_records(world).await?;
    while !are_stored(world, &taken).await? {
        ensure!(Instant::now() < until, "the log is not stored within {STORED_WITHIN:?}");
        sleep(LOOK).await;
    }
    Ok(())
}

/// The sequence of the newest record of each partition.
async fn newest_records(world: &World) -> Result<Vec<(Partition, u64)>> {
    let log = async_nats::jetstream::new(world.stack.nats_client().await);
    let (log, partitions) = shared::log::find(&log, &StreamName::default()).await?;
    let mut newest = Vec::new();
    for partition in partitions.all() {
        let last = log.last_record(&subjects::requests_of(partition)).await?;
        newest.push((partition, last.map_or(0, |last| last.sequence)));
    }
    Ok(newest)
}

async fn are_stored(world: &World, taken: &[(Partition, u64)]) -> Result<bool> {
    let stored = r#"SELECT "partition", "sequence" FROM "LogPartition""#;
    let stored: Vec<(i16, i64)> = sqlx::query_as(stored).fetch_all(&world.stack.pool()).await?;
    let is_stored = |(partition, last): &(Partition, u64)| {
        let place = stored.iter().find(|(number, _)| *number == partition.to_column());
        place.is_some_and(|(_, sequence)| sequence.cast_unsigned() >= *last)
    };
    Ok(taken.iter().all(is_stored))
}
