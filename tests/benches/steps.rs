//! `cargo bench -p tests`: the steps of a message's way that are ours, one thread, no network.

#![expect(clippy::unwrap_used, reason = "what is measured is valid")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gateway::delivery::heard;
use gateway::fields::{Field, Fields, Kind};
use gateway::socket::payload::RawEvent;
use persister::batch::{self, LogPlace, LogRecord};
use serde::Deserialize;
use shared::announcement::{Announcement, Entry, Epoch, Fate, Stretch};
use shared::content::Content;
use shared::ids::{MessageId, SessionId};
use shared::message::{Message, Sender};
use shared::partition::Partition;
use shared::record::{NewMessage, Record};
use shared::subjects;
use shared::timestamp::Timestamp;
use socketioxide_core::Value;

/// Where a batch costs Postgres least.
const BATCH: usize = 100;
const CHAT: &str = "cm4abc123000000000000000a";
const ID: &str = "cm4xyz789000000000000000a";

/// What a send carries, as the gateway reads it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    session_id: String,
    content: String,
}

impl Fields for Payload {
    const FIELDS: &'static [Field] =
        &[Field::required("sessionId", Kind::Text), Field::required("content", Kind::Text)];
}

fn content() -> String {
    "x".repeat(100)
}

fn message(content: &str) -> Message<'_> {
    Message {
        id: ID,
        sender: Sender::User.as_str(),
        content,
        created_at: Timestamp::truncate(time::OffsetDateTime::UNIX_EPOCH),
        is_ai: false,
        chat_session_id: CHAT,
    }
}

/// From the text of a packet to the bytes of a record.
fn send(criterion: &mut Criterion) {
    let session = SessionId::random();
    let packet =
        format!(r#"["user_message",{{"sessionId":"{session}","content":"{}"}}]"#, content());
    let event = RawEvent::new(Value::Str(packet.into(), None), true);
    criterion.bench_function("parse, validate and encode a send", |bencher| {
        bencher.iter(|| {
            let name = black_box(&event).name();
            let payload: Payload = event.object().unwrap().unwrap();
            let session = SessionId::parse(&payload.session_id).unwrap();
            let content = Content::parse(payload.content, 8_000).unwrap();
            let id = MessageId::random();
            let request =
                Record::Message(NewMessage { id, sender: Sender::User, content, is_ai: false });
            (name, subjects::request(Partition::FIRST, session), request.encode().unwrap())
        });
    });
}

/// From the records of the log to the rows of a statement.
fn prepare(criterion: &mut Criterion) {
    let record = |sequence| {
        let content = Content::parse(content(), 8_000).unwrap();
        let new =
            NewMessage { id: MessageId::random(), sender: Sender::User, content, is_ai: false };
        let recorded_at = time::OffsetDateTime::UNIX_EPOCH;
        LogRecord {
            place: LogPlace { partition: Partition::FIRST, sequence, recorded_at },
            subject: subjects::request(Partition::FIRST, SessionId::random()),
            payload: Record::Message(new).encode().unwrap().into(),
        }
    };
    let records: Vec<_> = (1..=BATCH as u64).map(record).collect();
    let mut group = criterion.benchmark_group("persister");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("prepare a batch of 100", |bencher| {
        bencher.iter(|| batch::prepare(black_box(&records)));
    });
    group.finish();
}

/// From an announcement to what is emitted.
fn forward(criterion: &mut Criterion) {
    let content = content();
    let (session, at) = (SessionId::random(), time::OffsetDateTime::UNIX_EPOCH);
    let entry = |sequence| {
        Entry::new(sequence, session, at, Fate::Stored).of_message(ID, Some(message(&content)))
    };
    let stretch = Stretch {
        partition: Partition::FIRST,
        epoch: Epoch::random().unwrap(),
        previous: 0,
        sequence: BATCH as u64,
        entries: (1..=BATCH as u64).map(entry).collect(),
    };
    let payload = serde_json::to_vec(&Announcement { partitions: vec![stretch] }).unwrap();
    let mut group = criterion.benchmark_group("gateway");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("read an announcement of 100 messages", |bencher| {
        bencher.iter(|| heard::read(black_box(&payload)).unwrap());
    });
    group.finish();
}

/// From a row to its JSON.
fn encode(criterion: &mut Criterion) {
    let content = content();
    let mut json = Vec::with_capacity(4_096);
    criterion.bench_function("encode a message of a history", |bencher| {
        bencher.iter(|| {
            json.clear();
            serde_json::to_writer(&mut json, black_box(&message(&content))).unwrap();
            json.len()
        });
    });
}

criterion_group!(steps, send, prepare, forward, encode);
criterion_main!(steps);
