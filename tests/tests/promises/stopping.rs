//! SIGTERM: what is under way is finished, who is connected comes back, and whoever asks is told.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Client, Conversation, JsClients, Service, Stack, eventually, is_taken};
use tokio::io::AsyncWriteExt;

const SOON: Duration = Duration::from_secs(10);
/// `SHUTDOWN_SECONDS`, and a little for the way to it.
const STOPS_WITHIN: Duration = Duration::from_secs(12);
/// "At once", on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);
/// As shells report a process that SIGTERM ended.
const FORCED: i32 = 143;

async fn enter(client: &Client) -> String {
    client.stay(None).await["sessionId"].as_str().expect("an id").to_owned()
}

async fn say(client: &Client, session: &str, content: &str) -> Value {
    client.ask("user_message", json!({ "sessionId": session, "content": content })).await
}

/// Whether operators are told that it stops.
async fn says_that_it_stops(service: &Service) -> bool {
    let Ok(answer) = reqwest::get(service.ops_url("/ready")).await else { return false };
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    status == 503 && text.starts_with("service: stopping\n") && text.contains("postgres: ")
}

async fn takes_connections(service: &Service) -> bool {
    tokio::net::TcpStream::connect(("127.0.0.1", service.port())).await.is_ok()
}

#[tokio::test]
async fn a_gateway_that_stops_answers_what_is_under_way_begins_nothing_new_and_says_so() {
    // What is under way has its answer after 3.5 s, whatever became of NATS.
    let stack = Stack::builder().alone().start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    let gateway = stack.gateway(0);
    stack.nats().pause().await;
    let under_way = tokio::spawn({
        let (client, session) = (client.clone(), session.clone());
        async move { say(&client, &session, "under way").await }
    });
    eventually(SOON, "it is under way", async || {
        let metrics = reqwest::get(gateway.ops_url("/metrics")).await.expect("metrics");
        metrics.text().await.expect("metrics").contains("chat_gateway_publishes_in_flight 1")
    })
    .await;
    gateway.ask_to_stop();
    eventually(AT_ONCE, "/ready turns false", async || says_that_it_stops(gateway).await).await;
    eventually(AT_ONCE, "it takes no new sockets", async || !takes_connections(gateway).await)
        .await;
    let refused = say(&client, &session, "too late").await;
    assert_eq!(refused["error"]["code"], "unavailable", "{refused}");
    stack.nats().resume().await;
    let answer = under_way.await.expect("an answer");
    assert!(is_taken(&answer), "{answer}");
    assert!(gateway.exit_status(STOPS_WITHIN).await.success(), "{}", gateway.logs());
    let reasons = client.seen("disconnect").await;
    assert!(!reasons.contains(&json!("io server disconnect")), "{reasons:?}");
    gateway.start().await;
    client.connected().await;
    eventually(SOON, "it is delivered", async || client.messages().await.len() == 1).await;
}

#[tokio::test]
async fn a_persister_that_stops_finishes_its_batch_and_says_so() {
    let stack = Stack::builder().own_postgres().start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    let persister = stack.persister(0);
    stack.postgres().pause().await;
    assert!(is_taken(&say(&client, &session, "under way").await));
    persister.ask_to_stop();
    eventually(SOON, "/ready turns false", async || says_that_it_stops(persister).await).await;
    stack.postgres().resume().await;
    assert!(persister.exit_status(STOPS_WITHIN).await.success(), "{}", persister.logs());
    persister.start().await;
    eventually(SOON, "it is delivered once", async || client.messages().await.len() == 1).await;
}

#[tokio::test]
async fn a_second_signal_ends_a_service_at_once() {
    // What is under way then takes a minute.
    let stack = Stack::builder().own_postgres().gateway_env("STORED_WAIT", "1m");
    let stack = stack.env("SHUTDOWN_SECONDS", "60").start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    stack.postgres().pause().await;
    client.tell("user_message", json!({ "sessionId": session, "content": "never" })).await;
    eventually(SOON, "it is under way", async || {
        stack.gateway(0).metric("chat_gateway_pending_sends").await == Some(1)
    })
    .await;
    for service in [stack.gateway(0), stack.persister(0)] {
        service.ask_to_stop();
        eventually(SOON, "it stops", async || says_that_it_stops(service).await).await;
        let asked = Instant::now();
        service.ask_to_stop();
        assert_eq!(service.exit_status(AT_ONCE).await.code(), Some(FORCED));
        assert!(asked.elapsed() < AT_ONCE);
    }
    stack.postgres().resume().await;
}

/// Codes of a client that lost its connection while an answer was on its way: nobody can tell it.
const CUT: &str = "socket has been disconnected";

