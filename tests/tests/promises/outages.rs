//! Each of the four processes goes away and comes back while a visitor and an admin talk: the others
//! wait for it and go on, what was accepted is stored once and in order, both see it once.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Conversation, JsClients, Link, Stack, eventually, is_taken};
use tokio::net::TcpStream;

/// What a client is promised to wait for an answer at most, whatever is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// From the return of NATS until messages are delivered again.
const RESUMES_WITHIN: Duration = Duration::from_secs(5);
/// An `init_session` is acked one second after it is in the log; the rest is for the way there.
const OPENS_WITHIN: Duration = Duration::from_secs(3);
/// Before anything of a healthy stack.
const SOON: Duration = Duration::from_secs(10);
/// To make a connection to Postgres: more than anybody waits for one, less than the URL's `connect_timeout`.
const CONNECTS_IN: Duration = Duration::from_secs(3);
/// `SHUTDOWN_SECONDS`, and a little for the way to it.
const STOPS_WITHIN: Duration = Duration::from_secs(12);
/// Talk before, during and after an outage.
const ENOUGH: u64 = 30;
const SEEN: usize = 30;

const LOCALHOST: &str = "127.0.0.1";
const UNKNOWN: &str = "11111111-1111-4111-8111-111111111111";

async fn talking(stack: &Stack) -> Conversation {
    let conversation = Conversation::begin(stack, &JsClients::start().await).await;
    conversation.is_delivered(SEEN).await;
    conversation
}

/// The end of every outage: nothing was lost, and no process had to be started again.
async fn all_is_well(stack: &Stack, conversation: Conversation) {
    conversation.is_accepted(ENOUGH).await;
    conversation.is_delivered(SEEN).await;
    conversation.end(stack).await;
    for service in stack.gateways().iter().chain(stack.persisters()) {
        assert!(service.is_running(), "{}", service.name());
        assert!(!service.logs().contains("panicked"), "{}", service.logs());
    }
}

#[tokio::test]
async fn a_persister_may_be_killed_and_come_back() {
    let stack = Stack::start().await;
    let conversation = talking(&stack).await;
    for _ in 0..2 {
        stack.persister(0).kill();
        conversation.is_accepted(ENOUGH).await;
        stack.persister(0).start().await;
        conversation.is_delivered(SEEN).await;
    }
    all_is_well(&stack, conversation).await;
}

#[tokio::test]
async fn a_persister_may_be_stopped_and_come_back() {
    let stack = Stack::start().await;
    let conversation = talking(&stack).await;
    for _ in 0..2 {
        assert!(stack.persister(0).terminate().await.success());
        conversation.is_accepted(ENOUGH).await;
        stack.persister(0).start().await;
        conversation.is_delivered(SEEN).await;
    }
    all_is_well(&stack, conversation).await;
}

#[tokio::test]
async fn a_gateway_may_be_killed_and_come_back() {
    let stack = Stack::start().await;
    let conversation = talking(&stack).await;
    for _ in 0..2 {
        stack.gateway(0).kill();
        stack.gateway(0).start().await;
        conversation.is_delivered(SEEN).await;
    }
    all_is_well(&stack, conversation).await;
}

#[tokio::test]
async fn a_gateway_may_be_stopped_and_come_back() {
    let stack = Stack::start().await;
    let conversation = talking(&stack).await;
    for _ in 0..2 {
        assert!(stack.gateway(0).terminate().await.success(), "{}", stack.gateway(0).logs());
        stack.gateway(0).start().await;
        conversation.is_delivered(SEEN).await;
    }
    // After `io server disconnect` a client would not come back by itself.
    for client in [&conversation.visitor, &conversation.admin] {
        let reasons = client.seen("disconnect").await;
        assert!(
            reasons.len() >= 2 && !reasons.contains(&json!("io server disconnect")),
            "{reasons:?}"
        );
    }
    all_is_well(&stack, conversation).await;
}

#[tokio::test]
async fn a_gateway_stops_in_time_though_a_client_does_not_read() {
    let stack = Stack::builder().busy().start().await;
    let js_clients = JsClients::start().await;
    let talker = js_clients.client(&stack.url(""), &["websocket"]).await;
    let deaf = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = id(&talker.stay(None).await);
    deaf.stay(Some(&session)).await;
    deaf.stop_reading().await;
    // More than the kernel holds for it: the gateway waits to write.
    let long = json!({ "sessionId": session, "content": "🙂".repeat(8_000) });
    let acks = talker.burst("user_message", vec![long; 500]).await;
    assert!(acks.iter().all(is_taken));
    eventually(SOON, "everybody else has it", async || talker.count("message").await == 500).await;
    stack.gateway(0).ask_to_stop();
    let ended = stack.gateway(0).exit_status(STOPS_WITHIN).await;
    assert!(ended.success(), "{}", stack.gateway(0).logs());
}

