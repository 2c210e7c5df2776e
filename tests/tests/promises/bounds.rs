//! Nothing grows without a bound, and nobody pays for what another client does.

use std::future::IntoFuture;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use shared::content::Content;
use shared::ids::{MessageId, SessionId};
use shared::message::Sender;
use shared::partition::PartitionCount;
use shared::record::{NewMessage, Record};
use shared::subjects;
use tests::{JsClients, Stack, eventually, is_taken};

const SOON: Duration = Duration::from_secs(10);
/// A client that does not read is cut off within this time.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(30);
/// What a flood of one client may cost: a lane, a send buffer and the kernel's buffers.
const GROWTH_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// What a client costs that does not read: a send buffer of 8,192 packets of 7 KB, in pieces of memory that
/// are larger, and some.
const UNREAD_MAX_BYTES: u64 = 96 * 1024 * 1024;
/// What the sends cost that wait in one socket's lane, and their answers: 3 to 21 MiB were seen, as the allocator has
/// it, and no more for five times as many sends.
const LANE_MAX_BYTES: u64 = 24 * 1024 * 1024;
/// What a persister holds of a backlog of 115 MiB: what NATS pushes ahead, and a batch in all its forms.
const BACKLOG_MAX_BYTES: u64 = 110 * 1024 * 1024;
/// 120 MB on a busy machine.
const DRAINS_WITHIN: Duration = Duration::from_mins(2);

#[tokio::test]
async fn two_hundred_thousand_events_of_one_socket_cost_bounded_memory_and_disturb_nobody() {
    let stack = Stack::builder().busy().start().await;
    let before = stack.gateway(0).resident_bytes();
    stack.node_test("flood.test.mjs", &[]).await;
    let grown = stack.gateway(0).resident_bytes().saturating_sub(before);
    bounded("a flood", grown, GROWTH_MAX_BYTES);
}

#[tokio::test]
async fn sends_that_wait_for_a_frozen_nats_cost_bounded_memory() {
    const SOCKETS: u64 = 2;
    const MUCH_MORE_THAN_A_LANE: usize = 20_000;
    let stack = Stack::builder().busy().start().await;
    let js_clients = JsClients::start().await;
    let mut clients = Vec::new();
    for _ in 0..SOCKETS {
        let client = js_clients.client(&stack.url(""), &["websocket"]).await;
        let session = client.stay(None).await["sessionId"].clone();
        clients.push((client, json!({ "sessionId": session, "content": "x".repeat(500) })));
    }
    let before = stack.gateway(0).resident_bytes();
    stack.nats().pause().await;
    let bursts = clients.iter().map(|(client, payload)| {
        client.burst("user_message", vec![payload.clone(); MUCH_MORE_THAN_A_LANE])
    });
    let answers = join_all(bursts).await;
    let grown = stack.gateway(0).resident_bytes().saturating_sub(before);
    stack.nats().resume().await;
    assert!(answers.iter().flatten().all(|answer| answer["error"].is_object()));
    bounded("two sockets with a full lane each", grown, SOCKETS * LANE_MAX_BYTES);
}