#[tokio::test]
async fn a_rolling_restart_loses_nothing_and_refuses_only_as_unavailable() {
    let stack = Stack::builder().gateways(2).persisters(3).start().await;
    let js_clients = JsClients::start().await;
    let mut conversations = Vec::new();
    for number in 0..4 {
        conversations.push(Conversation::begin_on(&stack, &js_clients, number % 2).await);
    }
    for service in stack.gateways().iter().chain(stack.persisters()) {
        assert!(service.terminate().await.success(), "{}", service.logs());
        service.start().await;
        for conversation in &conversations {
            conversation.is_delivered(20).await;
        }
    }
    for conversation in conversations {
        for talk in conversation.end(&stack).await {
            let others = |code: &&String| !["unavailable", CUT].contains(&code.as_str());
            let refused: Vec<_> = talk.refused.iter().filter(others).collect();
            assert!(refused.is_empty(), "{refused:?}");
        }
    }
}

/// The four processes of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Gateway,
    Persister,
    Nats,
    Postgres,
}

const PARTS: [Part; 4] = [Part::Gateway, Part::Persister, Part::Nats, Part::Postgres];
/// Each talks and listens twice: as a visitor and as an admin.
const CONVERSATIONS: usize = 3;

impl Part {
    async fn stop(self, stack: &Stack) {
        match self {
            Self::Gateway => is_stopped(stack.gateway(0)).await,
            Self::Persister => is_stopped(stack.persister(0)).await,
            Self::Nats => stack.nats().stop().await,
            Self::Postgres => stack.postgres().stop().await,
        }
    }
}

async fn is_stopped(service: &Service) {
    service.ask_to_stop();
    let status = service.exit_status(STOPS_WITHIN).await;
    assert!(status.success(), "{}", service.logs());
}

/// Every order that begins with this one.
fn orders(first: Part) -> Vec<Vec<Part>> {
    let mut orders = vec![vec![first]];
    for _ in 1..PARTS.len() {
        let longer = |order: &Vec<Part>| {
            let left = PARTS.into_iter().filter(|part| !order.contains(part)).collect::<Vec<_>>();
            let order = order.clone();
            left.into_iter().map(move |next| [order.clone(), vec![next]].concat())
        };
        orders = orders.iter().flat_map(longer).collect();
    }
    orders
}

/// Six orders each, side by side.
async fn stop_everything_beginning_with(first: Part) {
    let stack = Stack::builder().own_postgres().start().await;
    let js_clients = JsClients::start().await;
    let mut conversations = Vec::new();
    for _ in 0..CONVERSATIONS {
        conversations.push(Conversation::begin(&stack, &js_clients).await);
    }
    let orders = orders(first);
    assert_eq!(orders.len(), 6);
    for order in orders {
        for part in order {
            part.stop(&stack).await;
        }
        stack.nats().start().await;
        stack.postgres().start().await;
        stack.start_services().await;
        for conversation in &conversations {
            conversation.is_delivered(5).await;
        }
    }
    for conversation in conversations {
        conversation.end(&stack).await;
    }
}

#[tokio::test]
async fn everything_may_be_stopped_in_every_order_gateway_first() {
    stop_everything_beginning_with(Part::Gateway).await;
}

#[tokio::test]
async fn everything_may_be_stopped_in_every_order_persister_first() {
    stop_everything_beginning_with(Part::Persister).await;
}

#[tokio::test]
async fn everything_may_be_stopped_in_every_order_nats_first() {
    stop_everything_beginning_with(Part::Nats).await;
}

#[tokio::test]
async fn everything_may_be_stopped_in_every_order_postgres_first() {
    stop_everything_beginning_with(Part::Postgres).await;
}

/// What keeps a service longer than it was given makes it end with an error, so that whoever stopped it knows.
#[tokio::test]
async fn a_service_that_does_not_end_in_time_says_so_with_its_exit_status() {
    let stack = Stack::builder().own_postgres().env("SHUTDOWN_SECONDS", "1").start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = enter(&client).await;
    let (gateway, persister) = (stack.gateway(0), stack.persister(0));

    let mut slow = tokio::net::TcpStream::connect(("127.0.0.1", gateway.port())).await.unwrap();
    let head = format!(
        "POST /api/chats/{session}/messages HTTP/1.1\r\nhost: localhost\r\n\
         content-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    // Read by now, and the rest never comes.
    assert!(is_taken(&say(&client, &session, "one").await));
    eventually(SOON, "it is stored", async || !client.messages().await.is_empty()).await;
    stack.postgres().pause().await;
    assert!(is_taken(&say(&client, &session, "another").await));
    for service in [gateway, persister] {
        service.ask_to_stop();
        let status = service.exit_status(STOPS_WITHIN).await;
        assert_eq!(status.code(), Some(1), "{}: {}", service.name(), service.logs());
        assert!(service.logs().contains("not everything ended within the deadline"));
    }
    stack.postgres().resume().await;
}
