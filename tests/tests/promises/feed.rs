//! The feed of all sessions for programs: everything at least once, in each session's order, also for whoever was away.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tests::{Client, JsClients, Link, Proxy, Stack, eventually, is_taken};
use tokio::task::JoinHandle;
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(20);
/// How often something comes, by the contract, and what a busy machine adds.
const HEARTBEAT_WITHIN: Duration = Duration::from_secs(20);
/// The `id` of a gateway that has heard of no partition yet.
const NO_PARTITION_YET: &str = "AQ";

/// An event of the feed.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    name: String,
    data: Value,
    id: Option<String>,
}

/// A program that reads the feed.
struct Reader {
    events: tokio::sync::watch::Receiver<Vec<Event>>,
    comments: tokio::sync::watch::Receiver<usize>,
    reading: JoinHandle<()>,
}

impl Reader {
    /// Begins, behind a cursor if one is given.
    async fn begin(stack: &Stack, gateway: usize, after: Option<&str>) -> Self {
        let after = after.map(|after| format!("?after={after}")).unwrap_or_default();
        let url = stack.gateway(gateway).url(&format!("/api/events{after}"));
        let answer = stack.http().get(url).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let (told, events) = tokio::sync::watch::channel(Vec::new());
        let (heard, comments) = tokio::sync::watch::channel(0);
        let reading = tokio::spawn(async move {
            let mut parts = answer.bytes_stream();
            let mut bytes = Vec::new();
            while let Some(Ok(part)) = parts.next().await {
                bytes.extend(part);
                while let Some(end) = bytes.windows(2).position(|pair| pair == b"\n\n") {
                    let block: Vec<u8> = bytes.drain(..end + 2).collect();
                    match event(std::str::from_utf8(&block).unwrap()) {
                        Some(event) => told.send_modify(|events| events.push(event)),
                        None => heard.send_modify(|comments| *comments += 1),
                    }
                }
            }
        });
        let reader = Self { events, comments, reading };
        reader.has("where it begins", |events| !events.is_empty()).await;
        reader
    }

    fn seen(&self) -> Vec<Event> {
        self.events.borrow().clone()
    }

    async fn has(&self, what: &str, is_there: impl Fn(&[Event]) -> bool) {
        eventually(SOON, what, async || is_there(&self.events.borrow())).await;
    }

    /// What was said in a session, in the order in which it came.
    fn said(&self, session: &str) -> Vec<String> {
        let events = self.events.borrow();
        let of_it =
            events.iter().filter(|it| it.name == "message" && it.data["sessionId"] == *session);
        of_it.map(|it| it.data["message"]["content"].as_str().unwrap().to_owned()).collect()
    }

    async fn says(&self, session: &str, wanted: &[String]) {
        self.has("what is said", |_| self.said(session).len() >= wanted.len()).await;
        assert_eq!(self.said(session), wanted);
    }

    /// Where it is.
    fn cursor(&self) -> String {
        self.events.borrow().iter().rev().find_map(|event| event.id.clone()).unwrap()
    }

    /// Ends it; where it was.
    fn end(self) -> String {
        self.reading.abort();
        self.cursor()
    }
}

fn event(block: &str) -> Option<Event> {
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    let data = serde_json::from_str(&field("data")?).unwrap();
    Some(Event { name: field("event").unwrap(), data, id: field("id") })
}

async fn open(client: &Client) -> String {
    client.ask("init_session", json!({})).await["sessionId"].as_str().unwrap().to_owned()
}

async fn say(client: &Client, session: &str, content: &str) {
    let ack = client.ask("user_message", json!({ "sessionId": session, "content": content })).await;
    assert!(is_taken(&ack), "{ack}");
}

