//! The log: one JetStream stream that holds every request until long after it was stored.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind, RequestError,
};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{self, ErrorCode};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::lifecycle::{Backoff, Stop, pause};
use crate::partition::{MAX_PARTITIONS, PartitionCount};
use crate::settings::Settings;
use crate::subjects;

/// Name of the stream unless a setting says otherwise.
pub const STREAM: &str = "CHAT";
/// Where NATS is asked for one record, below the prefix of the API, before the stream's name.
const MESSAGE_GET: &str = "STREAM.MSG.GET";
/// Of NATS, for a stream whose subjects another one has.
const SUBJECTS_OVERLAP: u64 = 10_065;
/// Most characters of a stream's name.
const STREAM_CHARS_MAX: usize = 64;
/// Largest record in bytes; the default `max_payload` of nats-server.
const MAX_RECORD_BYTES: i32 = 1_048_576;
/// Key of the stream's metadata that holds the partition count.
const PARTITIONS: &str = "partitions";
/// Most copies that JetStream keeps of a stream.
const MAX_REPLICAS: usize = 5;
/// Smallest log worth having in bytes.
const MIN_BYTES: i64 = 65_536;
/// Pauses between tries while NATS does not answer.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// No limit, in every limit of a stream's configuration.
const UNLIMITED: i64 = -1;

/// Name of a stream: letters, digits, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamName(Arc<str>);

impl StreamName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for StreamName {
    fn default() -> Self {
        Self(STREAM.into())
    }
}

impl FromStr for StreamName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let is_name = (1..=STREAM_CHARS_MAX).contains(&text.len()) && text.chars().all(is_plain);
        is_name.then(|| Self(text.into())).ok_or("must be 1 to 64 letters, digits, - and _")
    }
}

/// What an operator decides about the log.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// The stream's name; fixed once it exists.
    pub stream: StreamName,
    /// Partitions; fixed once the stream exists.
    pub partitions: PartitionCount,
    /// Most bytes the stream may take; at that size new records are refused.
    pub max_bytes: i64,
    /// Copies of the stream in a NATS cluster.
    pub replicas: usize,
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The stream was made with another partition count.
    #[error(
        "the log has {found} partitions and PARTITIONS says {wanted}: sessions would move between \
         partitions and lose their order. To change the count: stop the gateways, let the persisters \
         drain the log, delete the stream, start with the new count"
    )]
    PartitionCount {
        /// What the stream's metadata says.
        found: String,
        /// What the setting says.
        wanted: u16,
    },
    /// Somebody else's stream has the name.
    #[error(
        "NATS has a stream {name} that is not ours: {whose}. Set LOG_STREAM to a name that is free, for all gateways and \
         persisters"
    )]
    Foreign {
        /// The name of both.
        name: String,
        /// What it says of itself.
        whose: String,
    },
    /// Somebody else's stream takes what is meant for ours.
    #[error(
        "another stream of this NATS takes {}: {whose}. Give the chat, or that one, an account of its own in NATS",
        subjects::ALL_REQUESTS
    )]
    Taken {
        /// What it says of itself.
        whose: String,
    },
    /// The server stores something else than it was told to, or an older stream differs.
    #[error(
        "the log's setting {field} is {found} and must be {wanted}; nats-server 2.11 or newer is needed"
    )]
    Mismatch {
        /// Name of the field.
        field: &'static str,
        /// What the server has.
        found: String,
        /// What it must be.
        wanted: String,
    },
    /// NATS did not answer, has no JetStream, or refused.
    #[error("the log cannot be opened: {0}")]
    Nats(#[from] async_nats::Error),
}

