//! A connected client never misses a saved message, whatever was not announced.

use std::time::Duration;

use serde_json::json;
use tests::{Client, Conversation, JsClients, Link, Stack, eventually};

/// Delivery resumes within this time after NATS is back.
const RESUMES_WITHIN: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(10);

async fn sees(client: &Client, within: Duration, count: usize) {
    let what = format!("a client sees {count} messages");
    eventually(within, &what, async || client.count("message").await >= count).await;
}

/// A visitor on the first gateway and an agent on the second.
async fn visitor_and_agent(stack: &Stack) -> (Client, Client, String) {
    let js_clients = JsClients::start().await;
    let visitor = js_clients.client(&stack.gateway(0).url(""), &["websocket"]).await;
    let agent = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let session = visitor.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    agent.stay(Some(&session)).await;
    (visitor, agent, session)
}

async fn say(client: &Client, session: &str, count: usize) {
    let payloads = (0..count).map(|n| json!({ "sessionId": session, "content": format!("{n}") }));
    let acks = client.burst("admin_message", payloads.collect()).await;
    assert!(acks.iter().all(|ack| ack["status"] == "accepted"), "{acks:?}");
}

#[tokio::test]
async fn a_gateway_that_lost_nats_emits_what_was_saved_meanwhile() {
    let stack = Stack::builder().gateways(2).proxy(Link::GatewayNats).start().await;
    let (visitor, agent, session) = visitor_and_agent(&stack).await;
    say(&agent, &session, 3).await;
    sees(&visitor, SOON, 3).await;
    for round in 1..=3 {
        stack.proxy(Link::GatewayNats, 0).cut();
        say(&agent, &session, 700).await;
        sees(&agent, SOON, 3 + round * 700).await;
        stack.proxy(Link::GatewayNats, 0).mend();
        sees(&visitor, RESUMES_WITHIN, 3 + round * 700).await;
    }
    assert_eq!(visitor.messages().await, agent.messages().await);
}

#[tokio::test]
async fn what_a_writer_stored_and_did_not_announce_is_emitted() {
    let stack = Stack::builder().gateways(2).start().await;
    let (visitor, agent, session) = visitor_and_agent(&stack).await;
    say(&agent, &session, 1).await;
    sees(&visitor, SOON, 1).await;
    stack.persister(0).terminate().await;
    say(&agent, &session, 1).await;
    store_without_a_word(&stack, &session).await;
    stack.persister(0).start().await;
    sees(&visitor, RESUMES_WITHIN, 2).await;
    say(&agent, &session, 1).await;
    sees(&visitor, SOON, 3).await;
    sees(&agent, SOON, 3).await;
    assert_eq!(visitor.messages().await, agent.messages().await);
}

/// Commits the log's last record as a persister does that dies before it announces.
async fn store_without_a_word(stack: &Stack, session: &str) {
    let log =
        async_nats::jetstream::new(stack.nats_client().await).get_stream("CHAT").await.unwrap();
    let subject = format!("chat.requests.*.{session}");
    let record = log.direct_get_last_for_subject(subject).await.unwrap();
    let message: serde_json::Value = serde_json::from_slice(&record.payload).unwrap();
    let commit = r#"
        WITH moved AS (
            UPDATE "LogPartition" SET "sequence" = $1, "recordedAt" = $2
            WHERE "partition" = $3 RETURNING "epoch"
        )
        INSERT INTO "Message" ("id", "sender", "content", "chatSessionId", "logEpoch", "logSequence")
        SELECT $4, 'admin', '0', s."id", moved."epoch", $1 FROM moved, "ChatSession" s WHERE s."sessionId" = $5"#;
    let partition: i16 = record.subject.split('.').nth(2).unwrap().parse().unwrap();
    let stored = sqlx::query(commit)
        .bind(record.sequence.cast_signed())
        .bind(record.time)
        .bind(partition)
        .bind(message["message"]["id"].as_str().unwrap().to_owned())
        .bind(session.to_owned())
        .execute(&stack.pool())
        .await
        .unwrap();
    assert_eq!(stored.rows_affected(), 1);
}

#[tokio::test]
async fn every_gateway_and_persister_may_lose_every_link_in_turn() {
    let links =
        [Link::GatewayNats, Link::GatewayPostgres, Link::PersisterNats, Link::PersisterPostgres];
    let builder = links.into_iter().fold(Stack::builder().persisters(2), tests::Builder::proxy);
    let stack = builder.start().await;
    let conversation = Conversation::begin(&stack, &JsClients::start().await).await;
    for link in links {
        conversation.is_delivered(10).await;
        stack.proxies(link).for_each(tests::Proxy::cut);
        let service = match link {
            Link::GatewayNats | Link::GatewayPostgres => stack.gateway(0),
            Link::PersisterNats | Link::PersisterPostgres => stack.persister(0),
        };
        eventually(SOON, "a service notices", async || {
            !is_ready(&stack, &service.url("/ready")).await
        })
        .await;
        stack.proxies(link).for_each(tests::Proxy::mend);
        conversation.is_accepted(10).await;
        conversation.is_delivered(10).await;
    }
    conversation.end(&stack).await;
}

async fn is_ready(stack: &Stack, url: &str) -> bool {
    stack.http().get(url).send().await.unwrap().status().is_success()
}
