//! Reads the log in order, from the offsets on.
//!
//! One ordered consumer reads the whole log; records of other workers' partitions are passed over. The
//! server finds the next record of everything at once, and that of several filters only by looking through
//! the subjects of a block, which takes longer than storing it (nats-server, `firstMatchingMulti` in
//! `filestore.go`). The consumer is made anew from the committed offsets at every reconnect and error,
//! so a record is never waited for and never skipped.
//!
//! A record may itself be what ended the connection: the client library cannot read any headers or subject that
//! NATS takes, and would end it again each time the record comes. After each reconnect the first records are
//! therefore asked for one by one, which reads everything, before a consumer sends those that follow.
//!
//! Of a cluster the consumer lives on any server with a copy. One that came back with another end of the log than
//! the others have may be given theirs late, or never, and meanwhile gives its own as if it were the log
//! (nats-server 2.15.1, two of three servers that had lost their newest records). What is given is therefore
//! compared with what the leading server has, before it is stored.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, push};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::try_join_all};
use shared::log::Log;
use shared::partition::{Partition, PartitionCount};
use shared::subjects;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::batch::{LogPlace, LogRecord};
use crate::log_identity::StreamState;
use crate::metrics::METRICS;

/// Most records in a batch: rows cost least from 100 on, and a larger batch only makes the first
/// message of it wait.
const BATCH_RECORDS_MAX: usize = 500;
/// Most bytes of a batch, beyond its last record. Postgres must have stored it long before the bound of a statement, also
/// where it makes an index of words that somebody chose to be as many as they can be.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Most records looked at for one batch: where nearly all are another worker's, leases and stop have their
/// turn all the same.
const LOOKED_AT_MAX: usize = 4_096;
/// Most records that are asked for one by one after a reconnect. A tenth of a second's work; and several
/// records that end the connection cost a reconnect for so many, not one each.
const ONE_BY_ONE_MAX: usize = BATCH_RECORDS_MAX;
/// Pause between two log lines about foreign records, however many there are.
const FOREIGN_TOLD_INTERVAL: Duration = Duration::from_mins(1);

/// Records of some partitions, each once, those of a partition in order.
pub struct LogReader {
    log: Log,
    source: Source,
    /// Where each partition is read up to.
    read: HashMap<Partition, u64>,
    partitions: PartitionCount,
    foreign: Foreign,
}

/// Where records come from.
enum Source {
    /// These were asked for one by one; a consumer gives what stands from the next sequence on.
    Ahead { records: Vec<LogRecord>, next: u64, inbox: String },
    /// They are sent as they come.
    Consumer(Box<push::Ordered>),
}

impl LogReader {
    /// Reads each of these partitions after its sequence. `stream` must be older than these offsets.
    /// `one_by_one` after a reconnect: a record may be what ended the connection.
    pub async fn open(
        log: &Log,
        client: &async_nats::Client,
        stream: &StreamState,
        partitions: PartitionCount,
        offsets: &BTreeMap<Partition, u64>,
        one_by_one: bool,
    ) -> Result<Self, async_nats::Error> {
        let read = offsets.iter().map(|(partition, sequence)| (*partition, *sequence)).collect();
        let start = start(log, stream, offsets).await?;
        let source = Source::Ahead { records: Vec::new(), next: start, inbox: client.new_inbox() };
        let foreign = Foreign::default();
        let mut reader = Self { log: log.clone(), source, partitions, read, foreign };
        if one_by_one {
            reader.read_ahead().await?;
        }
        Ok(reader)
    }

    /// Asks for the first records one by one.
    async fn read_ahead(&mut self) -> Result<(), async_nats::Error> {
        let Source::Ahead { next: start, inbox, .. } = &self.source else { return Ok(()) };
        let (inbox, mut next) = (inbox.clone(), *start);
        let (mut records, mut bytes) = (Vec::new(), 0);
        for _ in 0..ONE_BY_ONE_MAX {
            if bytes >= BATCH_BYTES_MAX {
                break;
            }
            let found = self.log.first_record(subjects::ALL_REQUESTS, next).await?;
            let Some(found) = found else { break };
            next = found.sequence + 1;
            let at = || Ok((found.sequence, found.time));
            bytes += self.read(&found.subject, &found.payload, at, &mut records)?;
        }
        self.source = Source::Ahead { records, next, inbox };
        Ok(())
    }