/// Opens the stream, makes it where there is none, and checks that it is what we need.
///
/// A changed `max_bytes` or `replicas` is applied to an existing stream.
pub async fn open(jetstream: &jetstream::Context, settings: &LogSettings) -> Result<Log, LogError> {
    let wanted = config(settings);
    let mut stream = match jetstream.get_stream(settings.stream.as_str()).await {
        Ok(stream) => stream,
        Err(error) if is_not_found(&error) => create(jetstream, wanted.clone()).await?,
        Err(error) => return Err(LogError::Nats(error.into())),
    };
    ours(stream.cached_info())?;
    check(stream.cached_info(), &wanted)?;
    let found = &stream.cached_info().config;
    if (found.max_bytes, found.num_replicas) != (wanted.max_bytes, wanted.num_replicas) {
        jetstream.update_stream(wanted).await.map_err(async_nats::Error::from)?;
        stream.info().await.map_err(async_nats::Error::from)?;
    }
    Ok(Log::new(jetstream, stream))
}

async fn create(jetstream: &jetstream::Context, config: Config) -> Result<Stream, LogError> {
    match jetstream.create_stream(config).await {
        Ok(stream) => Ok(stream),
        Err(error) if is_overlap(&error) => Err(LogError::Taken { whose: taker(jetstream).await }),
        Err(error) => Err(LogError::Nats(error.into())),
    }
}

fn is_overlap(error: &CreateStreamError) -> bool {
    match error.kind() {
        CreateStreamErrorKind::JetStream(error) => error.error_code().0 == SUBJECTS_OVERLAP,
        _ => false,
    }
}

/// What the stream says of itself that takes our subjects.
async fn taker(jetstream: &jetstream::Context) -> String {
    let Ok(name) = jetstream.stream_by_subject(subjects::ALL_REQUESTS).await else {
        return "it does not say which".to_owned();
    };
    match jetstream.get_stream(&name).await {
        Ok(stream) => format!("{name}, {}", whose(stream.cached_info())),
        Err(_) => name,
    }
}

/// Whose a stream seems to be.
fn whose(info: &Info) -> String {
    let Config { subjects, description, .. } = &info.config;
    let description = description.as_deref().filter(|text| !text.is_empty());
    let says = description.map(|text| format!(" and is described as {text:?}")).unwrap_or_default();
    let made = info.created.date();
    let subjects = if subjects.is_empty() { "no subject".to_owned() } else { subjects.join(", ") };
    format!("it takes {subjects}{says}, made on {made}, with {} messages", info.state.messages)
}

/// Refuses a stream that nobody of ours made.
fn ours(info: &Info) -> Result<(), LogError> {
    if info.config.metadata.contains_key(PARTITIONS) {
        return Ok(());
    }
    Err(LogError::Foreign { name: info.config.name.clone(), whose: whose(info) })
}

fn is_not_found(error: &jetstream::context::GetStreamError) -> bool {
    match error.kind() {
        GetStreamErrorKind::JetStream(error) => error.error_code() == ErrorCode::STREAM_NOT_FOUND,
        _ => false,
    }
}

fn config(settings: &LogSettings) -> Config {
    let partitions = settings.partitions.get().to_string();
    Config {
        name: settings.stream.as_str().into(),
        description: Some("Requests of the support chat, kept after they were stored".into()),
        subjects: vec![subjects::ALL_REQUESTS.into()],
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        // A full log refuses what is new; it never drops what was acked.
        discard: DiscardPolicy::New,
        max_bytes: settings.max_bytes,
        max_messages: UNLIMITED,
        max_messages_per_subject: UNLIMITED,
        max_consumers: -1,
        max_message_size: MAX_RECORD_BYTES,
        // Zero is no limit: only the persister removes records, once they are stored.
        max_age: Duration::ZERO,
        num_replicas: settings.replicas,
        // What waits is counted without a consumer.
        allow_direct: true,
        metadata: HashMap::from([(PARTITIONS.into(), partitions)]),
        ..Config::default()
    }
}

fn check(info: &Info, wanted: &Config) -> Result<(), LogError> {
    let found = &info.config;
    let partitions = |config: &Config| config.metadata.get(PARTITIONS).cloned().unwrap_or_default();
    if partitions(found) != partitions(wanted) {
        return Err(LogError::PartitionCount {
            found: partitions(found),
            wanted: partitions(wanted).parse().unwrap_or_default(),
        });
    }
    same("subjects", &found.subjects, &wanted.subjects)?;
    same("storage", &found.storage, &wanted.storage)?;
    same("retention", &found.retention, &wanted.retention)?;
    same("discard", &found.discard, &wanted.discard)?;
    same("max_age", &found.max_age, &wanted.max_age)?;
    same("max_msgs", &found.max_messages, &wanted.max_messages)?;
    same(
        "max_msgs_per_subject",
        &found.max_messages_per_subject,
        &wanted.max_messages_per_subject,
    )?;
    same("allow_direct", &found.allow_direct, &wanted.allow_direct)
}