async fn say_all(client: &Client, session: &str, contents: &[String]) {
    for content in contents {
        say(client, session, content).await;
    }
}

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn everything_that_happens_in_any_session_is_told_in_its_order() {
    let stack = Stack::builder().gateways(2).start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let readers = [Reader::begin(&stack, 0, None).await, Reader::begin(&stack, 1, None).await];
    let session = open(&client).await;
    say(&client, &session, "Hello?").await;
    let claim = json!({ "sessionId": session, "agent": "anna" });
    client.ask("claim-session", claim).await;
    say(&client, &session, "One more").await;
    let digest = shared::ids::SessionId::parse(&session).unwrap().digest();
    let digest = digest.to_string();
    for reader in &readers {
        reader.has("both messages", |_| reader.said(&session).len() == 2).await;
    }
    let erased = stack.http().delete(stack.url(&format!("/api/chats/{session}"))).send().await;
    assert_eq!(erased.unwrap().status(), 202);
    for reader in &readers {
        reader.has("the end", |events| events.last().unwrap().name == "erased").await;
        let names: Vec<_> = reader.seen().iter().map(|event| event.name.clone()).collect();
        let wanted = ["ready", "session", "message", "session-updated", "message", "erased"];
        assert_eq!(names, wanted);
        let seen = reader.seen();
        assert_eq!(seen[1].data["sessionId"], *session);
        assert_eq!(seen[3].data["session"]["assignee"], "anna");
        assert_eq!(seen[5].data, json!({ "digest": digest }));
        let message = seen[2].data["message"].as_object().unwrap();
        let keys: Vec<_> = message.keys().map(String::as_str).collect();
        assert_eq!(keys, ["chatSessionId", "content", "createdAt", "id", "isAI", "sender"]);
    }
}

#[tokio::test]
async fn whoever_was_away_goes_on_where_it_was_on_any_gateway() {
    let stack = Stack::builder().gateways(2).persisters(2).start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let reader = Reader::begin(&stack, 0, None).await;
    let nothing_yet = reader.cursor();
    let sessions = [open(&client).await, open(&client).await, open(&client).await];
    for session in &sessions {
        say_all(&client, session, &numbered(0..5)).await;
    }
    for session in &sessions {
        reader.says(session, &numbered(0..5)).await;
    }
    let cursor = reader.end();
    for session in &sessions {
        say_all(&client, session, &numbered(5..10)).await;
    }
    client.ask("set-status", json!({ "sessionId": sessions[0], "status": "closed" })).await;
    let back = Reader::begin(&stack, 1, Some(&cursor)).await;
    for session in &sessions {
        back.says(session, &numbered(5..10)).await;
    }
    back.has("what was decided", |events| {
        events
            .iter()
            .any(|it| it.name == "session-updated" && it.data["session"]["status"] == "closed")
    })
    .await;
    assert!(back.seen().iter().all(|event| event.name != "session"), "they were told before");
    for session in &sessions {
        say_all(&client, session, &numbered(10..12)).await;
    }
    for session in &sessions {
        back.says(session, &numbered(5..12)).await;
    }
    for beginning in [nothing_yet.as_str(), "0", NO_PARTITION_YET] {
        let all = Reader::begin(&stack, 1, Some(beginning)).await;
        for session in &sessions {
            all.says(session, &numbered(0..12)).await;
            let events = all.seen();
            let first = events.iter().find(|it| it.data["sessionId"] == **session).unwrap();
            assert_eq!(first.name, "session", "a session comes before what is said in it");
        }
    }
}

#[tokio::test]
async fn more_than_a_page_is_told_whole() {
    let stack = Stack::builder().gateway_env("LIMITS", "off").start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let cursor = Reader::begin(&stack, 0, None).await.end();
    let session = open(&client).await;
    // More than a page in number, and then in bytes.
    let long = (0..150).map(|n| format!("{n} {}", "я".repeat(4_000)));
    let contents: Vec<_> = numbered(0..1_000).into_iter().chain(long).collect();
    // Some at a time: on a slow machine all at once would take longer than a send may.
    for some in contents.chunks(100) {
        let send = |it: &String| json!({ "sessionId": session, "content": it });
        let acks = client.burst("user_message", some.iter().map(send).collect()).await;
        assert!(acks.iter().all(is_taken));
    }
    let reader = Reader::begin(&stack, 0, Some(&cursor)).await;
    reader.says(&session, &contents).await;
}

