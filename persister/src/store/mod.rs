//! All SQL of the persister. Every statement is its own transaction, so a worker that is paused can
//! never sit inside one.

pub mod commit;
pub mod counts;
pub mod erasures;
pub mod errors;
mod known;
pub mod leases;
pub mod offsets;
pub mod operator;
pub mod read_marks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use shared::announcement::Epoch;
use shared::database::Database;
use shared::lifecycle::{Backoff, Stop, pause};
use shared::partition::{Partition, PartitionCount};
use shared::pool::{Connection, Pool};
use tokio::sync::Mutex;
use uuid::Uuid;

/// What Postgres lists connections of persisters and of their commands as.
const APPLICATION: &str = "chat-persister";
/// One connection commits, one renews the leases, one looks at what is old or behind, one is for
/// health.
const CONNECTIONS: u32 = 4;
/// Pauses between tries while the database cannot be reached.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Makes the row of each partition that has none, with a random epoch.
const PREPARE: &str = r#"
    WITH missing AS (
        INSERT INTO "LogPartition" ("partition", "epoch")
        SELECT * FROM unnest($1::smallint[], $2::bigint[])
        ON CONFLICT ("partition") DO NOTHING
        RETURNING "partition", "epoch"
    )
    INSERT INTO "LogEpoch" ("partition", "epoch") SELECT * FROM missing"#;

/// What an operator is told whose Postgres does not sync.
pub const NOT_DURABLE: &str =
    "Postgres runs with fsync = off: a power cut loses what was stored and acknowledged";

const IS_DURABLE: &str = "SELECT current_setting('fsync')::bool";

/// A worker's hold on Postgres. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    committing: Arc<Mutex<Option<Connection>>>,
    /// Batches whose messages are looked for before they are stored.
    looked_for: Arc<AtomicU32>,
    worker: Uuid,
    waiting: Arc<AtomicBool>,
}

/// A batch waits to be stored, while it is held.
pub struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Store {
    /// Prepares the pool; connects when first used.
    pub fn connect(database: &Database, worker: Uuid) -> Self {
        Self {
            pool: connect(database),
            committing: Arc::default(),
            looked_for: Arc::default(),
            worker,
            waiting: Arc::default(),
        }
    }

    /// The connections, to be counted.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Says that a batch waits because Postgres did not take it.
    pub fn wait(&self) -> Waiting {
        self.waiting.store(true, Ordering::Relaxed);
        Waiting(Arc::clone(&self.waiting))
    }

    /// Whether a batch waits: a server whose disk is full answers all the same.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether what Postgres commits is on its disk then; an error if it does not answer.
    pub async fn is_durable(&self) -> sqlx::Result<bool> {
        self.pool.fetch_one(sqlx::query(IS_DURABLE)).await.map(|(value,)| value)
    }

    /// Makes the rows of the partitions as soon as Postgres answers. `None` if the stop came first.
    pub async fn prepare_until_done(&self, count: PartitionCount, stop: &Stop) -> Option<()> {
        let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
        while let Err(error) = self.prepare(count).await {
            tracing::warn!(%error, "the partitions cannot be prepared yet");
            if !pause(stop, backoff.pause()).await {
                return None;
            }
        }
        if self.is_durable().await.is_ok_and(|durable| !durable) {
            tracing::warn!("{NOT_DURABLE}");
        }
        Some(())
    }

    async fn prepare(&self, count: PartitionCount) -> anyhow::Result<()> {
        let partitions: Vec<i16> = count.all().map(Partition::to_column).collect();
        let epochs: Vec<i64> = partitions
            .iter()
            .map(|_| Epoch::random().map(|epoch| epoch.0))
            .collect::<Result<_, _>>()?;
        self.pool.execute(sqlx::query(PREPARE).bind(partitions).bind(epochs)).await?;
        Ok(())
    }
}

fn connect(database: &Database) -> Pool {
    // What is announced as stored must survive a power cut, whatever is the default for others.
    Pool::new(database, APPLICATION, CONNECTIONS, &[("synchronous_commit", "on")])
}

/// A stream sequence as Postgres stores it; JetStream's never reach the sign.
fn column(sequence: u64) -> i64 {
    sequence.cast_signed()
}

/// A partition as Postgres stores it.
fn partition(number: i16) -> Partition {
    Partition::new(number.unsigned_abs())
}