fn same<T: PartialEq + std::fmt::Debug>(
    field: &'static str,
    found: &T,
    wanted: &T,
) -> Result<(), LogError> {
    if found == wanted {
        return Ok(());
    }
    Err(LogError::Mismatch { field, found: format!("{found:?}"), wanted: format!("{wanted:?}") })
}

impl LogSettings {
    /// Reads the settings of the log.
    pub fn read(settings: &mut Settings) -> Self {
        let partitions = settings.number("PARTITIONS", 1..=MAX_PARTITIONS);
        Self {
            partitions: partitions.try_into().unwrap_or(PartitionCount::DEFAULT),
            stream: settings.get("LOG_STREAM"),
            max_bytes: settings.number("LOG_MAX_BYTES", MIN_BYTES..=i64::MAX),
            replicas: settings.number("LOG_REPLICAS", 1..=MAX_REPLICAS),
        }
    }
}

/// The stream as it is, and its partitions: for commands, which know no settings and change nothing.
pub async fn find(
    jetstream: &jetstream::Context,
    name: &StreamName,
) -> Result<(Log, PartitionCount), LogError> {
    let stream = jetstream.get_stream(name.as_str()).await;
    let stream = stream.map_err(|error| LogError::Nats(error.into()))?;
    ours(stream.cached_info())?;
    let partitions = stream.cached_info().config.metadata.get(PARTITIONS);
    let partitions = partitions.and_then(|count| count.parse::<u16>().ok()?.try_into().ok());
    let partitions = partitions.ok_or_else(|| LogError::Mismatch {
        field: "metadata",
        found: format!("{:?}", stream.cached_info().config.metadata),
        wanted: format!("a number of {PARTITIONS}"),
    })?;
    Ok((Log::new(jetstream, stream), partitions))
}

/// The log as it was opened.
#[derive(Debug, Clone)]
pub struct Log {
    jetstream: jetstream::Context,
    stream: Stream,
    /// Where NATS is asked for one record.
    message_get: Arc<str>,
}

/// A record as it stands in the log.
///
/// What was put beside it as headers is left out: nobody of ours puts any there, and the client library ends its
/// connection over headers that it cannot read (async-nats 0.51, `connection.rs`), as often as they come.
#[derive(Debug, Clone)]
pub struct StoredRecord {
    /// Its subject; what is not UTF-8 in it is replaced.
    pub subject: String,
    /// Its number in the log.
    pub sequence: u64,
    /// When NATS took it.
    pub time: OffsetDateTime,
    pub payload: Bytes,
    /// Whether something stands beside it that we do not read.
    pub has_headers: bool,
}

