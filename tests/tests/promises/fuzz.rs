//! Frames and requests that nobody thought of: whatever they are, nothing panics, no answer is a 5xx, memory
//! does not grow, and others go on talking.
//!
//! For a few seconds in the suite; `FUZZ_SECONDS=900 cargo test fuzz::` goes on for longer.

use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};
use tests::{Stack, is_taken};
use tokio::runtime::Builder;
use tokio_tungstenite::tungstenite::Message;

/// In the suite.
const SECONDS: u64 = 5;
/// Cases between two looks at the whole.
const CASES: u32 = 50;
/// A connection answers or ends within this time.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// What all of it may leave behind: caches and what the allocator keeps.
const GROWTH_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Asks whether the connection still answers; no other frame has this number.
const QUESTION: &str = r#"42987654321["nonsense"]"#;
const ANSWER: &str = "43987654321";

const EVENTS: [&str; 11] = [
    "init_session",
    "user_message",
    "admin_message",
    "admin-connect",
    "get-sessions",
    "get-all-sessions",
    "get-messages",
    "admin-join-session",
    "admin-leave-session",
    "toggle-ai-mode",
    "disconnect",
];
const FIELDS: [&str; 10] = [
    "sessionId",
    "content",
    "clientOffset",
    "after",
    "before",
    "limit",
    "cursor",
    "enabled",
    "token",
    "isAI",
];
/// Every route, its methods and its parameters.
const OPENAPI: &str = include_str!("../../../gateway/src/http/openapi/openapi.json");
/// What is no route of it.
const OTHER_PATHS: [&str; 4] = ["/socket.io/", "/metrics", "/", "/api/chats/"];
const OTHER_PARAMETERS: [&str; 5] = ["EIO", "transport", "sid", "t", "limit"];
/// Stands in a path for a session that exists.
const KNOWN: &str = "a-session-that-exists";

/// Any text, often one that means something somewhere.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        Just("00000000-0000-4000-8000-000000000000".to_owned()),
        Just("\u{0}\u{202e}\u{feff}🂡'\";--".to_owned()),
        Just("polling".to_owned()),
        Just("4".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        Just("x".repeat(9_000)),
    ]
}

/// Any JSON, often an object with fields that events have.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let field = prop_oneof![3 => proptest::sample::select(&FIELDS[..]).prop_map(str::to_owned), 1 => text()];
        let fields = proptest::collection::vec((field, inner.clone()), 0..6);
        prop_oneof![
            1 => proptest::collection::vec(inner, 0..6).prop_map(Value::from),
            3 => fields.prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// A packet as a client writes it, or nearly.
fn packet() -> impl Strategy<Value = String> {
    let name = prop_oneof![4 => proptest::sample::select(&EVENTS[..]).prop_map(str::to_owned), 1 => text()];
    let event = (name, proptest::collection::vec(value(), 0..3), proptest::option::of(0..1_000u32));
    let event = event.prop_map(|(name, arguments, ack)| {
        let array: Vec<_> = [Value::from(name)].into_iter().chain(arguments).collect();
        format!("42{}{}", ack.map(|ack| ack.to_string()).unwrap_or_default(), Value::from(array))
    });
    prop_oneof![6 => event, 2 => "[0-9]{0,4}(/[a-z]{0,3},)?[0-9-]{0,22}[\\[{\"a-z:,}\\]]{0,20}", 1 => text()]
}

/// A packet, or one that is cut, doubled or has a byte changed.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    (packet(), 0..6u8, any::<proptest::sample::Index>(), any::<u8>()).prop_map(
        |(packet, how, at, byte)| {
            let mut bytes = packet.into_bytes();
            let at = at.index(bytes.len().max(1));
            match how {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] = byte,
                2 => bytes.extend_from_within(..),
                _ => {}
            }
            bytes
        },
    )
}

#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// A method, a path and the names of its parameters.
type Route = (String, String, Vec<String>);

fn routes() -> Vec<Route> {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let mut routes = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let names = parameters.filter_map(|parameter| parameter["name"].as_str());
            let names = names.map(str::to_owned).collect();
            routes.push((method.to_uppercase(), path.clone(), names));
        }
    }
    assert!(routes.iter().any(|(method, path, _)| method == "GET" && path.ends_with("/export")));
    assert!(routes.iter().any(|(method, ..)| method == "DELETE"));
    routes
}

/// A route of the document, most of its parameters given, or another one.
fn route() -> impl Strategy<Value = Route> {
    let method = proptest::sample::select(&["PUT", "HEAD", "OPTIONS", "PATCH", "GET", "POST"][..]);
    let other = (method, proptest::sample::select(&OTHER_PATHS[..]), "[ -~]{0,40}").prop_map(
        |(method, path, more)| {
            let path = format!("{path}{}", more.replace(['#', '?'], ""));
            (method.to_owned(), path, OTHER_PARAMETERS.map(str::to_owned).to_vec())
        },
    );
    prop_oneof![4 => proptest::sample::select(routes()), 1 => other]
}

