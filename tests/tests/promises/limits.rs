//! What one client, one address and one connection may do; what the real client sees of it stands in
//! `tests/client`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{JsClients, Stack, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(10);
/// A second, as the stacks below are told, and what a busy machine adds.
const CUT_WITHIN: Duration = Duration::from_secs(5);
const LIMITS: [(&str, &str); 8] = [
    ("MESSAGES_BURST", "20"),
    ("MESSAGES_PER_SECOND", "10"),
    ("NEW_SESSIONS_PER_MINUTE", "3"),
    ("SOCKETS_PER_ADDRESS", "5"),
    ("HANDSHAKES_PER_MINUTE", "30"),
    ("HTTP_MESSAGES_BURST", "6"),
    ("HTTP_MESSAGES_PER_SECOND", "2"),
    ("ROOMS_PER_SOCKET", "4"),
];

async fn limited(more: &[(&str, &str)]) -> Stack {
    let settings = LIMITS.iter().chain(more).chain(&[("LIMITS", "on")]);
    let builder =
        settings.fold(Stack::builder(), |builder, (name, value)| builder.env(name, value));
    builder.start().await
}

#[tokio::test]
async fn every_limit_answers_with_a_typed_error_and_disturbs_nobody() {
    let stack = limited(&[
        ("TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8"),
        ("CORS_ORIGINS", "https://admin.example, https://shop.example"),
    ])
    .await;
    let metrics = stack.gateway(0).ops_url("/metrics");
    let env: Vec<_> = LIMITS.into_iter().chain([("METRICS_URL", &*metrics)]).collect();
    stack.node_test("limits.test.mjs", &env).await;
    assert!(!stack.gateway(0).logs().contains("TRUSTED_PROXIES"), "{}", stack.gateway(0).logs());
}