/// Which record is asked for (nats-server, `JSApiMsgGetRequest`).
#[derive(Serialize)]
#[serde(untagged)]
enum Wanted<'a> {
    At { seq: u64 },
    First { next_by_subj: &'a str, seq: u64 },
    Last { last_by_subj: &'a str },
}

/// The answer (nats-server, `JSApiMsgGetResponse`).
#[derive(Deserialize)]
struct Answer {
    message: AnsweredRecord,
}

#[derive(Deserialize)]
struct AnsweredRecord {
    subject: String,
    seq: u64,
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
    /// Left out where it is empty.
    #[serde(default)]
    data: String,
    hdrs: Option<String>,
}

/// Why a record cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// NATS did not answer.
    #[error("the log does not answer: {0}")]
    Request(#[from] RequestError),
    /// NATS answered with an error.
    #[error("the log gives no record: {0}")]
    Refused(#[from] jetstream::Error),
    /// NATS answered something else.
    #[error("the log gives no record: {0}")]
    Payload(#[from] base64::DecodeError),
}

impl Log {
    fn new(jetstream: &jetstream::Context, stream: Stream) -> Self {
        let message_get = format!("{MESSAGE_GET}.{}", stream.cached_info().config.name).into();
        Self { jetstream: jetstream.clone(), stream, message_get }
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The last record of a subject, which may have wildcards; `None` if there is none.
    pub async fn last_record(&self, subject: &str) -> Result<Option<StoredRecord>, RecordError> {
        self.get(&Wanted::Last { last_by_subj: subject }).await
    }

    /// The first record of a subject from a sequence on; `None` if there is none.
    pub async fn first_record(
        &self,
        subject: &str,
        from: u64,
    ) -> Result<Option<StoredRecord>, RecordError> {
        self.get(&Wanted::First { next_by_subj: subject, seq: from }).await
    }

    /// The record with this sequence; `None` if it is gone.
    pub async fn record(&self, sequence: u64) -> Result<Option<StoredRecord>, RecordError> {
        self.get(&Wanted::At { seq: sequence }).await
    }

    /// The last record of a subject before a sequence; `None` if there is none. NATS finds only what comes next:
    /// it is asked from further and further back, then between.
    pub async fn last_record_before(
        &self,
        subject: &str,
        sequence: u64,
    ) -> Result<Option<StoredRecord>, RecordError> {
        let before = async |from| {
            let next = self.first_record(subject, from).await?;
            Ok::<_, RecordError>(next.filter(|next| next.sequence < sequence))
        };
        let mut back = 1;
        let mut last = loop {
            let from = sequence.saturating_sub(back).max(1);
            if from >= sequence {
                return Ok(None);
            }
            if let Some(record) = before(from).await? {
                break record;
            }
            if from == 1 {
                return Ok(None);
            }
            back *= 2;
        };
        let (mut low, mut high) = (last.sequence + 1, sequence);
        while low < high {
            let middle = low + (high - low) / 2;
            match before(middle).await? {
                Some(record) => {
                    low = record.sequence + 1;
                    last = record;
                }
                None => high = middle,
            }
        }
        Ok(Some(last))
    }

    /// The server that leads the log answers, in JSON: a direct get may be answered by another one, which may not
    /// have the record yet, and it sends what stands beside the record as headers of its own.
    async fn get(&self, wanted: &Wanted<'_>) -> Result<Option<StoredRecord>, RecordError> {
        let answer: Response<Answer> =
            self.jetstream.request(self.message_get.to_string(), wanted).await?;
        let found = match answer {
            Response::Ok(answer) => answer.message,
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                return Ok(None);
            }
            Response::Err { error } => return Err(error.into()),
        };
        Ok(Some(StoredRecord {
            subject: found.subject,
            sequence: found.seq,
            time: found.time,
            payload: BASE64_STANDARD.decode(found.data)?.into(),
            has_headers: found.hdrs.is_some(),
        }))
    }
}

/// Opens the log as soon as NATS answers. `None` if the stop came first.
pub async fn open_until_done(
    jetstream: &jetstream::Context,
    settings: &LogSettings,
    stop: &Stop,
) -> Result<Option<Log>, LogError> {
    let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
    loop {
        match open(jetstream, settings).await {
            Ok(log) => return Ok(Some(log)),
            Err(LogError::Nats(error)) => tracing::warn!(%error, "the log cannot be opened yet"),
            Err(error) => return Err(error),
        }
        if !pause(stop, backoff.pause()).await {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::COMMON;

    #[test]
    fn a_name_goes_into_subjects_and_the_default_is_the_settings() {
        let setting = COMMON.iter().find(|setting| setting.name == "LOG_STREAM").unwrap();
        assert_eq!(setting.default.parse(), Ok(StreamName::default()));
        assert_eq!("Shop_chat-2".parse::<StreamName>().unwrap().as_str(), "Shop_chat-2");
        let long = "x".repeat(STREAM_CHARS_MAX + 1);
        for name in ["", "a.b", "a b", "*", ">", "ü", "a/b", &long] {
            assert!(name.parse::<StreamName>().is_err(), "{name}");
        }
    }
}
