//! What somebody else puts into the log says nothing about who may be talked to.

use std::time::Duration;

use async_nats::jetstream::Context;
use serde_json::{Value, json};
use shared::ids::SessionId;
use shared::partition::PartitionCount;
use shared::record::Record;
use shared::subjects;
use tests::{Client, JsClients, Stack, eventually, is_taken};

const SOON: Duration = Duration::from_secs(20);
/// More than a gateway looks at.
const TOO_MANY: usize = 300;

async fn log(stack: &Stack) -> Context {
    async_nats::jetstream::new(stack.nats_client().await)
}

/// Puts a record on a session's subject.
async fn put(log: &Context, session: &str, record: String) {
    let session = SessionId::parse(session).unwrap();
    let subject = subjects::request(PartitionCount::DEFAULT.partition_of(session), session);
    log.publish(subject, record.into()).await.unwrap().await.unwrap();
}

/// What no persister can read, each in its own way.
fn unreadable() -> Vec<String> {
    let (_, erase_another) = Record::erase(&SessionId::random().to_string());
    let erase_another = String::from_utf8(erase_another.encode().unwrap()).unwrap();
    let cut_off = r#"{"message":{"id":"cm4xyz789000000000000000a","sender":"user","#.to_owned();
    vec!["garbage".into(), String::new(), "{}".into(), erase_another, cut_off]
}

async fn say(client: &Client, session: &str) -> Value {
    client.ask("user_message", json!({ "sessionId": session, "content": "Hello!" })).await
}

/// A gateway that remembers nothing of before.
async fn is_started_anew(stack: &Stack, gateway: usize) {
    stack.gateway(gateway).kill();
    stack.gateway(gateway).start().await;
}

#[tokio::test]
async fn a_record_that_cannot_be_read_brings_no_session_to_life() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let log = log(&stack).await;
    for record in unreadable() {
        let session = SessionId::random().to_string();
        put(&log, &session, record.clone()).await;
        let answer = say(&client, &session).await;
        assert_eq!(answer["error"]["code"], "session_not_found", "{record}: {answer}");
        let joined = client.ask("init_session", json!({ "sessionId": session })).await;
        assert_eq!(joined["resumed"], false, "{record}: {joined}");
        assert_ne!(joined["sessionId"], session.as_str(), "{record}");
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_hides_neither_the_opening_of_a_session_nor_its_end() {
    let stack = Stack::builder().gateways(2).start().await;
    // What follows is in the log alone.
    stack.persister(0).kill();
    let js_clients = JsClients::start().await;
    let client = js_clients.client(&stack.gateway(0).url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let log = log(&stack).await;
    for record in unreadable() {
        put(&log, &session, record).await;
    }
    let other = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let answer = say(&other, &session).await;
    assert!(is_taken(&answer), "{answer}");

    let (_, erase) = Record::erase(&session);
    put(&log, &session, String::from_utf8(erase.encode().unwrap()).unwrap()).await;
    for record in unreadable() {
        put(&log, &session, record).await;
    }
    is_started_anew(&stack, 1).await;
    other.connected().await;
    let answer = say(&other, &session).await;
    assert_eq!(answer["error"]["code"], "session_not_found", "{answer}");
}

#[tokio::test]
async fn behind_more_than_is_looked_at_a_session_is_in_doubt_until_it_is_stored() {
    let stack = Stack::builder().gateways(2).start().await;
    stack.persister(0).kill();
    let js_clients = JsClients::start().await;
    let client = js_clients.client(&stack.gateway(0).url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let log = log(&stack).await;
    for _ in 0..TOO_MANY {
        put(&log, &session, "garbage".into()).await;
    }
    let other = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let answer = say(&other, &session).await;
    assert_eq!(answer["error"]["code"], "unavailable", "{answer}");
    stack.persister(0).start().await;
    eventually(SOON, "it is known", async || is_taken(&say(&other, &session).await)).await;
}