#[tokio::test]
async fn nats_may_be_killed_and_come_back() {
    let stack = Stack::start().await;
    let conversation = talking(&stack).await;
    for _ in 0..2 {
        stack.nats().kill().await;
        is_refused(&conversation).await;
        stack.nats().start().await;
        conversation.is_delivered(SEEN).await;
    }
    all_is_well(&stack, conversation).await;
}

#[tokio::test]
async fn nats_may_be_stopped_and_come_back() {
    let stack = Stack::start().await;
    let conversation = talking(&stack).await;
    for _ in 0..2 {
        stack.nats().stop().await;
        is_refused(&conversation).await;
        stack.nats().start().await;
        conversation.is_delivered(SEEN).await;
    }
    all_is_well(&stack, conversation).await;
}

#[tokio::test]
async fn nats_may_freeze_and_thaw() {
    let stack = Stack::start().await;
    let conversation = talking(&stack).await;
    for _ in 0..2 {
        stack.nats().pause().await;
        is_refused(&conversation).await;
        stack.nats().resume().await;
        conversation.is_delivered(SEEN).await;
    }
    all_is_well(&stack, conversation).await;
}

/// No sender noticed anything.
async fn nobody_was_refused(conversation: &Conversation) {
    for client in [&conversation.visitor, &conversation.admin] {
        assert_eq!(client.refused().await, 0);
    }
}

/// Both hear that their sends are not taken.
async fn is_refused(conversation: &Conversation) {
    for client in [&conversation.visitor, &conversation.admin] {
        let refused = client.refused().await;
        eventually(2 * ANSWER_WITHIN, "sends are refused", async || {
            client.refused().await > refused
        })
        .await;
    }
}

#[tokio::test]
async fn postgres_may_be_killed_and_come_back() {
    let stack = Stack::builder().durable().start().await;
    let conversation = talking(&stack).await;
    for _ in 0..2 {
        stack.postgres().kill().await;
        conversation.is_accepted(ENOUGH).await;
        stack.postgres().start().await;
        conversation.is_delivered(SEEN).await;
    }
    nobody_was_refused(&conversation).await;
    all_is_well(&stack, conversation).await;
}

#[tokio::test]
async fn postgres_may_be_stopped_and_come_back() {
    let stack = Stack::builder().own_postgres().start().await;
    let conversation = talking(&stack).await;
    for _ in 0..2 {
        stack.postgres().stop().await;
        conversation.is_accepted(ENOUGH).await;
        stack.postgres().start().await;
        conversation.is_delivered(SEEN).await;
    }
    nobody_was_refused(&conversation).await;
    all_is_well(&stack, conversation).await;
}

#[tokio::test]
async fn postgres_may_freeze_and_thaw() {
    let stack = Stack::builder().own_postgres().start().await;
    let conversation = talking(&stack).await;
    stack.postgres().pause().await;
    conversation.is_accepted(ENOUGH).await;
    stack.postgres().resume().await;
    conversation.is_delivered(SEEN).await;
    nobody_was_refused(&conversation).await;
    all_is_well(&stack, conversation).await;
}

