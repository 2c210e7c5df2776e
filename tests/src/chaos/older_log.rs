//! An older copy of the log in the place of the present one, as a restored volume would be, or a disk that
//! lost its tail.
//!
//! What was acked and is not stored would be lost with it, and nobody promises otherwise. So gateways are cut
//! off first, and the copy is put in place only once everything that the log took is stored.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use shared::log::Log;
use shared::subjects;
use tokio::time::sleep;

use crate::{Link, Proxy};

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

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Waits until Postgres has all that the log holds. Nobody puts anything into it any more.
async fn everything_is_stored(world: &World) -> Result<()> {
    let log = async_nats::jetstream::new(world.stack.nats_client().await);
    let until = Instant::now() + STORED_WITHIN;
    sleep(SETTLES).await;
    while !is_everything_stored(world, &log).await? {
        ensure!(Instant::now() < until, "the log is not stored within {STORED_WITHIN:?}");
        sleep(LOOK).await;
    }
    Ok(())
}

async fn is_everything_stored(world: &World, jetstream: &jetstream::Context) -> Result<bool> {
    let (log, partitions) = shared::log::find(jetstream).await?;
    let stored = r#"SELECT "partition", "sequence" FROM "LogPartition""#;
    let stored: Vec<(i16, i64)> = sqlx::query_as(stored).fetch_all(&world.stack.pool()).await?;
    for partition in partitions.all() {
        let last = last_sequence(&log, &subjects::requests_of(partition)).await?;
        let place = stored.iter().find(|(number, _)| *number == partition.to_column());
        if place.is_none_or(|(_, sequence)| sequence.cast_unsigned() < last) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn last_sequence(log: &Log, subject: &str) -> Result<u64> {
    let last = log.last_record(subject).await?;
    Ok(last.map_or(0, |last| last.sequence))
}
