//! Reads the log in order, from the offsets on.
//!
//! One ordered consumer reads the whole log; records of other workers' partitions are passed over. The
//! server finds the next record of everything at once, and that of several filters only by looking through
//! the subjects of a block, which takes longer than storing it (nats-server, `firstMatchingMulti` in
//! `filestore.go`). The consumer is made anew from the committed offsets at every reconnect and error,
//! so a record is never waited for and never skipped.

use std::collections::{BTreeMap, HashMap};

use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::stream::Stream;
use futures_util::{FutureExt, StreamExt, future::try_join_all};
use shared::partition::Partition;
use shared::subjects;

use crate::batch::{Place, Record};
use crate::verify::StreamState;

/// Most records in a batch: rows cost least from 100 on, and a larger batch only makes the first
/// message of it wait.
const BATCH_RECORDS_MAX: usize = 500;
/// Most bytes in a batch: bounds the memory of a batch of long messages.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most records looked at for one batch: where nearly all are another worker's, leases and stop have their
/// turn all the same.
const LOOKED_AT_MAX: usize = 4_096;

/// Records of some partitions, each once, those of a partition in order.
pub struct LogReader {
    messages: push::Ordered,
    /// Where each partition is read up to.
    read: HashMap<Partition, u64>,
}

impl LogReader {
    /// Reads each of these partitions after its sequence. `stream` must be older than these offsets.
    pub async fn open(
        log: &Stream,
        client: &async_nats::Client,
        stream: &StreamState,
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
        let partition = partition_of(subject).ok_or("the log's consumer sent a foreign subject")?;
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

/// The partition of a subject whose session need not be valid: such a record is set aside later.
fn partition_of(subject: &str) -> Option<Partition> {
    subject.split('.').nth(2)?.parse().ok().map(Partition::new)
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