#[tokio::test]
async fn sends_beyond_what_may_wait_in_all_are_refused_before_those_that_wait_have_their_answer() {
    const SOCKETS: usize = 7;
    const OF_EACH: usize = 4_000;
    let stack = Stack::builder().busy().start().await;
    let js_clients = JsClients::start().await;
    let mut clients = Vec::new();
    for _ in 0..SOCKETS {
        let client = js_clients.client(&stack.url(""), &["websocket"]).await;
        let session = client.stay(None).await["sessionId"].clone();
        clients.push((client, json!({ "sessionId": session, "content": "hello" })));
    }
    stack.nats().pause().await;
    let bursts = clients
        .iter()
        .map(|(client, payload)| client.burst("user_message", vec![payload.clone(); OF_EACH]));
    let metrics = stack.gateway(0).ops_url("/metrics");
    let refused = eventually(SOON, "some are refused at once", async || {
        let metrics = reqwest::get(&metrics).await.expect("metrics").text().await;
        let metrics = metrics.expect("a text");
        let has =
            |code| metrics.contains(&format!(r#"chat_gateway_refused_total{{code="{code}"}}"#));
        assert!(has("overloaded") || !has("unavailable"), "those that wait have their answer");
        has("overloaded")
    });
    let (answers, ()) = futures_util::join!(join_all(bursts), refused);
    stack.nats().resume().await;
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    assert_eq!(answers.len(), SOCKETS * OF_EACH);
    assert!(answers.iter().all(|answer| answer["error"].is_object()));
}

#[tokio::test]
async fn a_gateway_keeps_no_more_than_it_is_told_of_what_is_said_while_postgres_is_away() {
    const ROUNDS: usize = 15;
    const AT_ONCE: usize = 1_000;
    /// An eighth of what is said.
    const GUARD_BYTES: u64 = 4 * 1024 * 1024;
    /// The guard, the ids that wait for Postgres, and what the allocator does not give back at once: two thirds
    /// of what is said.
    const KEPT_MAX_BYTES: u64 = GUARD_BYTES + 18 * 1024 * 1024;
    let builder = Stack::builder().busy().own_postgres();
    let stack = builder.gateway_env("GUARD_BYTES", &GUARD_BYTES.to_string()).start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].clone();
    let payload = json!({ "sessionId": session, "content": "x".repeat(2_000) });
    let say_many = async || {
        let acks = client.burst("user_message", vec![payload.clone(); AT_ONCE]).await;
        assert!(acks.iter().all(is_taken), "{:?}", acks.iter().find(|ack| !is_taken(ack)));
    };
    // What a burst costs by itself is no part of what is kept.
    say_many().await;
    let before = stack.gateway(0).resident_bytes();
    stack.postgres().stop().await;
    for _ in 0..ROUNDS {
        say_many().await;
    }
    let grown = stack.gateway(0).resident_bytes().saturating_sub(before);
    bounded("15,000 messages taken without Postgres", grown, KEPT_MAX_BYTES);
    stack.postgres().start().await;
    eventually(DRAINS_WITHIN, "all are delivered", async || {
        client.count("message").await == (1 + ROUNDS) * AT_ONCE
    })
    .await;
    let grown = stack.gateway(0).resident_bytes().saturating_sub(before);
    bounded("delivering them when it is back", grown, KEPT_MAX_BYTES);
}

#[tokio::test]
async fn a_backlog_costs_a_persister_bounded_memory_while_postgres_is_away_and_after() {
    const RECORDS: u64 = 15_000;
    const AT_ONCE: u64 = 500;
    let stack = Stack::builder().busy().own_postgres().start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let session = SessionId::parse(&session).unwrap();
    let subject = subjects::request(PartitionCount::DEFAULT.partition_of(session), session);
    let log = async_nats::jetstream::new(stack.nats_client().await);
    let before = stack.persister(0).resident_bytes();
    stack.postgres().pause().await;
    for _ in 0..RECORDS / AT_ONCE {
        let mut acks = Vec::new();
        for _ in 0..AT_ONCE {
            let message = NewMessage {
                id: MessageId::random(),
                sender: Sender::User,
                content: Content::parse("x".repeat(8_000), 8_000).unwrap(),
                is_ai: false,
            };
            let record = Record::Message(message).encode().unwrap();
            acks.push(log.publish(subject.clone(), record.into()).await.unwrap().into_future());
        }
        assert!(join_all(acks).await.iter().all(Result::is_ok));
    }
    let away = stack.persister(0).resident_bytes().saturating_sub(before);
    bounded("a backlog while Postgres is away", away, BACKLOG_MAX_BYTES);
    stack.postgres().resume().await;
    let pool = stack.pool();
    let stored = async || {
        let count = sqlx::query_scalar::<_, i64>(r#"SELECT count(*) FROM "Message""#);
        count.fetch_one(&pool).await.is_ok_and(|count| count.unsigned_abs() == RECORDS)
    };
    eventually(DRAINS_WITHIN, "the backlog is stored", stored).await;
    let after = stack.persister(0).resident_bytes().saturating_sub(before);
    bounded("a backlog that was stored", after, BACKLOG_MAX_BYTES);
}

/// Says the figure too: `cargo test bounds:: -- --nocapture` shows what each bound costs.
fn bounded(what: &str, grown: u64, most: u64) {
    println!("{what}: {} KiB more", grown / 1024);
    assert!(grown < most, "{what}: {grown} bytes more");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_within_30_seconds_and_resumes() {
    let stack = Stack::builder().busy().gateway_env("RUST_LOG", "info,gateway=debug").start().await;
    let js_clients = JsClients::start().await;
    let reader = js_clients.client(&stack.url(""), &["websocket"]).await;
    let deaf = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = reader.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    deaf.stay(Some(&session)).await;
    deaf.stop_reading().await;
    let content = "x".repeat(7_000);
    let before = stack.gateway(0).resident_bytes();
    let mut most = before;
    let start = tokio::time::Instant::now();
    let mut said = 0;
    // Either its buffer is full, or the kernel waited long enough for it to read.
    while !stack.gateway(0).logs().contains("client disconnected") {
        let payload = json!({ "sessionId": session, "content": content });
        let acks = reader.burst("user_message", vec![payload; 500]).await;
        assert!(acks.iter().all(is_taken), "its room waits");
        said += acks.len();
        most = stack.gateway(0).resident_bytes().max(most);
        assert!(start.elapsed() < CUT_OFF_WITHIN, "not cut off after {said} messages");
    }
    bounded("a client that does not read", most - before, UNREAD_MAX_BYTES);
    eventually(SOON, "the room has everything", async || reader.count("message").await == said)
        .await;
    deaf.go_on_reading().await;
    eventually(CUT_OFF_WITHIN, "it comes back", async || deaf.count("connect").await > 1).await;
    assert_eq!(deaf.seen("disconnect").await[0], "transport close");
}
