//! Fills the log to its brim, as a backlog would that nobody stores: with records that are no
//! requests, which the persisters set aside as dead letters later.

use std::time::{Duration, Instant};

use std::future::IntoFuture;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use bytes::Bytes;
use shared::ids::SessionId;
use shared::partition::PartitionCount;
use shared::subjects;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::random::Random;

/// What a record of ours begins with.
pub(super) const MARK: &[u8] = b"chaos filler ";
/// Sizes of records, the last one smaller than any message.
const SIZES: [usize; 3] = [128 * 1024, 8 * 1024, 200];
/// Records on their way at a time.
const AT_ONCE: usize = 16;
/// More than any log of a run holds.
const RECORDS_MAX: usize = 20_000;
const PUBLISHES_WITHIN: Duration = Duration::from_secs(10);
/// Looks whether the log is full still.
const LOOK: Duration = Duration::from_millis(50);

/// The way into the log, past all proxies.
#[derive(Debug)]
pub(super) struct Filler {
    log: jetstream::Context,
    random: Random,
}

impl Filler {
    pub(super) fn new(client: async_nats::Client) -> Self {
        Self { log: jetstream::new(client), random: Random::new(1) }
    }

    /// Fills until nothing is taken any more.
    pub(super) async fn fill_to_the_brim(&mut self) -> Result<()> {
        for size in SIZES {
            let mut records = 0;
            while self.put(size, AT_ONCE).await? {
                records += 1;
                ensure!(records < RECORDS_MAX, "the log is never full");
            }
        }
        Ok(())
    }

    /// Keeps it full for so long.
    pub(super) async fn keep_full(&mut self, lasts: Duration) -> Result<()> {
        let until = Instant::now() + lasts;
        while Instant::now() < until {
            self.put(SIZES[SIZES.len() - 1], 1).await?;
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until it takes records again; how long that took.
    pub(super) async fn until_taken(&mut self, within: Duration) -> Result<Duration> {
        let begun = Instant::now();
        while !self.put(SIZES[SIZES.len() - 1], 1).await? {
            ensure!(begun.elapsed() < within, "the log is full for {:?}", begun.elapsed());
            sleep(LOOK).await;
        }
        Ok(begun.elapsed())
    }

    /// Puts so many records in; `false` if one was refused.
    async fn put(&mut self, size: usize, count: usize) -> Result<bool> {
        let mut acks = JoinSet::new();
        for _ in 0..count {
            let session = SessionId::random();
            let subject = subjects::request(PartitionCount::DEFAULT.partition_of(session), session);
            let record = self.record(size);
            let ack = self.log.publish(subject, record).await?;
            acks.spawn(ack.into_future());
        }
        let mut taken = true;
        while let Some(ack) = acks.join_next().await {
            taken &= ack?.is_ok();
        }
        Ok(taken)
    }

    fn record(&mut self, size: usize) -> Bytes {
        let mut record = MARK.to_vec();
        while record.len() < size {
            record.extend(self.random.next().to_le_bytes());
        }
        record.into()
    }
}

/// A client of the log that does not wait for ever.
pub(super) async fn filler(connect: impl Future<Output = async_nats::Client>) -> Result<Filler> {
    Ok(Filler::new(timeout(PUBLISHES_WITHIN, connect).await.context("no connection to NATS")?))
}