/// As on a machine that has much to do just after Postgres is back, or behind a long line.
#[tokio::test]
async fn a_postgres_that_takes_connections_slowly_is_used_all_the_same() {
    let links = [Link::GatewayPostgres, Link::PersisterPostgres];
    let stack = Stack::builder().proxy(links[0]).proxy(links[1]).start().await;
    let conversation = talking(&stack).await;
    for proxy in links.map(|link| stack.proxy(link, 0)) {
        proxy.delay(CONNECTS_IN);
        proxy.cut();
    }
    conversation.is_accepted(ENOUGH).await;
    for proxy in links.map(|link| stack.proxy(link, 0)) {
        proxy.mend();
    }
    conversation.is_delivered(SEEN).await;
    let history = stack.url(&format!("/api/chats/{}", conversation.session));
    eventually(SOON, "a history is read", async || {
        reqwest::get(&history).await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    all_is_well(&stack, conversation).await;
}

/// What answered a moment ago is asked without a look whether it is still there.
#[tokio::test]
async fn a_history_is_read_at_once_behind_a_cut() {
    let stack = Stack::builder().proxy(Link::GatewayPostgres).start().await;
    let (http, history) = (stack.http(), stack.url(&format!("/api/chats/{UNKNOWN}")));
    let proxy = stack.proxy(Link::GatewayPostgres, 0);
    for _ in 0..20 {
        assert_eq!(http.get(&history).send().await.unwrap().status(), 200);
        proxy.cut();
        let refused = async || TcpStream::connect((LOCALHOST, proxy.port())).await.is_err();
        eventually(SOON, "it is cut", refused).await;
        proxy.mend();
        assert_eq!(http.get(&history).send().await.unwrap().status(), 200);
    }
}

/// A connection that nobody used for a while is asked whether it is still there, and not replaced meanwhile.
#[tokio::test]
async fn a_history_is_read_at_once_behind_a_rest_however_long_connections_take() {
    /// Longer than what answered is taken for one that answers.
    const RESTED: &str = "
        SELECT coalesce(bool_and(state = 'idle' AND state_change < clock_timestamp() - interval '150 ms'), false)
        FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'chat-gateway'";
    let stack = Stack::builder().proxy(Link::GatewayPostgres).start().await;
    let (http, history) = (stack.http(), stack.url(&format!("/api/chats/{UNKNOWN}")));
    let (proxy, pool) = (stack.proxy(Link::GatewayPostgres, 0), stack.pool());
    let read = async || http.get(&history).send().await.unwrap().status() == 200;
    proxy.delay(CONNECTS_IN);
    for _ in 0..4 {
        proxy.cut();
        eventually(SOON, "it is cut", async || !read().await).await;
        proxy.mend();
        eventually(SOON, "a history is read", read).await;
        eventually(SOON, "nothing is asked for a while", async || {
            sqlx::query_scalar(RESTED).fetch_one(&pool).await.unwrap()
        })
        .await;
        assert!(read().await);
    }
}

#[tokio::test]
async fn while_postgres_is_away_every_event_is_answered_and_known_sessions_go_on() {
    let stack = Stack::builder().durable().start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let known = id(&client.stay(None).await);
    stack.postgres().kill().await;

    assert_eq!(init(&client, &known).await, resumed(&known));
    let (took, opened) = client.timed("init_session", json!({})).await;
    assert!(took < OPENS_WITHIN, "{took:?}");
    let opened = id(&opened);
    for event in ["user_message", "admin_message"] {
        for session in [&known, &opened] {
            assert!(is_taken(&send(&client, event, session).await));
        }
        assert_eq!(code(&client.ask(event, Value::Null).await), "invalid_payload");
    }
    let (all, one) = ("/api/chats".to_owned(), format!("/api/chats/{known}"));
    let (sent, joined, (), ()) = tokio::join!(
        send(&client, "user_message", UNKNOWN),
        init(&client, UNKNOWN),
        assert_problem(&stack, &all),
        assert_problem(&stack, &one)
    );
    assert_eq!(code(&sent), "unavailable");
    // It may be a returning visitor's: joined, and acked unchanged.
    assert_eq!(joined["sessionId"], UNKNOWN);
    assert_eq!(status(&stack, "/health").await, 200);
    assert_eq!(status(&stack, "/ready").await, 503);

    stack.postgres().start().await;
    is_stored(&stack, &known, 2).await;
    is_stored(&stack, &opened, 2).await;
    assert_eq!(code(&send(&client, "user_message", UNKNOWN).await), "session_not_found");
    assert_ne!(id(&init(&client, UNKNOWN).await), UNKNOWN);
}

#[tokio::test]
async fn while_nats_is_away_every_event_is_answered_and_history_is_read() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let known = id(&client.stay(None).await);
    send(&client, "user_message", &known).await;
    is_stored(&stack, &known, 1).await;
    stack.nats().kill().await;

    assert_eq!(init(&client, &known).await, resumed(&known));
    let (took, refused) = client.timed("init_session", json!({ "sessionId": "garbage" })).await;
    assert!(took < ANSWER_WITHIN, "{took:?}");
    assert_eq!((code(&refused), &refused["sessionId"]), ("unavailable", &json!("garbage")));
    for session in [&known, UNKNOWN] {
        let (took, refused) = client.timed("user_message", message(session, None)).await;
        assert!(took < ANSWER_WITHIN, "{took:?}");
        assert_eq!(code(&refused), "unavailable");
    }
    client.tell("admin_message", message(&known, None)).await;
    eventually(ANSWER_WITHIN, "message_error", async || {
        let errors = client.seen("message_error").await;
        errors.first().is_some_and(|event| code(event) == "unavailable")
    })
    .await;
    assert_eq!(code(&client.ask("user_message", Value::Null).await), "invalid_payload");
    assert_eq!(init(&client, UNKNOWN).await["sessionId"], UNKNOWN);
    assert_eq!(status(&stack, "/health").await, 200);
    assert_eq!(status(&stack, "/ready").await, 503);
    assert_eq!(history(&stack, &known).await.len(), 1);

    stack.nats().start().await;
    eventually(RESUMES_WITHIN, "sends are accepted and delivered again", async || {
        client.ask("user_message", message(&known, Some("again"))).await;
        client.messages().await.len() == 2
    })
    .await;
    is_stored(&stack, &known, 2).await;
}

#[tokio::test]
async fn many_sends_at_once_are_all_answered_within_the_deadline_while_nats_is_away() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let known = id(&client.stay(None).await);
    stack.nats().kill().await;
    let sends = (0..1_000).map(|n| message(&known, Some(&n.to_string()))).collect();
    let answers = tokio::time::timeout(ANSWER_WITHIN, client.burst("user_message", sends)).await;
    for answer in answers.expect("all are answered in time") {
        assert_eq!(code(&answer), "unavailable");
    }
}