#[tokio::test]
async fn nothing_is_missed_while_services_are_killed_and_connections_cut() {
    let builder = Stack::builder().gateways(2).persisters(2).proxy(Link::GatewayNats);
    let stack = builder.gateway_env("LIMITS", "off").start().await;
    let js_clients = JsClients::start().await;
    let client = js_clients.client(&stack.url(""), &["websocket"]).await;
    let session = open(&client).await;
    let reader = Reader::begin(&stack, 0, None).await;
    client.talk("user_message", &session, true).await;
    for round in 0..3 {
        stack.persister(round % 2).kill();
        stack.persister(round % 2).start().await;
        stack.proxies(Link::GatewayNats).for_each(Proxy::cut);
        eventually(SOON, "it is cut", async || client.refused().await > 0).await;
        stack.proxies(Link::GatewayNats).for_each(Proxy::mend);
        let before = client.accepted().await;
        eventually(SOON, "sends are taken again", async || client.accepted().await > before + 20)
            .await;
    }
    client.hush().await;
    let url = stack.url(&format!("/api/chats/{session}"));
    let history: Vec<Value> = stack.http().get(url).send().await.unwrap().json().await.unwrap();
    let stored: Vec<_> =
        history.iter().map(|it| it["content"].as_str().unwrap().to_owned()).collect();
    reader
        .has("everything", |_| {
            reader.said(&session).iter().collect::<BTreeSet<_>>().len() == stored.len()
        })
        .await;
    let mut told = Vec::new();
    for content in reader.said(&session) {
        if !told.contains(&content) {
            told.push(content);
        }
    }
    assert_eq!(told, stored);
}

#[tokio::test]
async fn a_cursor_of_another_database_says_what_begins_anew() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = open(&client).await;
    say(&client, &session, "Hello?").await;
    let foreign = {
        let other = Stack::start().await;
        let visitor = JsClients::start().await.client(&other.url(""), &["websocket"]).await;
        let reader = Reader::begin(&other, 0, None).await;
        open(&visitor).await;
        // One that has heard of no partition yet stands at the beginning.
        reader.has("a session", |events| events.iter().any(|it| it.name == "session")).await;
        reader.end()
    };
    let reader = Reader::begin(&stack, 0, Some(&foreign)).await;
    let first = &reader.seen()[0];
    assert_eq!(first.name, "reset", "{first:?}");
    assert!(!first.data["partitions"].as_array().unwrap().is_empty(), "{first:?}");
    reader.says(&session, &["Hello?".to_owned()]).await;
    for wrong in ["x", "AAAA", "AQA"] {
        let url = stack.url(&format!("/api/events?after={wrong}"));
        let answer = stack.http().get(url).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        let problem: Value = answer.json().await.unwrap();
        assert!(problem["detail"].as_str().unwrap().starts_with("after: "), "{problem}");
    }
    // Cut off at once behind the beginning it goes on, and nothing is new to it.
    let at_first = Reader::begin(&stack, 0, Some("0")).await.seen()[0].id.clone().unwrap();
    let again = Reader::begin(&stack, 0, Some(&at_first)).await;
    again.says(&session, &["Hello?".to_owned()]).await;
    assert_eq!(again.seen()[0].name, "ready");
    // Not only with what the log that is there now brought.
    stack.nats().kill().await;
    stack.nats().wipe();
    stack.nats().start().await;
    let again = json!({ "sessionId": session, "content": "Still?", "clientOffset": "again" });
    eventually(SOON, "a send is taken", async || {
        is_taken(&client.ask("user_message", again.clone()).await)
    })
    .await;
    let anew = Reader::begin(&stack, 0, Some(&foreign)).await;
    anew.says(&session, &["Hello?".to_owned(), "Still?".to_owned()]).await;
    // Of the two, where it was last counts.
    let here = reader.cursor();
    let request = stack.http().get(stack.url("/api/events?after=x"));
    let answer = request.header("last-event-id", here).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn the_end_of_a_session_is_told_also_where_something_was_refused_behind_it_meanwhile() {
    let stack = Stack::start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let reader = Reader::begin(&stack, 0, None).await;
    let cursor = reader.cursor();
    let session = open(&client).await;
    say(&client, &session, "Hello?").await;
    let erased = stack.http().delete(stack.url(&format!("/api/chats/{session}"))).send().await;
    assert_eq!(erased.unwrap().status(), 202);
    let is_ended = |events: &[Event]| events.iter().any(|event| event.name == "erased");
    reader.has("the end", is_ended).await;
    // As a commit does between a feed's look at where the partition stands and its look at what ended.
    let refused = r#"UPDATE "ErasedSession" SET "lastSequence" = "lastSequence" + 1000"#;
    sqlx::query(refused).execute(&stack.pool()).await.unwrap();
    let back = Reader::begin(&stack, 0, Some(&cursor)).await;
    back.has("the end", is_ended).await;
}

