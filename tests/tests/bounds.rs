//! Nothing grows without a bound, and nobody pays for what another client does.

use std::time::Duration;

use serde_json::json;
use tests::{Puppet, Stack, eventually};

const SOON: Duration = Duration::from_secs(10);
/// A client that does not read is cut off within this time.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(30);
/// What one misbehaving client may cost; a lane, a send buffer and the kernel's buffers.
const GROWTH_MAX_BYTES: u64 = 64 * 1024 * 1024;

#[tokio::test]
async fn two_hundred_thousand_events_of_one_socket_cost_bounded_memory_and_disturb_nobody() {
    let stack = Stack::start().await;
    let before = stack.gateway(0).resident_bytes();
    stack.node_test("flood.test.mjs", &[]).await;
    let grown = stack.gateway(0).resident_bytes().saturating_sub(before);
    assert!(grown < GROWTH_MAX_BYTES, "{grown} bytes more");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_within_30_seconds_and_resumes() {
    let stack = Stack::builder().gateway_env("RUST_LOG", "info,gateway=debug").start().await;
    let puppet = Puppet::start().await;
    let reader = puppet.client(&stack.url(""), &["websocket"]).await;
    let deaf = puppet.client(&stack.url(""), &["websocket"]).await;
    let session = reader.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    deaf.stay(Some(&session)).await;
    deaf.stop_reading().await;
    let content = "x".repeat(7_000);
    let start = tokio::time::Instant::now();
    let mut said = 0;
    // Either its buffer is full, or the kernel waited long enough for it to read.
    while !stack.gateway(0).logs().contains("client disconnected") {
        let payload = json!({ "sessionId": session, "content": content });
        let acks = reader.burst("user_message", vec![payload; 500]).await;
        assert!(acks.iter().all(|ack| ack["status"] == "accepted"), "its room waits");
        said += acks.len();
        assert!(start.elapsed() < CUT_OFF_WITHIN, "not cut off after {said} messages");
    }
    eventually(SOON, "the room has everything", async || reader.messages().await.len() == said)
        .await;
    deaf.go_on_reading().await;
    eventually(CUT_OFF_WITHIN, "it comes back", async || deaf.seen("connect").await.len() > 1)
        .await;
    assert_eq!(deaf.seen("disconnect").await[0], "transport close");
}