    /// The log that it reads.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits for a record and takes with it what else is there; never waits to fill up.
    pub async fn next_batch(&mut self) -> Result<Vec<LogRecord>, async_nats::Error> {
        if let Source::Ahead { records, .. } = &mut self.source
            && !records.is_empty()
        {
            return Ok(std::mem::take(records));
        }
        let mut records = Vec::new();
        let mut bytes = 0;
        let message = self.consumer().await?.next().await.ok_or("the log's consumer ended")??;
        bytes += self.take_sent(&message, &mut records)?;
        // The runtime's budget would end this after 128 records.
        let ready = tokio::task::unconstrained(async {
            for _ in 1..LOOKED_AT_MAX {
                if records.len() == BATCH_RECORDS_MAX || bytes >= BATCH_BYTES_MAX {
                    break;
                }
                let Some(message) = self.consumer().await?.next().now_or_never() else { break };
                let message = message.ok_or("the log's consumer ended")??;
                bytes += self.take_sent(&message, &mut records)?;
            }
            Ok::<_, async_nats::Error>(())
        });
        ready.await?;
        Ok(records)
    }

    /// The consumer, made when it is needed first.
    async fn consumer(&mut self) -> Result<&mut push::Ordered, async_nats::Error> {
        if let Source::Ahead { next, inbox, .. } = &self.source {
            let config = push::OrderedConfig {
                deliver_subject: inbox.clone(),
                filter_subject: subjects::ALL_REQUESTS.to_owned(),
                deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: *next },
                ..push::OrderedConfig::default()
            };
            let consumer = self.log.stream().create_consumer(config).await?.messages().await?;
            self.source = Source::Consumer(Box::new(consumer));
        }
        match &mut self.source {
            Source::Consumer(consumer) => Ok(consumer),
            Source::Ahead { .. } => Err("the log has no consumer".into()),
        }
    }

    fn take_sent(
        &mut self,
        message: &async_nats::jetstream::Message,
        records: &mut Vec<LogRecord>,
    ) -> Result<usize, async_nats::Error> {
        let at = || message.info().map(|info| (info.stream_sequence, info.published));
        self.read(&message.subject, &message.payload, at, records)
    }

    /// Adds a record unless it is another worker's or was read before; returns its bytes. Where it stands is
    /// looked at only if it may be wanted.
    fn read(
        &mut self,
        subject: &str,
        payload: &Bytes,
        at: impl FnOnce() -> Result<(u64, OffsetDateTime), async_nats::Error>,
        records: &mut Vec<LogRecord>,
    ) -> Result<usize, async_nats::Error> {
        let partition = subjects::partition_of(subject).filter(|one| self.partitions.has(*one));
        let Some(partition) = partition else {
            let (sequence, _) = at()?;
            // Every worker comes by: one is enough to tell.
            if self.read.get(&Partition::FIRST).is_some_and(|read| sequence > *read) {
                self.foreign.pass_over(sequence);
            }
            return Ok(0);
        };
        let Some(read) = self.read.get_mut(&partition) else { return Ok(0) };
        let (sequence, recorded_at) = at()?;
        if sequence <= *read {
            return Ok(0);
        }
        *read = sequence;
        let place = LogPlace { partition, sequence, recorded_at };
        records.push(LogRecord { place, subject: subject.to_owned(), payload: payload.clone() });
        Ok(payload.len())
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

/// An error if a consumer gave what the leading server does not have. Within a batch it does not change over to
/// another log and back.
pub async fn confirm(log: &Log, records: &[LogRecord]) -> Result<(), async_nats::Error> {
    if log.stream().cached_info().config.num_replicas == 1 {
        return Ok(());
    }
    let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(()) };
    confirm_one(log, &last.place).await?;
    if first.place.sequence == last.place.sequence {
        return Ok(());
    }
    confirm_one(log, &first.place).await
}

async fn confirm_one(log: &Log, place: &LogPlace) -> Result<(), async_nats::Error> {
    let stands = match log.record(place.sequence).await? {
        Some(record) => record.time == place.recorded_at,
        // It may have been erased; but nothing stands behind the end.
        None => log.stream().get_info().await?.state.last_sequence >= place.sequence,
    };
    stands.then_some(()).ok_or_else(|| {
        let sequence = place.sequence;
        format!("a server gives another record {sequence} than the one that leads the log").into()
    })
}

/// The lowest sequence that any partition has not stored yet. A partition in which nothing is
/// pending does not count, however old its offset.
async fn start(
    log: &Log,
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
pub async fn last_sequence(log: &Log, partition: Partition) -> Result<u64, async_nats::Error> {
    let last = log.last_record(&subjects::requests_of(partition)).await?;
    Ok(last.map_or(0, |last| last.sequence))
}
