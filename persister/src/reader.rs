//! Reads the log in order, from the offsets on.
//!
//! One ordered consumer reads the whole log; records of other workers' partitions are passed over. The
//! server finds the next record of everything at once, and that of several filters only by looking through
//! the subjects of a block, which takes longer than storing it (nats-server, `firstMatchingMulti` in
//! `filestore.go`). The consumer is made anew from the committed offsets at every reconnect and error,
//! so a record is never waited for and never skipped.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::stream::Stream;
use futures_util::{FutureExt, StreamExt, future::try_join_all};
use shared::partition::{Partition, PartitionCount};
use shared::subjects;
use tokio::time::Instant;

use crate::batch::{Place, Record};
use crate::metrics::METRICS;
use crate::verify::StreamState;

/// Most records in a batch: rows cost least from 100 on, and a larger batch only makes the first
/// message of it wait.
const BATCH_RECORDS_MAX: usize = 500;
/// Most bytes in a batch: bounds the memory of a batch of long messages.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most records looked at for one batch: where nearly all are another worker's, leases and stop have their
/// turn all the same.
const LOOKED_AT_MAX: usize = 4_096;
/// Pause between two log lines about foreign records, however many there are.
const FOREIGN_TOLD_INTERVAL: Duration = Duration::from_mins(1);

/// Records of some partitions, each once, those of a partition in order.
pub struct LogReader {
    messages: push::Ordered,
    /// Where each partition is read up to.
    read: HashMap<Partition, u64>,
    partitions: PartitionCount,
    foreign: Foreign,
}

impl LogReader {
    /// Reads each of these partitions after its sequence. `stream` must be older than these offsets.
    pub async fn open(
        log: &Stream,
        client: &async_nats::Client,
        stream: &StreamState,
        partitions: PartitionCount,
        offsets: &BTreeMap<Partition, u64>,
    ) -> Result<Self, async_nats::Error> {
        let config = push::OrderedConfig {
            deliver_subject: client.new_inbox(),
            filter_subject: subjects::ALL_REQUESTS.to_owned(),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: start(log, stream, offsets).await?,
            },
            ..push::OrderedConfig::default()
        };
        let messages = log.create_consumer(config).await?.messages().await?;
        Ok(Self {
            messages,
            partitions,
            foreign: Foreign::default(),
            read: offsets.iter().map(|(partition, sequence)| (*partition, *sequence)).collect(),
        })
    }

    /// Waits for a record and takes with it what else is there; never waits to fill up.
    pub async fn next_batch(&mut self) -> Result<Vec<Record>, async_nats::Error> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let message = self.messages.next().await.ok_or("the log's consumer ended")??;
        bytes += self.take(&message, &mut records)?;
        // The runtime's budget would end this after 128 records.
        let ready = tokio::task::unconstrained(async {
            for _ in 1..LOOKED_AT_MAX {
                if records.len() == BATCH_RECORDS_MAX || bytes >= BATCH_BYTES_MAX {
                    break;
                }
                let Some(message) = self.messages.next().now_or_never() else { break };
                bytes += self.take(&message.ok_or("the log's consumer ended")??, &mut records)?;
            }
            Ok::<_, async_nats::Error>(())
        });
        ready.await?;
        Ok(records)
    }

    /// Adds a record unless it is another worker's or was read before; returns its bytes.
    fn take(
        &mut self,
        message: &async_nats::jetstream::Message,
        records: &mut Vec<Record>,
    ) -> Result<usize, async_nats::Error> {
        let subject = message.subject.as_str();
        let partition = subjects::partition_of(subject).filter(|one| self.partitions.has(*one));
        let Some(partition) = partition else {
            let sequence = message.info()?.stream_sequence;
            // Every worker comes by: one is enough to tell.
            if self.read.get(&Partition::FIRST).is_some_and(|read| sequence > *read) {
                self.foreign.pass_over(sequence);
            }
            return Ok(0);
        };
        let Some(read) = self.read.get_mut(&partition) else { return Ok(0) };
        let info = message.info()?;
        let (sequence, recorded_at) = (info.stream_sequence, info.published);
        if sequence <= *read {
            return Ok(0);
        }
        *read = sequence;
        let place = Place { partition, sequence, recorded_at };
        let payload = message.payload.clone();
        let bytes = payload.len();
        records.push(Record { place, subject: subject.to_owned(), payload });
        Ok(bytes)
    }
}

/// Records on subjects of no partition: no offset counts them, so that they cannot be set aside either.
#[derive(Default)]
struct Foreign {
    /// When it was told last, and how many there were since.
    told: Option<Instant>,
    untold: u64,
}

impl Foreign {
    /// Counts it, and tells of it now and then.
    fn pass_over(&mut self, sequence: u64) {
        METRICS.records_foreign.inc();
        self.untold += 1;
        if self.told.is_none_or(|told| told.elapsed() >= FOREIGN_TOLD_INTERVAL) {
            tracing::warn!(
                sequence,
                records = self.untold,
                "the log holds records on subjects of no partition; they are passed over"
            );
            *self = Self { told: Some(Instant::now()), untold: 0 };
        }
    }
}

/// The lowest sequence that any partition has not stored yet. A partition in which nothing is
/// pending does not count, however old its offset.
async fn start(
    log: &Stream,
    stream: &StreamState,
    offsets: &BTreeMap<Partition, u64>,
) -> Result<u64, async_nats::Error> {
    let pending = offsets.iter().map(|(partition, stored)| async move {
        let last = last_sequence(log, *partition).await?;
        Ok::<_, async_nats::Error>((last > *stored).then_some(stored + 1))
    });
    let pending = try_join_all(pending).await?;
    // What comes after the look at the stream lies above its last sequence.
    let after_all = stream.state.last_sequence + 1;
    Ok(pending.into_iter().flatten().min().unwrap_or(after_all).max(1))
}

/// Sequence of a partition's last record; 0 if it holds none. It is the leading server's answer: what looked
/// as if it were not there would be skipped.
pub async fn last_sequence(log: &Stream, partition: Partition) -> Result<u64, async_nats::Error> {
    let last = shared::log::last_record(log, &subjects::requests_of(partition)).await?;
    Ok(last.map_or(0, |last| last.sequence))
}