/// How many were refused so, as the gateway counts them.
async fn refused(stack: &Stack, code: &str) -> u64 {
    let metrics = stack.http().get(stack.gateway(0).ops_url("/metrics")).send().await.unwrap();
    let name = format!("chat_gateway_refused_total{{code=\"{code}\"}} ");
    let metrics = metrics.text().await.unwrap();
    let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
    count.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn every_refusal_is_counted_whatever_was_asked_for() {
    let limits = [
        ("MESSAGES_BURST", "20"),
        ("MESSAGES_PER_SECOND", "1"),
        ("ROOMS_PER_SOCKET", "1"),
        ("LIMITS", "on"),
    ];
    let builder = Stack::builder().gateway_env("JWT_SECRET", &"x".repeat(32));
    let builder = limits.iter().fold(builder, |builder, (name, value)| builder.env(name, value));
    let stack = builder.start().await;
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let code = |answer: &Value| answer["error"]["code"].as_str().map(str::to_owned);
    client.stay(None).await;
    // For lack of room.
    let elsewhere = json!({ "sessionId": "22222222-2222-4222-8222-222222222222" });
    let answer = client.ask("init_session", elsewhere).await;
    assert_eq!(code(&answer).as_deref(), Some("too_large"), "{answer}");
    assert_eq!(refused(&stack, "too_large").await, 1);
    // For lack of a role: an event of an inbox, a request, a connection.
    let answer = client.ask("admin-connect", Value::Null).await;
    assert_eq!(code(&answer).as_deref(), Some("unauthorized"), "{answer}");
    assert_eq!(refused(&stack, "unauthorized").await, 1);
    let chats = stack.http().get(stack.url("/api/chats")).send().await.unwrap();
    assert_eq!((chats.status().as_u16(), refused(&stack, "unauthorized").await), (401, 2));
    connect_with_bad_token(&stack).await;
    assert_eq!(refused(&stack, "unauthorized").await, 3);
    // By an event, where nobody waits for an answer.
    client.tell("user_message", json!({ "content": "x" })).await;
    eventually(SOON, "it is told", async || client.count("message_error").await == 1).await;
    assert_eq!(refused(&stack, "invalid_payload").await, 1);
    // For coming too fast.
    let answers = client.burst("init_session", vec![json!({}); 40]).await;
    let too_fast = |answer: &&Value| code(answer).as_deref() == Some("rate_limited");
    let too_fast = answers.iter().filter(too_fast).count() as u64;
    assert!(too_fast >= 10, "{answers:?}");
    assert_eq!(refused(&stack, "rate_limited").await, too_fast);
}

/// By polling, packet by packet: `40` connects, `44` is a `connect_error`.
async fn connect_with_bad_token(stack: &Stack) {
    let url = stack.url("/socket.io/?EIO=4&transport=polling");
    let opened = stack.http().get(&url).send().await.unwrap().text().await.unwrap();
    let opened: Value = serde_json::from_str(&opened[1..]).unwrap();
    let url = format!("{url}&sid={}", opened["sid"].as_str().unwrap());
    stack.http().post(&url).body(r#"40{"token":"nonsense"}"#).send().await.unwrap();
    let answer = stack.http().get(&url).send().await.unwrap().text().await.unwrap();
    assert!(answer.contains("44{"), "{answer}");
}

#[tokio::test]
async fn spoofed_headers_change_nothing_and_are_warned_of_once() {
    let stack = limited(&[]).await;
    stack.node_test("spoof.test.mjs", &LIMITS).await;
    assert_eq!(stack.gateway(0).logs().matches("TRUSTED_PROXIES").count(), 1);
    assert!(!stack.gateway(0).logs().contains("192.0.2."), "addresses are not logged");
}

#[tokio::test]
async fn without_rates_a_warning_says_so() {
    let stack = Stack::start().await;
    let logs = stack.gateway(0).logs();
    assert_eq!(logs.lines().filter(|line| line.contains("LIMITS=off")).count(), 1, "{logs}");
    let stack = Stack::builder().env("LIMITS", "on").start().await;
    assert!(!stack.gateway(0).logs().contains("LIMITS=off"));
}

async fn connect(stack: &Stack) -> TcpStream {
    TcpStream::connect(("127.0.0.1", stack.gateway(0).port())).await.unwrap()
}

/// What comes until the gateway ends the connection, and how long that took.
async fn until_end(stream: &mut TcpStream) -> (Duration, String) {
    let start = Instant::now();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(CUT_WITHIN, stream.read_to_end(&mut answer)).await;
    // A reset is an end too.
    read.unwrap_or_else(|_| panic!("still open after {CUT_WITHIN:?}")).ok();
    (start.elapsed(), String::from_utf8_lossy(&answer).into_owned())
}

/// The first answer of a connection that stays open.
async fn answer(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 4_096];
    let read = tokio::time::timeout(SOON, stream.read(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn headers_that_come_byte_by_byte_are_cut_off_in_time() {
    let stack = Stack::builder().env("HEADER_SECONDS", "1").env("IDLE_SECONDS", "60").start().await;
    for (first, rest) in
        [("", "GET /health HTTP/1.1\r\nX: "), ("GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "GET /h")]
    {
        let mut stream = connect(&stack).await;
        stream.write_all(first.as_bytes()).await.unwrap();
        if !first.is_empty() {
            assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"));
        }
        stream.write_all(rest.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let dripping = tokio::spawn(async move {
            while writer.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let start = Instant::now();
        let mut answer = Vec::new();
        tokio::time::timeout(CUT_WITHIN, reader.read_to_end(&mut answer)).await.unwrap().ok();
        assert!(start.elapsed() > Duration::from_millis(500), "the time was given");
        dripping.await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_in_time_and_one_that_waits_for_an_answer_is_not() {
    let stack = Stack::builder().env("IDLE_SECONDS", "1").env("HEADER_SECONDS", "1").start().await;
    let mut silent = connect(&stack).await;
    let mut kept = connect(&stack).await;
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(answer(&mut kept).await.starts_with("HTTP/1.1 200"));
    let mut polling = connect(&stack).await;
    let open = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\n\r\n";
    polling.write_all(open).await.unwrap();
    let opened = answer(&mut polling).await;
    let sid = opened.split("\"sid\":\"").nth(1).unwrap().split('"').next().unwrap();
    let poll =
        format!("GET /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: x\r\n\r\n");
    // The first poll is answered with a ping.
    polling.write_all(poll.as_bytes()).await.unwrap();
    assert!(answer(&mut polling).await.starts_with("HTTP/1.1 200"));
    polling.write_all(poll.as_bytes()).await.unwrap();
    for stream in [&mut silent, &mut kept] {
        assert_eq!(until_end(stream).await.1, "");
    }
    // Both ends took at least a second in which the poll was open.
    let mut nothing = [0; 4_096];
    let read = polling.try_read(&mut nothing);
    assert!(
        read.is_err(),
        "the poll does not wait: {read:?} {}",
        String::from_utf8_lossy(&nothing)
    );
    assert!(stack.gateway(0).is_running());
}

#[tokio::test]
async fn headers_beyond_their_size_are_refused() {
    let stack = Stack::builder().env("MAX_HEADER_BYTES", "2000").start().await;
    for header in ["x".repeat(3_000), "x".repeat(1_000_000)] {
        let mut stream = connect(&stack).await;
        let request = format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {header}\r\n\r\n");
        // It may be refused before all of it is sent.
        stream.write_all(request.as_bytes()).await.ok();
        let (_, answer) = until_end(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    eventually(SOON, "others are served", async || {
        stack
            .http()
            .get(stack.url("/health"))
            .send()
            .await
            .is_ok_and(|answer| answer.status() == 200)
    })
    .await;
}

#[tokio::test]
async fn reads_that_are_under_way_are_limited_by_address_until_their_answer_is_taken() {
    let stack = Stack::builder()
        .env("LIMITS", "on")
        .env("HTTP_READS_AT_ONCE", "3")
        .env("SLOW_SECONDS", "600")
        .env("TRUSTED_PROXIES", "127.0.0.1")
        .start()
        .await;
    let session = long_history(&stack).await;
    for path in [
        format!("/api/chats/{session}"),
        format!("/api/chats/{session}/export"),
        "/api/chats".into(),
    ] {
        let read = async |client: &str| {
            let mut stream = connect_slowly(&stack).await;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {client}\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut head = [0; 160];
            tokio::time::timeout(SOON, stream.read_exact(&mut head)).await.unwrap().unwrap();
            (stream, String::from_utf8_lossy(&head).to_ascii_lowercase())
        };
        let mut under_way = Vec::new();
        for _ in 0..3 {
            let (stream, head) = read("192.0.2.1").await;
            assert!(head.starts_with("http/1.1 200"), "{head}");
            under_way.push(stream);
        }
        let (_, refused) = read("192.0.2.1").await;
        assert!(refused.starts_with("http/1.1 429"), "{path}: {refused}");
        assert!(refused.contains("retry-after: "), "{refused}");
        let (other, head) = read("192.0.2.2").await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        drop((under_way, other));
        eventually(SOON, "those that ended count no more", async || {
            read("192.0.2.1").await.1.starts_with("http/1.1 200")
        })
        .await;
    }
    // Short ones are taken at once, however many follow each other.
    let unknown = stack.url("/api/chats/nobody");
    for _ in 0..20 {
        assert_eq!(stack.http().get(&unknown).send().await.unwrap().status(), 200);
    }
}

/// A connection whose client keeps little of what it is sent.
async fn connect_slowly(stack: &Stack) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(([127, 0, 0, 1], stack.gateway(0).port()).into()).await.unwrap()
}

/// A session of which much is stored: 6 MB in 400 messages.
async fn long_history(stack: &Stack) -> String {
    let session = shared::ids::SessionId::random().to_string();
    let sql = r#"
        WITH s AS (
            INSERT INTO "ChatSession" ("id", "sessionId") VALUES ('c' || md5($1), $1) RETURNING "id"
        )
        INSERT INTO "Message" ("id", "sender", "content", "chatSessionId")
        SELECT 'm' || md5(s."id" || n), 'user', repeat('y', 16000), s."id"
        FROM s, generate_series(1, 400) n ORDER BY n"#;
    sqlx::query(sql).bind(&session).execute(&stack.pool()).await.unwrap();
    session
}

#[tokio::test]
async fn a_connection_ends_some_time_after_its_token_did() {
    const SECRET: &str = "a secret of this test alone of 32 bytes or more";
    let stack = Stack::builder().gateway_env("JWT_SECRET", SECRET).start().await;
    let gateway = tokio::task::spawn_blocking(|| tests::program("gateway")).await.unwrap();
    let mut command = tokio::process::Command::new(gateway);
    command.args(["token", "--sub", "alice", "--ttl", "5s"]).env("JWT_SECRET", SECRET);
    let printed = command.current_dir(std::env::temp_dir()).output().await.unwrap();
    let token = String::from_utf8(printed.stdout).unwrap();
    let url = stack.url("/socket.io/?EIO=4&transport=polling");
    let opened = stack.http().get(&url).send().await.unwrap().text().await.unwrap();
    let opened: Value = serde_json::from_str(&opened[1..]).unwrap();
    let url = format!("{url}&sid={}", opened["sid"].as_str().unwrap());
    let post =
        async |body: String| stack.http().post(&url).body(body).send().await.unwrap().status();
    assert_eq!(post(format!("40{}", json!({ "token": token.trim() }))).await, 200);
    assert_eq!(post(r#"42["admin-connect"]"#.to_owned()).await, 200);
    // It polls no more, and answers pings.
    eventually(3 * SOON, "it is gone", async || post("3".to_owned()).await == 400).await;
}