#[tokio::test]
async fn what_a_full_lane_refuses_as_overloaded_is_surely_not_taken() {
    const MORE_THAN_A_LANE: usize = 10_000;
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = id(&client.stay(None).await);
    let say = |n: usize| json!({ "sessionId": session, "content": n.to_string() });
    stack.nats().pause().await;
    let answers = client.burst("user_message", (0..MORE_THAN_A_LANE).map(say).collect()).await;
    stack.nats().resume().await;
    let coded = |wanted| answers.iter().zip(0..).filter(move |(answer, _)| code(answer) == wanted);
    let refused: Vec<usize> = coded("overloaded").map(|(_, n)| n).collect();
    assert_eq!(refused.len() + coded("unavailable").count(), MORE_THAN_A_LANE);
    assert!(!refused.is_empty());
    eventually(3 * SOON, "sends are accepted again", async || {
        is_taken(&client.ask("user_message", say(MORE_THAN_A_LANE)).await)
    })
    .await;
    eventually(3 * SOON, "it is stored", async || {
        numbers(&history(&stack, &session).await).contains(&MORE_THAN_A_LANE)
    })
    .await;
    // What was answered `unavailable` may have landed, and in any place.
    let stored = numbers(&history(&stack, &session).await);
    assert!(stored.iter().all(|n| !refused.contains(n)), "refused as overloaded, and stored");
}

fn numbers(messages: &[Value]) -> Vec<usize> {
    let number = |message: &Value| message["content"].as_str()?.parse().ok();
    messages.iter().filter_map(number).collect()
}

#[tokio::test]
async fn a_new_session_is_acked_while_no_persister_runs() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    client.connected().await;
    stack.persister(0).kill();
    let (took, opened) = client.timed("init_session", json!({})).await;
    assert!(took < OPENS_WITHIN, "{took:?}");
    let opened = id(&opened);
    assert!(is_taken(&send(&client, "user_message", &opened).await));
    assert_eq!(init(&client, &opened).await, resumed(&opened));
    assert!(history(&stack, &opened).await.is_empty());
    stack.persister(0).start().await;
    is_stored(&stack, &opened, 1).await;
}

#[tokio::test]
async fn a_gateway_says_that_it_lives_before_what_it_needs_is_there() {
    let stack = Stack::builder().own_postgres().services_stopped().start().await;
    stack.nats().stop().await;
    stack.postgres().stop().await;
    stack.gateway(0).spawn();
    eventually(ANSWER_WITHIN, "/health answers", async || status(&stack, "/health").await == 200)
        .await;
    assert_eq!(status(&stack, "/ready").await, 503);
    stack.persister(0).spawn();
    stack.postgres().start().await;
    stack.nats().start().await;
    stack.gateway(0).ready().await;
}

