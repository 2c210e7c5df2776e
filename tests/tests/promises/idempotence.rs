//! A `clientOffset` names a send for ever: through any gateway, whatever became of the first try.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{JsClients, Link, Stack, eventually, is_taken};

const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(15);

async fn history(stack: &Stack, session: &str) -> Vec<Value> {
    let answer = stack.http().get(stack.url(&format!("/api/chats/{session}"))).send().await;
    answer.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn a_send_that_timed_out_and_landed_later_is_stored_once_when_it_is_sent_again() {
    let stack = Stack::builder().gateways(2).proxy(Link::GatewayNats).start().await;
    let js_clients = JsClients::start().await;
    let first = js_clients.client(&stack.gateway(0).url(""), &["websocket"]).await;
    let second = js_clients.client(&stack.gateway(1).url(""), &["websocket"]).await;
    let session = first.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let send = json!({ "sessionId": session, "content": "once", "clientOffset": "1" });
    // The gateway knows the session: what times out is the publish itself.
    let known = json!({ "sessionId": session, "content": "before" });
    assert!(is_taken(&first.ask("user_message", known).await));

    stack.proxy(Link::GatewayNats, 0).freeze();
    let (took, refused) = first.timed("user_message", send.clone()).await;
    assert_eq!(refused["error"]["code"], "unavailable", "{refused}");
    assert!(took < ANSWERED_WITHIN, "{took:?}");
    let again = second.ask("user_message", send.clone()).await;
    assert!(is_taken(&again), "{again}");
    // What the first gateway had written reaches the log now.
    stack.proxy(Link::GatewayNats, 0).mend();
    eventually(SOON, "the first gateway takes sends again", async || {
        first.ask("user_message", send.clone()).await["id"] == again["id"]
    })
    .await;
    stack.persister(0).kill();
    stack.persister(0).start().await;
    assert_eq!(second.ask("user_message", send.clone()).await["id"], again["id"]);
    let last = json!({ "sessionId": session, "content": "after" });
    first.ask("user_message", last).await;
    eventually(SOON, "all is stored", async || {
        history(&stack, &session).await.last().is_some_and(|last| last["content"] == "after")
    })
    .await;
    let contents: Vec<_> =
        history(&stack, &session).await.iter().map(|m| m["content"].clone()).collect();
    assert_eq!(contents, ["before", "once", "after"]);
}

#[tokio::test]
async fn the_first_content_stands_and_each_sender_has_offsets_of_its_own() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let send =
        |content: &str| json!({ "sessionId": session, "content": content, "clientOffset": "1" });
    let first = client.ask("user_message", send("first")).await;
    let second = client.ask("user_message", send("second")).await;
    assert_eq!(second["error"]["code"], "conflict", "{second}");
    assert_eq!(client.ask("user_message", send("first")).await["id"], first["id"]);
    assert_ne!(client.ask("admin_message", send("third")).await["id"], first["id"]);
    eventually(SOON, "both senders are stored", async || {
        history(&stack, &session).await.len() == 2
    })
    .await;
    let contents: Vec<_> =
        history(&stack, &session).await.iter().map(|m| m["content"].clone()).collect();
    assert_eq!(contents, ["first", "third"]);
}

#[tokio::test]
async fn sends_answer_unavailable_within_5_seconds_while_nats_is_away_or_frozen() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let send = json!({ "sessionId": session, "content": "x" });
    stack.nats().pause().await;
    let (took, refused) = client.timed("user_message", send.clone()).await;
    assert!(
        took < ANSWERED_WITHIN && refused["error"]["code"] == "unavailable",
        "{took:?} {refused}"
    );
    stack.nats().resume().await;
    eventually(SOON, "sends are taken again", async || {
        is_taken(&client.ask("user_message", send.clone()).await)
    })
    .await;
    stack.nats().kill().await;
    let (took, refused) = client.timed("user_message", send.clone()).await;
    assert!(
        took < ANSWERED_WITHIN && refused["error"]["code"] == "unavailable",
        "{took:?} {refused}"
    );
    stack.nats().start().await;
    eventually(SOON, "sends are taken again", async || {
        is_taken(&client.ask("user_message", send.clone()).await)
    })
    .await;
}