fn request() -> impl Strategy<Value = Request> {
    let session = prop_oneof![2 => Just(KNOWN.to_owned()), 1 => text()];
    let values = proptest::collection::vec(proptest::option::weighted(0.6, text()), 8);
    let header = proptest::sample::select(
        &[
            "authorization",
            "origin",
            "x-forwarded-for",
            "forwarded",
            "content-type",
            "idempotency-key",
            "accept",
            "if-none-match",
        ][..],
    );
    let headers = proptest::collection::vec((header, "[ -~]{0,60}"), 0..3);
    let frames = proptest::collection::vec(frame(), 0..4).prop_map(|frames| frames.join(&b'\x1e'));
    let body = prop_oneof![frames, value().prop_map(|value| value.to_string().into_bytes())];
    (route(), session, values, headers, body).prop_map(
        |((method, path, parameters), session, values, mut headers, body)| {
            let mut url = reqwest::Url::parse("http://gateway").unwrap();
            let segments = path.split('/').skip(1);
            let segments = segments.map(|part| if part.starts_with('{') { &session } else { part });
            url.path_segments_mut().unwrap().clear().extend(segments);
            let given = parameters.iter().zip(values);
            let given = given.filter_map(|(name, value)| Some((name, value?)));
            url.query_pairs_mut().extend_pairs(given);
            let path = format!("{}?{}", url.path(), url.query().unwrap_or_default());
            if body.first() == Some(&b'{') {
                headers.push(("content-type", "application/json".to_owned()));
            }
            Request { method, path, headers, body }
        },
    )
}

/// Sends frames over a websocket; the connection answers or ends.
async fn over_websocket(stack: &Stack, frames: Vec<Vec<u8>>) -> Result<(), String> {
    let url = stack.url("/socket.io/?EIO=4&transport=websocket").replacen("http", "ws", 1);
    let (mut socket, _) =
        tokio_tungstenite::connect_async(url).await.map_err(|error| error.to_string())?;
    socket.send(Message::text("40")).await.ok();
    for frame in frames {
        let message = String::from_utf8(frame)
            .map_or_else(|error| Message::binary(error.into_bytes()), Message::text);
        if socket.send(message).await.is_err() {
            return Ok(());
        }
    }
    socket.send(Message::text(QUESTION)).await.ok();
    let answered = async {
        while let Some(Ok(message)) = socket.next().await {
            match message.to_text().unwrap_or_default() {
                text if text.starts_with(ANSWER) => return,
                "2" => drop(socket.send(Message::text("3")).await),
                // The client left the namespace, or never was in it.
                text if text.starts_with("41") || text.starts_with("44") => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(ANSWERS_WITHIN, answered)
        .await
        .map_err(|_| "neither an answer nor an end".into())
}

/// Sends a request; where it is of a session that exists, of this one.
async fn over_http(
    stack: &Stack,
    client: &reqwest::Client,
    session: &str,
    request: Request,
) -> Result<(), String> {
    let method = request.method.parse::<reqwest::Method>().unwrap();
    let url = stack.url(&request.path.replace(KNOWN, session));
    let mut builder = client.request(method, url).body(request.body);
    for (name, value) in request.headers {
        builder = builder.header(name, value);
    }
    // A polling request waits for what is to come: no answer is no fault.
    match builder.timeout(Duration::from_secs(1)).send().await {
        Ok(answer) if answer.status().is_server_error() => Err(format!("{}", answer.status())),
        _ => Ok(()),
    }
}

/// Somebody else's conversation goes on; gives its session.
async fn others_go_on(stack: &Stack) -> String {
    let client = tests::JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].clone();
    let ack =
        client.ask("user_message", json!({ "sessionId": session, "content": "honest" })).await;
    assert!(is_taken(&ack), "{ack}");
    assert!(!stack.gateway(0).logs().contains("panicked"), "{}", stack.gateway(0).logs());
    assert!(!stack.persister(0).logs().contains("panicked"), "{}", stack.persister(0).logs());
    assert!(stack.gateway(0).is_running() && stack.persister(0).is_running());
    session.as_str().unwrap().to_owned()
}

fn runner() -> TestRunner {
    TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() })
}

fn failed(fault: String) -> TestCaseError {
    TestCaseError::fail(fault)
}

#[test]
fn nothing_that_a_client_sends_does_harm() {
    let time = env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let stack = runtime.block_on(Stack::start());
    let client = reqwest::Client::new();
    let start = Instant::now();
    let (cases, mut least) = (AtomicU64::new(0), u64::MAX);
    while start.elapsed() < Duration::from_secs(time) {
        let frames = proptest::collection::vec(frame(), 1..20);
        runner()
            .run(&frames, |frames| {
                cases.fetch_add(1, Ordering::Relaxed);
                runtime.block_on(over_websocket(&stack, frames)).map_err(failed)
            })
            .unwrap();
        // Some request has the one before erased.
        let session = runtime.block_on(others_go_on(&stack));
        runner()
            .run(&request(), |request| {
                cases.fetch_add(1, Ordering::Relaxed);
                let sent = over_http(&stack, &client, &session, request);
                runtime.block_on(sent).map_err(failed)
            })
            .unwrap();
        least = least.min(stack.gateway(0).resident_bytes());
    }
    runtime.block_on(others_go_on(&stack));
    let (cases, now) = (cases.into_inner(), stack.gateway(0).resident_bytes());
    println!("{cases} cases in {:?}: {least} to {now} bytes", start.elapsed());
    assert!(now.saturating_sub(least) < GROWTH_MAX_BYTES, "{least} to {now} bytes");
}