#[tokio::test]
async fn something_comes_every_fifteen_seconds_and_a_stop_ends_it() {
    let stack = Stack::start().await;
    let reader = Reader::begin(&stack, 0, None).await;
    let began = Instant::now();
    let mut comments = reader.comments.clone();
    tokio::time::timeout(HEARTBEAT_WITHIN, comments.wait_for(|count| *count > 0))
        .await
        .expect("a heartbeat")
        .unwrap();
    assert!(began.elapsed() > Duration::from_secs(10), "{:?}", began.elapsed());
    stack.gateway(0).ask_to_stop();
    tokio::time::timeout(SOON, reader.reading).await.expect("an end").unwrap();
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_ended_and_keeps_no_memory() {
    let builder = Stack::builder().gateway_env("LIMITS", "off").gateway_env("SLOW_SECONDS", "2");
    let stack = builder.start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = open(&client).await;
    let url = stack.url("/api/events");
    let lazy = stack.http().get(url).send().await.unwrap();
    let gateway = stack.gateway(0);
    let before = gateway.resident_bytes();
    let content = "x".repeat(8_000);
    let began = Instant::now();
    let mut is_ended = false;
    while !is_ended && began.elapsed() < 3 * SOON {
        let sends = vec![json!({ "sessionId": session, "content": content }); 100];
        client.burst("user_message", sends).await;
        is_ended = gateway.metric("chat_gateway_feeds").await == Some(0);
    }
    assert!(is_ended, "a reader that does not read is there for ever");
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 64 * 1024 * 1024, "{grown} bytes");
    drop(lazy);
}

/// Who reads all sessions answers each of them once, whatever ends between the question and the answer.
#[tokio::test]
async fn a_bot_answers_all_sessions_once_by_the_feed() {
    let stack = Stack::builder().gateways(2).start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let mut reader = Reader::begin(&stack, 0, None).await;
    let sessions = [open(&client).await, open(&client).await];
    let mut answered: HashMap<String, usize> = HashMap::new();
    for round in 0..3 {
        for session in &sessions {
            say(&client, session, &format!("question {round}")).await;
        }
        for session in &sessions {
            reader
                .has("the questions", |_| {
                    reader.said(session).contains(&format!("question {round}"))
                })
                .await;
        }
        for event in reader.seen() {
            let message = &event.data["message"];
            if event.name != "message" || message["sender"] != "user" {
                continue;
            }
            let session = event.data["sessionId"].as_str().unwrap();
            let url = stack.gateway(1).url(&format!("/api/chats/{session}/messages"));
            let body = json!({ "content": format!("to {}", message["content"]), "isAI": true });
            let request = stack.http().post(url).json(&body);
            let key = message["id"].as_str().unwrap();
            let answer = request.header("idempotency-key", key).send().await.unwrap();
            assert_eq!(answer.status(), 201);
            *answered.entry(key.to_owned()).or_default() += 1;
        }
        // It forgets how far it was, and is told some of it again.
        let cursor = reader.seen()[0].id.clone().unwrap();
        reader.end();
        reader = Reader::begin(&stack, 1, Some(&cursor)).await;
    }
    assert!(answered.values().any(|times| *times > 1), "nothing was answered twice");
    for session in &sessions {
        let url = stack.url(&format!("/api/chats/{session}"));
        let history: Vec<Value> = stack.http().get(url).send().await.unwrap().json().await.unwrap();
        assert_eq!(history.len(), 6, "{history:?}");
    }
}