/// As on a busy machine: the first question is answered, and the next one is not.
#[tokio::test]
async fn a_gateway_waits_for_a_postgres_that_falters_while_it_starts() {
    let stack = Stack::builder().services_stopped().start().await;
    stack.persister(0).start().await;
    let pool = stack.pool();
    let rename = async |statement: &'static str| {
        sqlx::raw_sql(statement).execute(&pool).await.unwrap();
    };
    rename("ALTER FUNCTION pg_catalog.pg_is_in_recovery() RENAME TO gone").await;
    let gateway = stack.gateway(0);
    gateway.spawn();
    eventually(SOON, "it waits", async || gateway.logs().contains("waiting for Postgres")).await;
    rename("ALTER FUNCTION pg_catalog.gone() RENAME TO pg_is_in_recovery").await;
    gateway.ready().await;
}

/// The four processes of a stack.
#[derive(Clone, Copy, Debug)]
enum Part {
    Gateway,
    Persister,
    Nats,
    Postgres,
}

impl Part {
    async fn stop(self, stack: &Stack) {
        match self {
            Self::Gateway => assert!(stack.gateway(0).terminate().await.success()),
            Self::Persister => assert!(stack.persister(0).terminate().await.success()),
            Self::Nats => stack.nats().stop().await,
            Self::Postgres => stack.postgres().stop().await,
        }
    }

    /// Not waited for: it cannot be ready while others are away.
    async fn start(self, stack: &Stack) {
        match self {
            Self::Gateway => stack.gateway(0).spawn(),
            Self::Persister => stack.persister(0).spawn(),
            Self::Nats => stack.nats().start().await,
            Self::Postgres => stack.postgres().start().await,
        }
    }
}

#[tokio::test]
async fn the_order_of_starts_does_not_matter() {
    use Part::{Gateway, Nats, Persister, Postgres};
    let stack = Stack::builder().own_postgres().start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = id(&client.stay(None).await);
    for order in [
        [Gateway, Persister, Nats, Postgres],
        [Gateway, Postgres, Persister, Nats],
        [Persister, Gateway, Postgres, Nats],
        [Nats, Gateway, Postgres, Persister],
        [Postgres, Nats, Persister, Gateway],
    ] {
        for part in [Gateway, Persister, Nats, Postgres] {
            part.stop(&stack).await;
        }
        for part in order {
            part.start(&stack).await;
        }
        stack.start_services().await;
        client.connected().await;
        let before = history(&stack, &session).await.len();
        assert!(is_taken(&send(&client, "user_message", &session).await));
        is_stored(&stack, &session, before + 1).await;
        eventually(RESUMES_WITHIN, "it is delivered", async || {
            client.messages().await.len() == before + 1
        })
        .await;
    }
}

fn message(session: &str, offset: Option<&str>) -> Value {
    json!({ "sessionId": session, "content": "hello", "clientOffset": offset })
}

async fn send(client: &Client, event: &str, session: &str) -> Value {
    client.ask(event, message(session, None)).await
}

async fn init(client: &Client, session: &str) -> Value {
    client.ask("init_session", json!({ "sessionId": session })).await
}

fn resumed(session: &str) -> Value {
    json!({ "sessionId": session, "resumed": true, "messages": [], "reset": false, "more": false })
}

fn id(ack: &Value) -> String {
    ack["sessionId"].as_str().unwrap_or_else(|| panic!("{ack}")).to_owned()
}

fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or("none")
}

async fn status(stack: &Stack, path: &str) -> u16 {
    let answer = stack.http().get(stack.url(path)).timeout(ANSWER_WITHIN).send().await;
    answer.map_or(0, |answer| answer.status().as_u16())
}

async fn assert_problem(stack: &Stack, path: &str) {
    let answer = stack.http().get(stack.url(path)).send().await.expect("an answer");
    assert_eq!(answer.status(), 503, "{path}");
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    assert_eq!(answer.json::<Value>().await.expect("a problem")["status"], 503);
}

async fn history(stack: &Stack, session: &str) -> Vec<Value> {
    let url = stack.url(&format!("/api/chats/{session}"));
    let answer = stack.http().get(url).send().await;
    let answer = answer.and_then(reqwest::Response::error_for_status).expect("a history");
    answer.json().await.expect("a history")
}

/// Waits until a session holds so many messages, and not one more.
async fn is_stored(stack: &Stack, session: &str, count: usize) {
    eventually(3 * SOON, "it is stored", async || {
        status(stack, "/ready").await == 200 && history(stack, session).await.len() >= count
    })
    .await;
    assert_eq!(history(stack, session).await.len(), count);
}
