//! Every metric of the persister. Names begin with `chat_persister_`; those of counters end in
//! `_total`.

use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use shared::metrics::{Catalogue, Connections, Labelled};
use shared::partition::Partition;

/// The metrics of this process.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Upper bounds of batches in records: a batch has at most 500.
const BATCH_RECORDS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0];

/// What the persister counts and measures.
pub struct Metrics {
    catalogue: Catalogue,
    /// Stage 2, stored: its count is the rate. Stages 1 and 3 are the gateway's.
    pub store_seconds: Histogram,
    pub commit_seconds: Histogram,
    /// Records of a batch.
    pub batch_records: Histogram,
    /// Statements that failed, whatever came of the batch.
    pub commit_failures: Counter,
    /// Batches of which another worker stored some partition.
    pub fenced: Counter,
    /// Messages that were new.
    pub messages_stored: Counter,
    /// Sessions that were new.
    pub sessions_stored: Counter,
    /// Sessions that were opened by a message.
    pub sessions_reopened: Counter,
    /// Erasures that were done.
    pub sessions_erased: Counter,
    /// Of them, those in which nothing happened for long.
    pub sessions_pruned: Counter,
    /// Changes of sessions that were decided.
    pub changes_decided: Counter,
    /// Messages of an AI behind where it was switched off.
    pub ai_messages_refused: Counter,
    /// Records of sessions that were erased before.
    pub records_refused: Counter,
    /// Records of no partition.
    pub records_foreign: Counter,
    /// Records that were stored before.
    pub duplicates: Counter,
    pub dead_letters_added: Counter,
    /// Records that are set aside now.
    pub dead_letters: Gauge,
    /// Announcements that NATS did not take.
    pub announce_failures: Counter,
    /// Times that the log was read anew.
    pub terms: Counter,
    /// Partitions of the log.
    pub partitions: Gauge,
    /// Partitions of this worker.
    pub partitions_owned: Gauge,
    lag_records: Labelled<Gauge>,
    lag_seconds: Labelled<Gauge<f64, std::sync::atomic::AtomicU64>>,
    /// Bytes of the log.
    pub log_bytes: Gauge,
    /// Most bytes of the log.
    pub log_bytes_max: Gauge,
    /// Records removed after they were stored.
    pub log_records_trimmed: Counter,
    /// Records removed because their session was erased.
    pub log_records_cleared: Counter,
    /// Erased sessions of which the log may still hold something.
    pub erased_in_log: Gauge,
    /// Partitions whose log was another one.
    pub log_replaced: Counter,
    /// Stretches that were gone before they were stored.
    pub log_gaps: Counter,
    /// Whether records wait and nothing is stored.
    pub stalled: Gauge,
    /// Whether Postgres writes to the disk what it commits.
    pub postgres_fsync: Gauge,
    pub connections: Connections,
}

impl Metrics {
    fn new() -> Self {
        let mut all = Catalogue::new("chat_persister", env!("CARGO_PKG_VERSION"));
        Self {
            store_seconds: all.latencies(
                "store_seconds",
                "From the log's timestamp of a record to the commit that stored it",
            ),
            commit_seconds: all
                .latencies("commit_seconds", "From sending a batch to Postgres to its answer"),
            batch_records: all.histogram("batch_records", "Records per batch", &BATCH_RECORDS),
            commit_failures: all.add(
                "commit_failures",
                "Statements that failed; the batch is tried again, or record by record",
            ),
            fenced: all.add("fenced", "Batches dropped because another persister was faster"),
            messages_stored: all.add("messages_stored", "Messages that were stored"),
            sessions_stored: all.add("sessions_stored", "Sessions that were stored"),
            sessions_reopened: all.add(
                "sessions_reopened",
                "Sessions that a message opened, since the record that should have is lost",
            ),
            sessions_erased: all.add("sessions_erased", "Sessions that were erased"),
            sessions_pruned: all.add(
                "sessions_pruned",
                "Sessions that this persister erased because nothing happened in them for RETENTION",
            ),
            changes_decided: all.add(
                "changes_decided",
                "Changes of sessions that were decided: claims, statuses, switches of the AI",
            ),
            ai_messages_refused: all.add(
                "ai_messages_refused",
                "Messages of an AI that stand behind where an agent switched it off, and were not stored",
            ),
            records_refused: all.add(
                "records_refused",
                "Records of erased sessions that came behind the erasure and were not stored",
            ),
            records_foreign: all.add(
                "records_foreign",
                "Records on subjects of no partition, which are passed over",
            ),
            duplicates: all.add("duplicates", "Records that were stored already"),
            dead_letters_added: all
                .add("dead_letters_added", "Records that were set aside as dead letters"),
            dead_letters: all
                .add("dead_letters", "Dead letters in the database, of all persisters"),
            announce_failures: all.add(
                "announce_failures",
                "Announcements that NATS did not take; gateways find their messages by themselves",
            ),
            terms: all.add("terms", "Times that the log was read anew from the committed offsets"),
            partitions: all.add("partitions", "Partitions of the log"),
            partitions_owned: all.add("partitions_owned", "Partitions that this persister stores"),
            lag_records: all.add(
                "log_lag_records",
                "Records of an owned partition that are in the log and not stored yet",
            ),
            lag_seconds: all.add(
                "log_lag_seconds",
                "Age of the oldest record of an owned partition that is not stored yet; 0 without any",
            ),
            log_bytes: all.add("log_bytes", "Bytes of the log"),
            log_bytes_max: all.add("log_bytes_max", "Most bytes of the log; then sends are refused"),
            log_records_trimmed: all
                .add("log_records_trimmed", "Stored records that were removed from the log"),
            log_records_cleared: all
                .add("log_records_cleared", "Records of erased sessions that were removed from the log"),
            erased_in_log: all.add(
                "erased_in_log",
                "Erased sessions of which the log may still hold more than the record that erased them",
            ),
            log_replaced: all.add(
                "log_replaced",
                "Partitions whose log turned out to be another one: wiped, or without its tail",
            ),
            log_gaps: all.add(
                "log_gaps",
                "Stretches of a partition that were gone from the log before they were stored",
            ),
            stalled: all.add(
                "stalled",
                "Whether records wait and nothing was stored for 10 s; /ready answers 503 then",
            ),
            postgres_fsync: all.add(
                "postgres_fsync",
                "Whether Postgres runs with fsync = on; without it a power cut loses what was stored",
            ),
            connections: Connections::new(&mut all),
            catalogue: all,
        }
    }

    /// How far behind an owned partition is.
    pub fn set_lag(&self, partition: Partition, records: u64, seconds: f64) {
        let label = [("partition", partition.to_string().into())];
        let records = i64::try_from(records).unwrap_or(i64::MAX);
        self.lag_records.get_or_create(&label).set(records);
        self.lag_seconds.get_or_create(&label).set(seconds);
    }

    /// A partition is somebody else's now.
    pub fn forget_lag(&self, partition: Partition) {
        let label = [("partition", partition.to_string().into())];
        self.lag_records.remove(&label);
        self.lag_seconds.remove(&label);
    }

    /// All of them in Prometheus' text format.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        self.catalogue.text()
    }
}
