//! What a stranger does to the connections of the gateway costs nobody else anything.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use serde_json::Value;
use tests::{Stack, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const SOON: Duration = Duration::from_secs(10);
/// A stranger, and somebody else.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
/// What forty readers of a trickle may cost: less than half a megabyte each, and some.
const MEMORY_MAX_BYTES: u64 = 32 * 1024 * 1024;

/// A connection from this address of the machine, its buffer for reading as small as it can be if so asked.
async fn connect(stack: &Stack, from: Ipv4Addr, slow: bool) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    if slow {
        socket.set_recv_buffer_size(4_096).unwrap();
    }
    let gateway = (IpAddr::V4(Ipv4Addr::LOCALHOST), stack.gateway(0).port());
    socket.connect(gateway.into()).await.unwrap()
}

/// The head and the body of an answer that says how long it is; none once the connection is closed.
async fn answer(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    let mut part = vec![0; 16_384];
    let reading = async {
        loop {
            let read = stream.read(&mut part).await.unwrap_or(0);
            if read == 0 {
                return None;
            }
            text.extend_from_slice(&part[..read]);
            let so_far = String::from_utf8_lossy(&text).into_owned();
            let Some((head, body)) = so_far.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if length.is_none_or(|length| body.len() >= length.parse().unwrap()) {
                return Some(so_far);
            }
        }
    };
    timeout(SOON, reading).await.expect("an answer in time")
}

async fn ask(stream: &mut TcpStream, request: &str) -> Option<String> {
    // It may be closed already.
    stream.write_all(request.as_bytes()).await.ok();
    answer(stream).await
}

async fn is_served(stack: &Stack, from: Ipv4Addr) -> bool {
    let mut stream = connect(stack, from, false).await;
    ask(&mut stream, HEALTH).await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// Whether the gateway closes a connection within this time; what it sends before is passed over.
async fn closed_within(stream: &mut TcpStream, within: Duration) -> bool {
    let reading = async { while stream.read(&mut [0; 4_096]).await.is_ok_and(|read| read > 0) {} };
    timeout(within, reading).await.is_ok()
}

async fn metric(stack: &Stack, sample: &str) -> f64 {
    let metrics = reqwest::get(stack.gateway(0).ops_url("/metrics")).await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

/// Opens a socket over polling; gives its sid.
async fn open_polling(stack: &Stack) -> String {
    let url = stack.url("/socket.io/?EIO=4&transport=polling");
    let open = stack.http().get(url).send().await.unwrap().text().await.unwrap();
    let open: Value = serde_json::from_str(&open[1..]).unwrap();
    open["sid"].as_str().unwrap().to_owned()
}

type Websocket = WebSocketStream<TcpStream>;

async fn websocket(stack: &Stack, query: &str) -> Websocket {
    let tcp = connect(stack, STRANGER, false).await;
    let url = format!("ws://127.0.0.1/socket.io/?EIO=4&transport=websocket{query}");
    tokio_tungstenite::client_async(url, tcp).await.unwrap().0
}

async fn send(socket: &mut Websocket, packet: &str) {
    // It may be closed already.
    timeout(SOON, socket.send(Message::text(packet))).await.unwrap().ok();
}

async fn text(socket: &mut Websocket) -> String {
    timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap().into_text().unwrap().to_string()
}

/// The next packet that is no ping.
async fn packet(socket: &mut Websocket) -> String {
    loop {
        let packet = text(socket).await;
        if packet != "2" {
            return packet;
        }
        send(socket, "3").await;
    }
}

/// A socket that begins as a websocket, and its sid.
async fn direct(stack: &Stack) -> (Websocket, String) {
    let mut socket = websocket(stack, "").await;
    let open: Value = serde_json::from_str(&text(&mut socket).await[1..]).unwrap();
    send(&mut socket, "40").await;
    // The first ping may come before.
    let connected = packet(&mut socket).await;
    assert!(connected.starts_with("40"), "{connected}");
    (socket, open["sid"].as_str().unwrap().to_owned())
}

/// One that begins as polling.
async fn upgraded(stack: &Stack) -> (Websocket, String) {
    let sid = open_polling(stack).await;
    let poll = stack.url(&format!("/socket.io/?EIO=4&transport=polling&sid={sid}"));
    stack.http().post(&poll).body("40").send().await.unwrap();
    let mut connected = String::new();
    // The first ping may come before.
    while !connected.contains("40{") {
        connected = stack.http().get(&poll).send().await.unwrap().text().await.unwrap();
    }
    let mut socket = websocket(stack, &format!("&sid={sid}")).await;
    send(&mut socket, "2probe").await;
    assert_eq!(text(&mut socket).await, "3probe");
    send(&mut socket, "5").await;
    (socket, sid)
}

/// A request for a websocket.
fn upgrade(query: &str) -> String {
    format!(
        "GET /socket.io/?EIO=4&transport=websocket{query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Requests that name a socket as its own upgrade would.
async fn decoys(stack: &Stack, sid: &str) -> Vec<TcpStream> {
    let mut decoys = Vec::new();
    for path in ["/health?", "/socket.io/?EIO=4&", "/api/chats?"] {
        let request = format!(
            "GET {path}transport=websocket&sid={sid} HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"
        );
        let mut decoy = connect(stack, NEIGHBOUR, false).await;
        ask(&mut decoy, &request).await;
        decoys.push(decoy);
    }
    // A real one; the library takes it and lets go of it.
    let mut decoy = connect(stack, NEIGHBOUR, false).await;
    let upgrade = upgrade(&format!("&sid={sid}"));
    ask(&mut decoy, &upgrade).await;
    decoys.push(decoy);
    decoys
}

#[tokio::test]
async fn a_flooding_socket_is_ended_on_its_own_connection_whoever_names_it() {
    let stack = Stack::builder()
        .env("LIMITS", "on")
        .env("MESSAGES_PER_SECOND", "1")
        .env("MESSAGES_BURST", "1")
        .start()
        .await;
    for (flooder, sid) in [direct(&stack).await, upgraded(&stack).await] {
        let mut decoys = decoys(&stack, &sid).await;
        let (mut sending, mut receiving) = flooder.split();
        let flood = tokio::spawn(async move {
            while sending.send(Message::text(r#"42["flood"]"#)).await.is_ok() {}
        });
        let ended = async { while receiving.next().await.is_some_and(|next| next.is_ok()) {} };
        timeout(SOON, ended).await.expect("the flooder is ended");
        timeout(SOON, flood).await.expect("and cannot send any more").unwrap();
        let health = ask(&mut decoys[0], HEALTH).await;
        assert!(health.is_some(), "a connection that only named it goes on");
    }
}

#[tokio::test]
async fn reads_are_counted_however_their_path_is_written() {
    let stack = Stack::builder()
        .env("LIMITS", "on")
        .env("HTTP_READS_PER_SECOND", "1")
        .env("HTTP_READS_BURST", "1")
        .start()
        .await;
    for path in ["/api/chats", "//api/chats", "/api/chats/", "///api/chats//"] {
        // One of them at most, and one more each second that this takes.
        let reads = (0..8).map(async |_| stack.http().get(stack.url(path)).send().await.unwrap());
        let reads = futures_util::future::join_all(reads).await;
        assert!(reads.iter().any(|read| read.status() == 429), "{path}");
    }
}

#[tokio::test]
async fn requests_beyond_what_an_address_may_ask_for_end_their_connection() {
    const PIPELINED: usize = 200;
    let stack = Stack::builder()
        .env("LIMITS", "on")
        .env("HTTP_REQUESTS_PER_SECOND", "1")
        .env("HTTP_REQUESTS_BURST", "20")
        .start()
        .await;
    for request in ["GET /nothing", "GET /ready", "GET /socket.io/?EIO=4&transport=polling&sid=x"] {
        let start = Instant::now();
        let mut stream = connect(&stack, STRANGER, false).await;
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(PIPELINED);
        stream.write_all(request.as_bytes()).await.ok();
        let mut answers = Vec::new();
        let reading = stream.read_to_end(&mut answers);
        // It may be reset: requests stand behind the one that is refused.
        timeout(SOON, reading).await.expect("it is closed").ok();
        let answered = String::from_utf8_lossy(&answers).matches("HTTP/1.1 ").count();
        // A burst, the refusal, and one a second.
        let most = 22 + start.elapsed().as_secs();
        assert!(answered as u64 <= most, "{answered} answers");
    }
    assert!(is_served(&stack, NEIGHBOUR).await);
    eventually(SOON, "it is refused", async || !is_served(&stack, STRANGER).await).await;
}

#[tokio::test]
async fn a_request_that_offers_another_protocol_is_answered_in_this_one() {
    let stack = Stack::builder().gateway_env("STORED_WAIT", "30s").start().await;
    let session = long_history(&stack, 1, 10).await;
    let body = r#"{"content":"Hello!"}"#;
    for offer in ["h2c", "TLS/1.0, h2c"] {
        let mut stream = connect(&stack, NEIGHBOUR, false).await;
        let request = format!(
            "POST /api/chats/{session}/messages HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: {offer}\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = ask(&mut stream, &request).await.unwrap_or_default();
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
}

#[tokio::test]
async fn what_a_request_names_is_not_kept() {
    const REQUESTS: usize = 3_000;
    const MOST_BYTES: u64 = 16 * 1024 * 1024;
    let stack = Stack::start().await;
    let name = "x".repeat(15_000);
    for path in ["/health?", "/socket.io/?EIO=4&", "/api/nothing?"] {
        let mut stream = connect(&stack, STRANGER, false).await;
        let before = stack.gateway(0).resident_bytes();
        for n in 0..REQUESTS {
            let request =
                format!("GET {path}transport=websocket&sid={n}{name} HTTP/1.1\r\nHost: x\r\n\r\n");
            assert!(ask(&mut stream, &request).await.is_some(), "kept open");
        }
        let grown = stack.gateway(0).resident_bytes().saturating_sub(before);
        assert!(grown < MOST_BYTES, "{path}: {grown} bytes more");
    }
}

/// The gateway may open so many files; the test itself as many as it can.
fn limit_files(stack: &Stack, files: u64) {
    let own = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: own.maximum, ..own }).unwrap();
    let gateway = Pid::from_raw(stack.gateway(0).id().try_into().unwrap());
    let limit = Rlimit { current: Some(files), maximum: Some(files) };
    prlimit(gateway, Resource::Nofile, limit).unwrap();
}

#[tokio::test]
async fn connections_of_one_peer_leave_room_for_others_below_the_limit_of_open_files() {
    const FILES: u64 = 400;
    const CONNECTIONS: usize = 600;
    let stack = Stack::builder()
        .env("LIMITS", "on")
        .env("CONNECTIONS_PER_ADDRESS", "5000")
        .env("HEADER_SECONDS", "60")
        .start()
        .await;
    limit_files(&stack, FILES);
    // Silent ones, and some that asked once.
    for asks in [false, true] {
        let mut streams = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = connect(&stack, STRANGER, false).await;
            if asks {
                ask(&mut stream, HEALTH).await;
            }
            streams.push(stream);
        }
        let start = Instant::now();
        assert!(is_served(&stack, NEIGHBOUR).await);
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        assert!(!is_served(&stack, STRANGER).await, "one peer has half of the room");
        let half = metric(&stack, "chat_gateway_client_connections").await;
        assert!((160.0..180.0).contains(&half), "{half} are open");
        drop(streams);
        eventually(SOON, "the stranger is served again", async || {
            is_served(&stack, STRANGER).await
        })
        .await;
    }
    let refused = r#"chat_gateway_refused_connections_total{reason="peer"}"#;
    assert!(metric(&stack, refused).await >= 800.0);
}

#[tokio::test]
async fn a_proxy_that_is_trusted_has_all_the_room_and_beyond_it_connections_are_closed_at_once() {
    const FILES: u64 = 200;
    let stack = Stack::builder()
        .env("LIMITS", "on")
        .env("SOCKETS_PER_ADDRESS", "2")
        .env("CONNECTIONS_PER_ADDRESS", "4")
        .env("TRUSTED_PROXIES", "127.0.0.2")
        .start()
        .await;
    limit_files(&stack, FILES);
    let mut of_stranger = Vec::new();
    for _ in 0..4 {
        of_stranger.push(connect(&stack, STRANGER, false).await);
    }
    let fifth = &mut connect(&stack, STRANGER, false).await;
    assert!(closed_within(fifth, SOON).await, "the fifth of a peer");
    let mut of_proxy = Vec::new();
    for n in 0..100 {
        let mut stream = connect(&stack, NEIGHBOUR, false).await;
        assert!(ask(&mut stream, HEALTH).await.is_some(), "connection {n} of the proxy");
        of_proxy.push(stream);
    }
    for _ in 0..100 {
        of_proxy.push(connect(&stack, NEIGHBOUR, false).await);
    }
    let files = r#"chat_gateway_refused_connections_total{reason="files"}"#;
    eventually(SOON, "there is no room", async || metric(&stack, files).await > 0.0).await;
    drop((of_stranger, of_proxy));
    eventually(SOON, "everybody is served again", async || {
        is_served(&stack, STRANGER).await && is_served(&stack, NEIGHBOUR).await
    })
    .await;
}

#[tokio::test]
async fn a_first_request_has_its_time_from_the_beginning_of_its_connection() {
    let stack = Stack::builder().env("HEADER_SECONDS", "4").env("IDLE_SECONDS", "60").start().await;
    let mut silent = connect(&stack, STRANGER, false).await;
    let mut kept = connect(&stack, STRANGER, false).await;
    assert!(ask(&mut kept, HEALTH).await.is_some());
    assert!(closed_within(&mut silent, SOON).await, "one that says nothing");
    assert!(!closed_within(&mut kept, Duration::from_secs(5)).await, "one that asked before");
    assert!(ask(&mut kept, HEALTH).await.is_some());
}

fn post(path: &str, length: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{length}\r\n\r\n")
}

#[tokio::test]
async fn bodies_that_stop_or_drip_end_in_time_and_slow_ones_arrive() {
    let stack =
        Stack::builder().env("SLOW_SECONDS", "2").env("MIN_BYTES_PER_SECOND", "1000").start().await;
    let sids = [open_polling(&stack).await, open_polling(&stack).await, open_polling(&stack).await];
    let [stops, drips, slow] =
        sids.map(|sid| format!("/socket.io/?EIO=4&transport=polling&sid={sid}"));
    let rest = "/api/chats/00000000-0000-4000-8000-000000000000/messages";
    let stopping = [
        (post(&stops, "Content-Length: 4"), "42["),
        (post(&stops, "Transfer-Encoding: chunked"), "3\r\n42["),
        (post(rest, "Content-Length: 20"), r#"{"content": "#),
    ];
    for (head, body) in stopping {
        let mut stream = connect(&stack, STRANGER, false).await;
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        assert!(closed_within(&mut stream, SOON).await, "{head}");
    }
    let mut dripping = connect(&stack, STRANGER, false).await;
    dripping.write_all(post(&drips, "Content-Length: 100000").as_bytes()).await.unwrap();
    let (mut reading, mut writing) = dripping.into_split();
    let drip = tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_millis(100));
        while writing.write_all(b"4").await.is_ok() {
            every.tick().await;
        }
    });
    let ended = async { while reading.read(&mut [0; 100]).await.is_ok_and(|read| read > 0) {} };
    timeout(SOON, ended).await.expect("one that drips ends");
    timeout(SOON, drip).await.expect("and takes no more").unwrap();
    assert!(metric(&stack, "chat_gateway_slow_bodies_total").await >= 3.0);

    // Twice the least rate, for twice the time.
    let body = format!("42[\"{}\"]", "x".repeat(8_000));
    let mut stream = connect(&stack, STRANGER, false).await;
    let length = format!("Content-Length: {}", body.len());
    stream.write_all(post(&slow, &length).as_bytes()).await.unwrap();
    let mut every = tokio::time::interval(Duration::from_millis(100));
    for part in body.as_bytes().chunks(200) {
        every.tick().await;
        stream.write_all(part).await.unwrap();
    }
    let answer = answer(&mut stream).await.expect("an answer");
    assert!(answer.ends_with("ok"), "{answer}");
}

/// A session with a long history.
async fn long_history(stack: &Stack, messages: i32, characters: i32) -> String {
    let session = shared::ids::SessionId::random().to_string();
    let sql = r#"
        WITH s AS (
            INSERT INTO "ChatSession" ("id", "sessionId") VALUES ('c' || md5($1), $1) RETURNING "id"
        )
        INSERT INTO "Message" ("id", "sender", "content", "chatSessionId")
        SELECT 'm' || md5(s."id" || n), 'user', n || repeat('y', $3 * (n % 2)), s."id"
        FROM s, generate_series(1, $2) n ORDER BY n"#;
    let insert = sqlx::query(sql).bind(&session).bind(messages).bind(characters);
    insert.execute(&stack.pool()).await.unwrap();
    session
}

#[tokio::test]
async fn those_who_read_a_trickle_cost_little_and_are_ended() {
    const READERS: usize = 40;
    /// An eighth of what they ask for: of each the page that it is given, the next one, and the rows that this is made of.
    const GROWN_MAX_BYTES: u64 = READERS as u64 * 600 * 16_000 / 8;
    let stack = Stack::builder()
        .env("SLOW_SECONDS", "3")
        .env("MIN_BYTES_PER_SECOND", "100000")
        .start()
        .await;
    let session = long_history(&stack, 600, 16_000).await;
    let chat = format!("/api/chats/{session}");
    for path in [chat.clone(), format!("{chat}?limit=1000"), "/api/chats".into()] {
        let before = stack.gateway(0).resident_bytes();
        let ended = metric(&stack, "chat_gateway_slow_readers_total").await;
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..READERS {
            let mut stream = connect(&stack, STRANGER, true).await;
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut status = [0; 12];
            timeout(SOON, stream.read_exact(&mut status)).await.expect("in time").unwrap();
            assert_eq!(&status, b"HTTP/1.1 200");
            readers.spawn(async move {
                let mut every = tokio::time::interval(Duration::from_millis(100));
                while stream.read(&mut [0; 256]).await.is_ok_and(|read| read > 0) {
                    every.tick().await;
                }
            });
        }
        let mut most = 0;
        eventually(4 * SOON, "they are ended", async || {
            most = most.max(stack.gateway(0).resident_bytes());
            let all = ended + f64::from(u32::try_from(READERS).unwrap());
            metric(&stack, "chat_gateway_slow_readers_total").await >= all
        })
        .await;
        let grown = most.saturating_sub(before);
        println!("{path}: {} KiB more", grown / 1024);
        assert!(grown < GROWN_MAX_BYTES, "{path}: {grown} bytes more");
        readers.shutdown().await;
    }
}

#[tokio::test]
async fn histories_are_whole_however_long_their_messages_are() {
    const MESSAGES: i32 = 1_500;
    let stack = Stack::start().await;
    for characters in [0, 400, 8_000, 600_000] {
        let messages = if characters > 8_000 { 20 } else { MESSAGES };
        let session = long_history(&stack, messages, characters).await;
        let read = async |path: String| {
            let answer = stack.http().get(stack.url(&path)).send().await.unwrap();
            let link = answer.headers().contains_key("link");
            (link, answer.json::<Value>().await.unwrap())
        };
        let wanted: Vec<_> = (1..=messages).map(|n| n.to_string()).collect();
        let numbers = |list: &Value| -> Vec<String> {
            let content = |message: &Value| message["content"].as_str().unwrap().to_owned();
            let list = list.as_array().unwrap().iter().map(content);
            list.map(|content| content.trim_end_matches('y').to_owned()).collect()
        };
        let chat = format!("/api/chats/{session}");
        let (_, whole) = read(chat.clone()).await;
        assert_eq!(numbers(&whole), wanted, "{characters}");
        let (link, page) = read(format!("{chat}?limit=1000")).await;
        let first = wanted.len().min(1_000);
        assert_eq!((link, numbers(&page)), (first < wanted.len(), wanted[..first].to_vec()));
        let (_, exported) = read(format!("{chat}/export")).await;
        assert_eq!(numbers(&exported["messages"]), wanted);
        let (_, all) = read("/api/chats".into()).await;
        let session = all.as_array().unwrap().iter().find(|one| one["sessionId"] == *session);
        assert_eq!(numbers(&session.unwrap()["messages"]), wanted);
    }
}

/// A polling client that polls only when it is told to.
struct Poller {
    http: reqwest::Client,
    url: String,
}

impl Poller {
    async fn open(stack: &Stack, from: Ipv4Addr) -> Self {
        let http = reqwest::Client::builder().local_address(IpAddr::V4(from)).build().unwrap();
        let url = stack.url("/socket.io/?EIO=4&transport=polling");
        let open = http.get(&url).send().await.unwrap().text().await.unwrap();
        let open: Value = serde_json::from_str(&open[1..]).unwrap();
        let poller = Self { http, url: format!("{url}&sid={}", open["sid"].as_str().unwrap()) };
        poller.post("40").await;
        // The first ping comes at once too, before or after: a poll that it answers carries nothing else.
        let (mut is_pinged, mut is_connected) = (false, false);
        let polling = async {
            while !is_pinged || !is_connected {
                for packet in poller.poll().await.expect("an answer").split('\u{1e}') {
                    is_pinged |= packet == "2";
                    is_connected |= packet.starts_with("40{");
                }
            }
        };
        timeout(SOON, polling).await.expect("in time");
        poller
    }

    /// It may be ended already.
    async fn post(&self, packet: &str) {
        self.http.post(&self.url).body(packet.to_owned()).send().await.ok();
    }

    async fn poll(&self) -> Option<String> {
        let answer = self.http.get(&self.url).send().await.ok()?;
        let heard = if answer.status() == 200 { answer.text().await.ok()? } else { return None };
        if heard.split('\u{1e}').any(|packet| packet == "2") {
            self.post("3").await;
        }
        Some(heard)
    }

    /// Polls until something is heard; all that was heard until then.
    async fn heard(&self, what: &str) -> String {
        let mut heard = String::new();
        let polling = async {
            while !heard.contains(what) {
                heard += &self.poll().await.expect("an answer");
            }
        };
        timeout(SOON, polling).await.expect("in time");
        heard
    }

    /// Comes back to a session as one who has nothing of it.
    async fn resume(&self, ack: u32, session: &str) {
        let asked = serde_json::json!(["init_session", { "sessionId": session, "after": "x" }]);
        self.post(&format!("42{ack}{asked}")).await;
    }
}

/// The sockets that were ended because too much waited for them, by the bound.
async fn overfull(stack: &Stack, bound: &str) -> f64 {
    metric(stack, &format!("chat_gateway_overfull_sockets_total{{bound=\"{bound}\"}}")).await
}

#[tokio::test]
async fn answers_that_nobody_fetches_cost_little_and_end_their_socket() {
    let stack = Stack::start().await;
    let session = long_history(&stack, 500, 16_000).await;
    let silent = Poller::open(&stack, STRANGER).await;
    let before = stack.gateway(0).resident_bytes();
    for ack in 0..180 {
        silent.resume(ack, &session).await;
    }
    let mut most = 0;
    let sid = silent.url.rsplit('=').next().unwrap();
    let elsewhere = stack.url(&format!("/openapi.json?transport=polling&sid={sid}"));
    eventually(6 * SOON, "it is ended", async || {
        // It answers pings that it never heard, and reads other things in its own name.
        silent.post("3").await;
        silent.http.get(&elsewhere).send().await.unwrap().text().await.unwrap();
        most = most.max(stack.gateway(0).resident_bytes());
        overfull(&stack, "untaken").await > 0.1
    })
    .await;
    let grown = most.saturating_sub(before);
    println!("{} KiB more", grown / 1024);
    assert!(grown < MEMORY_MAX_BYTES, "{grown} bytes more");
    assert_eq!(silent.poll().await, None, "it is gone");

    // Who reads is given what it asks for: of a resume so much at a time, of a history all of it at once.
    let reader = Poller::open(&stack, NEIGHBOUR).await;
    for ack in 0..5 {
        reader.resume(ack, &session).await;
        let heard = reader.heard(&format!("43{ack}[")).await;
        assert!((200_000..300_000).contains(&heard.len()), "{} bytes", heard.len());
        assert!(heard.contains(r#""more":true"#), "the rest is read over REST");
    }
    // More than a socket's share, also where it comes as an event and as an ack.
    let session = long_history(&stack, 500, 20_000).await;
    let asked = serde_json::json!(["get-messages", { "sessionId": session }]);
    reader.post(&format!("4210{asked}")).await;
    let heard = reader.heard("4310[").await;
    assert!(heard.len() > 5_000_000, "{} bytes", heard.len());
    assert!(overfull(&stack, "socket").await < 0.1);
}

#[tokio::test]
async fn what_waits_for_the_sockets_of_an_address_is_bounded_and_disturbs_no_other() {
    const SOCKETS: usize = 12;
    let stack = Stack::builder().env("WAITING_BYTES_PER_ADDRESS", "900000").start().await;
    let session = long_history(&stack, 500, 16_000).await;
    let mut strangers = Vec::new();
    for _ in 0..SOCKETS {
        let stranger = Poller::open(&stack, STRANGER).await;
        stranger.resume(0, &session).await;
        strangers.push(stranger);
    }
    let neighbour = Poller::open(&stack, NEIGHBOUR).await;
    neighbour.resume(0, &session).await;
    // Three of some quarter of a megabyte each are left to it.
    eventually(3 * SOON, "the others are ended", async || overfull(&stack, "address").await > 8.5)
        .await;
    assert!(neighbour.heard("430[").await.len() > 200_000);
    let mut left = 0;
    for stranger in &strangers {
        left += usize::from(stranger.poll().await.is_some());
    }
    assert_eq!(left, 3);
    assert!(overfull(&stack, "address").await < 9.5 && overfull(&stack, "all").await < 0.1);
}

#[tokio::test]
async fn what_is_said_in_a_full_room_waits_for_its_strangers_only_up_to_the_share_of_their_address()
{
    const STRANGERS: u32 = 60;
    let stack = Stack::builder().env("WAITING_BYTES_PER_ADDRESS", "4000000").start().await;
    let speaker = Poller::open(&stack, NEIGHBOUR).await;
    speaker.post(r#"420["init_session",{}]"#).await;
    let joined = speaker.heard("430[").await;
    let session = joined.split('"').nth(3).unwrap().to_owned();
    let join = serde_json::json!(["init_session", { "sessionId": session }]);
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        let stranger = Poller::open(&stack, STRANGER).await;
        stranger.post(&format!("420{join}")).await;
        assert!(stranger.heard("430[").await.contains(&session));
        strangers.push(stranger);
    }
    let before = stack.gateway(0).resident_bytes();
    let content = "\u{1f980}".repeat(8_000);
    let said = serde_json::json!(["user_message", { "sessionId": session, "content": content }]);
    let mut most = 0;
    for n in 0..120 {
        speaker.post(&format!("42{n}{said}")).await;
        speaker.heard(&format!("43{n}[")).await;
        most = most.max(stack.gateway(0).resident_bytes());
    }
    let grown = most.saturating_sub(before);
    println!("{} KiB more", grown / 1024);
    assert!(grown < MEMORY_MAX_BYTES, "{grown} bytes more");
    // Who is ended is gone at once, with what waited.
    let few = f64::from(STRANGERS) / 2.0;
    eventually(SOON, "the ended are gone", async || {
        metric(&stack, "chat_gateway_sockets").await < few
    })
    .await;
    assert!(overfull(&stack, "address").await >= few);
    assert!(metric(&stack, "chat_gateway_waiting_bytes").await <= 4_000_000.0);
}

impl Poller {
    /// Polls on a connection of its own, and reads no more than the beginning of the answer.
    async fn begin_poll(&self, stack: &Stack, from: Ipv4Addr) -> TcpStream {
        let path = self.url.strip_prefix(&stack.url("")).unwrap();
        let mut stream = connect(stack, from, true).await;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut status = [0; 12];
        timeout(SOON, stream.read_exact(&mut status)).await.expect("in time").unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
        stream
    }
}

/// What is left of an answer; none if it breaks off.
async fn rest_of_answer(stream: &mut TcpStream) -> Option<String> {
    let mut rest = answer(stream).await?;
    rest.insert_str(0, "HTTP/1.1 200");
    Some(rest)
}

#[tokio::test]
async fn an_answer_to_polling_waits_until_its_client_has_taken_it() {
    const SOCKETS: usize = 12;
    let stack = Stack::builder()
        .env("WAITING_BYTES_PER_ADDRESS", "900000")
        .env("SLOW_SECONDS", "600")
        .start()
        .await;
    let session = long_history(&stack, 500, 16_000).await;
    let mut answers = Vec::new();
    for _ in 0..SOCKETS {
        let stranger = Poller::open(&stack, STRANGER).await;
        stranger.resume(0, &session).await;
        answers.push(stranger.begin_poll(&stack, STRANGER).await);
    }
    // Three of some quarter of a megabyte each are left to it.
    eventually(3 * SOON, "the others are ended", async || overfull(&stack, "address").await > 8.5)
        .await;
    let mut whole = 0;
    for answer in &mut answers {
        whole += usize::from(rest_of_answer(answer).await.is_some());
    }
    assert_eq!(whole, 3, "what leaves for a socket that ended breaks off");
    eventually(SOON, "nothing waits", async || {
        metric(&stack, "chat_gateway_waiting_bytes").await < 0.5
    })
    .await;
}

#[tokio::test]
async fn a_poll_is_answered_when_the_last_answer_has_left() {
    let stack =
        Stack::builder().env("SLOW_SECONDS", "4").env("MIN_BYTES_PER_SECOND", "1").start().await;
    let session = long_history(&stack, 500, 16_000).await;
    for takes_it in [true, false] {
        let poller = Poller::open(&stack, STRANGER).await;
        poller.resume(0, &session).await;
        let mut first = poller.begin_poll(&stack, STRANGER).await;
        poller.post(r#"421["nothing",{}]"#).await;
        let taking = async {
            if takes_it {
                let first = rest_of_answer(&mut first).await.expect("the whole of it");
                assert!(first.contains("430["));
            }
        };
        let (next, ()) = tokio::join!(timeout(3 * SOON, poller.poll()), taking);
        let next = next.expect("in time");
        assert_eq!(next.as_ref().is_some_and(|next| next.contains("431[")), takes_it, "{next:?}");
    }
    eventually(SOON, "one goes on", async || metric(&stack, "chat_gateway_sockets").await < 1.5)
        .await;
}

#[tokio::test]
async fn a_poll_whose_answer_breaks_off_ends_its_socket_as_what_was_in_it_is_lost() {
    let stack = Stack::builder().env("SLOW_SECONDS", "600").start().await;
    let session = long_history(&stack, 500, 16_000).await;
    let poller = Poller::open(&stack, STRANGER).await;
    poller.resume(0, &session).await;
    drop(poller.begin_poll(&stack, STRANGER).await);
    eventually(SOON, "it is gone", async || metric(&stack, "chat_gateway_sockets").await < 0.5)
        .await;
    assert_eq!(poller.poll().await, None);

    // Whose client ends it gives up what is on its way.
    let poller = Poller::open(&stack, STRANGER).await;
    poller.resume(0, &session).await;
    let mut answer = poller.begin_poll(&stack, STRANGER).await;
    poller.post("1").await;
    eventually(SOON, "nothing waits", async || {
        metric(&stack, "chat_gateway_sockets").await < 0.5
            && metric(&stack, "chat_gateway_waiting_bytes").await < 0.5
    })
    .await;
    assert_eq!(rest_of_answer(&mut answer).await, None);
}

/// The connections and requests that were ended for what they sent.
async fn excessive(stack: &Stack, reason: &str) -> f64 {
    let sample = format!("chat_gateway_excessive_packets_total{{reason=\"{reason}\"}}");
    metric(stack, &sample).await
}

/// Reads until the connection ends; `false` if it does not.
async fn ends(socket: &mut Websocket) -> bool {
    let reading = async { while socket.next().await.is_some_and(|packet| packet.is_ok()) {} };
    timeout(SOON, reading).await.is_ok()
}

#[tokio::test]
async fn names_of_namespaces_that_are_not_served_come_back_only_where_they_are_short() {
    let stack = Stack::start().await;
    let before = stack.gateway(0).resident_bytes();
    let long = "n".repeat(900_000);
    for join in ["3", "40"] {
        let mut socket = websocket(&stack, "").await;
        text(&mut socket).await;
        send(&mut socket, join).await;
        send(&mut socket, "40/short?a=b,").await;
        while !packet(&mut socket).await.starts_with("44/short?a=b,") {}
        for _ in 0..300 {
            send(&mut socket, &format!("40/{long},")).await;
        }
        assert!(ends(&mut socket).await, "a websocket ends, joined by `{join}`");
    }
    assert!(excessive(&stack, "namespace").await > 1.5);

    for join in ["3", "40"] {
        let sid = open_polling(&stack).await;
        let poll = stack.url(&format!("/socket.io/?EIO=4&transport=polling&sid={sid}"));
        for body in [join.to_owned(), format!("40/short,\u{1e}40/{long},")] {
            stack.http().post(&poll).body(body).send().await.unwrap();
        }
        let status = stack.http().post(&poll).body("3").send().await.unwrap().status();
        assert_eq!(status, 400, "polling ends, joined by `{join}`");
    }
    assert!(excessive(&stack, "namespace").await > 3.5);
    let grown = stack.gateway(0).resident_bytes().saturating_sub(before);
    assert!(grown < MEMORY_MAX_BYTES, "{grown} bytes more");
    assert!(is_served(&stack, NEIGHBOUR).await);
}

#[tokio::test]
async fn a_few_namespaces_that_are_not_served_are_refused_and_more_end_whoever_asks() {
    const FEW: usize = 8;
    let stack = Stack::start().await;
    let (mut socket, _) = direct(&stack).await;
    let (mut other, _) = upgraded(&stack).await;
    for (at, socket) in [&mut socket, &mut other].into_iter().enumerate() {
        for n in 0..FEW {
            send(socket, &format!("40/a{n},")).await;
            assert_eq!(
                packet(socket).await,
                format!(r#"44/a{n},{{"message":"Invalid namespace"}}"#)
            );
        }
        send(socket, r#"420["init_session",{}]"#).await;
        assert!(packet(socket).await.starts_with("430"), "{at} goes on");
        send(socket, "40/again,").await;
        assert!(ends(socket).await, "{at}");
    }
    assert!(excessive(&stack, "namespaces").await > 1.5);

    // Over polling, many at once, or a few at a time by one that leaves the default namespace and comes back.
    let many = Poller::open(&stack, STRANGER).await;
    many.post(&vec!["40/a,"; 4_000].join("\u{1e}")).await;
    let mut heard = String::new();
    while let Some(more) = timeout(SOON, many.poll()).await.expect("in time") {
        heard += &more;
    }
    assert!(heard.matches("44/a,").count() <= FEW, "{} bytes", heard.len());
    let shedding = Poller::open(&stack, STRANGER).await;
    for _ in 0..FEW {
        shedding.post("40/a,\u{1e}41").await;
        shedding.post("40").await;
        shedding.heard("40{").await;
    }
    let all = excessive(&stack, "namespaces").await;
    shedding.post("40/a,").await;
    assert!(excessive(&stack, "namespaces").await > all + 0.5, "the count cannot be shed");
}

#[tokio::test]
async fn whoever_asks_to_be_let_in_again_and_again_and_hears_none_of_the_answers_is_ended() {
    let secret = "a secret of this test alone of 32 bytes or more";
    let stack = Stack::builder().gateway_env("JWT_SECRET", secret).start().await;
    let bad = r#"40{"token":"nonsense"}"#;
    let sid = open_polling(&stack).await;
    let poll = stack.url(&format!("/socket.io/?EIO=4&transport=polling&sid={sid}"));
    let post = async |packets: usize| {
        let body = vec![bad; packets].join("\u{1e}");
        stack.http().post(&poll).body(body).send().await.unwrap().status()
    };
    for (packets, status) in [(99, 200), (1, 200), (1, 400)] {
        assert_eq!(post(packets).await, status);
    }
    let mut socket = websocket(&stack, "").await;
    for _ in 0..101 {
        send(&mut socket, bad).await;
    }
    assert!(ends(&mut socket).await, "a websocket");
    assert!(excessive(&stack, "namespaces").await > 1.5);
}

/// Polls and posts nothing more that is taken.
async fn is_ended(poller: &Poller) -> bool {
    let pong = poller.http.post(&poller.url).body("3").send().await;
    pong.is_ok_and(|answer| answer.status() == 400)
}

#[tokio::test]
async fn an_event_whose_attachments_do_not_come_ends_its_connection() {
    let stack = Stack::builder().env("SLOW_SECONDS", "4").start().await;
    let attachment = Message::Binary(vec![0; 1_000].into());
    // Those that come, though not at once, are refused in the event's own form.
    let announced = r#"451-7["get-messages",{"_placeholder":true,"num":0}]"#;
    let (mut sends, _) = direct(&stack).await;
    send(&mut sends, announced).await;
    sends.send(attachment.clone()).await.unwrap();
    assert!(packet(&mut sends).await.starts_with(r#"437[{"error":{"code":"invalid_payload""#));
    let polls = Poller::open(&stack, NEIGHBOUR).await;
    polls.post(announced).await;
    polls.post("bAAAA").await;
    assert!(polls.heard("437[").await.contains("invalid_payload"));

    let announced = r#"452-["user_message",{"_placeholder":true,"num":0}]"#;
    let (mut one, _) = direct(&stack).await;
    send(&mut one, announced).await;
    one.send(attachment.clone()).await.unwrap();
    let (mut none, _) = upgraded(&stack).await;
    send(&mut none, "469-1[]").await;
    assert!(ends(&mut one).await && ends(&mut none).await, "websockets");
    for posts in [&[announced, "bAAAA"][..], &["461-1[]"]] {
        let poller = Poller::open(&stack, STRANGER).await;
        for post in posts {
            poller.post(post).await;
        }
        assert!(!is_ended(&poller).await, "it has its time");
        eventually(3 * SOON, "polling ends", async || is_ended(&poller).await).await;
    }
    send(&mut sends, r#"428["nothing",{}]"#).await;
    assert!(packet(&mut sends).await.starts_with("438["), "it goes on");
    polls.post(r#"428["nothing",{}]"#).await;
    polls.heard("438[").await;
}

#[tokio::test]
async fn attachments_and_what_announces_them_are_short() {
    let stack = Stack::start().await;
    let long = "x".repeat(100_000);
    let head = format!(r#"451-["{long}",{{"_placeholder":true,"num":0}}]"#);
    let announced = r#"452-["a",{"_placeholder":true,"num":0}]"#;
    let attachment = Message::Binary(vec![0; 100_000].into());
    for packets in [&[Message::text(&*head)][..], &[Message::text(announced), attachment]] {
        let (mut socket, _) = direct(&stack).await;
        for packet in packets {
            socket.send(packet.clone()).await.ok();
        }
        assert!(ends(&mut socket).await, "a websocket");
    }
    for body in [head, format!("{announced}\u{1e}b{}", "A".repeat(100_000))] {
        let poller = Poller::open(&stack, STRANGER).await;
        poller.post(&body).await;
        eventually(SOON, "polling ends", async || is_ended(&poller).await).await;
    }
    assert!(excessive(&stack, "attachments").await > 3.5);
}

/// A websocket whose frames are written by hand, and not masked: the key is nought.
async fn raw_websocket(stack: &Stack, from: Ipv4Addr) -> TcpStream {
    let mut stream = connect(stack, from, false).await;
    assert!(ask(&mut stream, &upgrade("")).await.unwrap().starts_with("HTTP/1.1 101"));
    write_frame(&mut stream, 0x81, "40", 2).await;
    stream
}

/// Writes a frame that is said to be so long.
async fn write_frame(stream: &mut TcpStream, first: u8, payload: &str, length: u64) {
    let mut frame = vec![first, 0x80 | 0x7f];
    frame.extend(length.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(payload.as_bytes());
    // It may be closed already.
    stream.write_all(&frame).await.ok();
}

#[tokio::test]
async fn a_websocket_that_does_not_go_on_with_what_it_began_ends_and_a_slow_one_does_not() {
    let stack =
        Stack::builder().env("SLOW_SECONDS", "5").env("MIN_BYTES_PER_SECOND", "1000").start().await;
    let begun = "42[\"nothing\",";
    let mut half = raw_websocket(&stack, STRANGER).await;
    write_frame(&mut half, 0x81, begun, 100_000).await;
    let mut header = raw_websocket(&stack, STRANGER).await;
    header.write_all(&[0x81]).await.unwrap();
    let mut part = raw_websocket(&stack, STRANGER).await;
    write_frame(&mut part, 0x01, begun, begun.len() as u64).await;
    write_frame(&mut part, 0x89, "", 0).await;
    let mut drips = raw_websocket(&stack, STRANGER).await;
    write_frame(&mut drips, 0x81, begun, 100_000).await;
    let dripping = tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_millis(100));
        while drips.write_all(b"x").await.is_ok() {
            every.tick().await;
        }
    });
    for (what, stream) in
        [("a frame", &mut half), ("a header", &mut header), ("a message", &mut part)]
    {
        assert!(closed_within(stream, SOON).await, "{what}");
    }
    timeout(3 * SOON, dripping).await.expect("one that drips ends").unwrap();
    assert!(metric(&stack, "chat_gateway_slow_bodies_total").await > 3.5);

    // Three times the least rate, for longer than that time; then it is silent, as it began nothing.
    let mut slow = raw_websocket(&stack, NEIGHBOUR).await;
    let event = format!(r#"427["nothing",{{"a":"{}"}}]"#, "x".repeat(24_000));
    let mut every = tokio::time::interval(Duration::from_millis(100));
    write_frame(&mut slow, 0x81, "", event.len() as u64).await;
    for part in event.as_bytes().chunks(300) {
        every.tick().await;
        slow.write_all(part).await.unwrap();
    }
    let mut heard = String::new();
    let answer = async {
        while !heard.contains("437[") {
            let mut part = [0; 4_096];
            let read = slow.read(&mut part).await.unwrap();
            assert!(read > 0, "it is closed");
            heard += &String::from_utf8_lossy(&part[..read]);
        }
    };
    timeout(SOON, answer).await.expect("an answer");
    write_frame(&mut slow, 0x81, "3", 1).await;
    assert!(!closed_within(&mut slow, Duration::from_secs(7)).await);
}

#[tokio::test]
async fn what_has_not_ended_of_an_address_is_bounded_in_bytes() {
    const CONNECTIONS: usize = 10;
    const HALF: usize = 900_000;
    let stack = Stack::builder().env("WAITING_BYTES_PER_ADDRESS", "4000000").start().await;
    let half = "x".repeat(HALF);
    let path = async || {
        let poller = Poller::open(&stack, STRANGER).await;
        poller.url.strip_prefix(&stack.url("")).unwrap().to_owned()
    };
    for is_websocket in [true, false] {
        let before = excessive(&stack, "unfinished").await;
        let mut streams = Vec::new();
        for n in 0..CONNECTIONS {
            if is_websocket {
                let mut stream = raw_websocket(&stack, STRANGER).await;
                // As a frame, and as parts of a message.
                let (first, length) =
                    if n % 2 == 0 { (0x81, 1_000_000) } else { (0x01, HALF as u64) };
                write_frame(&mut stream, first, &half, length).await;
                streams.push(stream);
            } else {
                let path =
                    if n % 2 == 0 { path().await } else { "/api/chats/x/messages".to_owned() };
                let mut stream = connect(&stack, STRANGER, false).await;
                let head = post(&path, "Content-Length: 1000000");
                stream.write_all(format!("{head}{half}").as_bytes()).await.ok();
                streams.push(stream);
            }
        }
        // Four of them fit at most.
        eventually(SOON, "the others are ended", async || {
            excessive(&stack, "unfinished").await > before + 5.5
        })
        .await;
        // Others have their own share.
        let mut other = raw_websocket(&stack, NEIGHBOUR).await;
        write_frame(&mut other, 0x81, &format!("42[\"{half}\"]"), HALF as u64 + 6).await;
        assert!(!closed_within(&mut other, Duration::from_secs(1)).await);
        drop(streams);
        eventually(SOON, "there is room again", async || {
            let mut again = raw_websocket(&stack, STRANGER).await;
            write_frame(&mut again, 0x81, &half, 1_000_000).await;
            !closed_within(&mut again, Duration::from_secs(1)).await
        })
        .await;
    }
}

#[tokio::test]
async fn the_buffers_that_long_messages_leave_behind_are_bounded() {
    const SOCKETS: usize = 60;
    let stack = Stack::builder().env("WAITING_BYTES_PER_ADDRESS", "8000000").start().await;
    let before = stack.gateway(0).resident_bytes();
    let long = format!(r#"427["nothing",{{"a":"{}"}}]"#, "x".repeat(1_000_000));
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        let mut socket = websocket(&stack, "").await;
        send(&mut socket, "40").await;
        send(&mut socket, &long).await;
        sockets.push(socket);
    }
    eventually(3 * SOON, "the others are ended", async || {
        metric(&stack, "chat_gateway_sockets").await < 8.5
    })
    .await;
    let grown = stack.gateway(0).resident_bytes().saturating_sub(before);
    println!("{} KiB more", grown / 1024);
    assert!(grown < MEMORY_MAX_BYTES, "{grown} bytes more");
}

#[tokio::test]
async fn what_is_held_back_for_one_that_resumes_counts_among_what_waits_for_it() {
    let stack = Stack::builder().env("WAITING_BYTES_PER_SOCKET", "2000000").start().await;
    let history = long_history(&stack, 500, 16_000).await;
    let speaker = Poller::open(&stack, NEIGHBOUR).await;
    speaker.post(r#"420["init_session",{}]"#).await;
    let joined = speaker.heard("430[").await;
    let session = joined.split('"').nth(3).unwrap().to_owned();
    let holder = Poller::open(&stack, STRANGER).await;
    // The second is read though the first was not fetched; the third waits for that.
    for ack in 0..2 {
        holder.resume(ack, &history).await;
    }
    holder.resume(2, &session).await;
    let before = stack.gateway(0).resident_bytes();
    let content = "\u{1f980}".repeat(8_000);
    let said = serde_json::json!(["user_message", { "sessionId": session, "content": content }]);
    let mut most = 0;
    for n in 0..100 {
        speaker.post(&format!("42{n}{said}")).await;
        speaker.heard(&format!("43{n}[")).await;
        most = most.max(stack.gateway(0).resident_bytes());
        if overfull(&stack, "socket").await > 0.5 {
            break;
        }
    }
    assert!(overfull(&stack, "socket").await > 0.5, "it is ended");
    println!("{} KiB more", most.saturating_sub(before) / 1024);
    eventually(SOON, "it is gone", async || is_ended(&holder).await).await;
    eventually(SOON, "nothing waits for it", async || {
        metric(&stack, "chat_gateway_waiting_bytes").await < 100_000.0
    })
    .await;
    // Who is given what it missed goes on: what was held follows.
    let back = Poller::open(&stack, NEIGHBOUR).await;
    back.resume(0, &session).await;
    back.heard("430[").await;
    speaker.post(&format!("42999{said}")).await;
    back.heard(r#"42["message""#).await;
}

#[tokio::test]
async fn packets_over_polling_count_however_often_their_socket_joins() {
    let stack = Stack::builder()
        .env("LIMITS", "on")
        .env("MESSAGES_PER_SECOND", "5")
        .env("MESSAGES_BURST", "10")
        .start()
        .await;
    let poller = Poller::open(&stack, STRANGER).await;
    for times in 0.. {
        assert!(times < 40, "a flood of packets over polling ends");
        let flood = format!("{}\u{1e}41", ["3"; 500].join("\u{1e}"));
        if poller.http.post(&poller.url).body(flood).send().await.unwrap().status() != 200 {
            assert!(times >= 2, "only {times} times 500 packets were taken");
            break;
        }
        poller.post("40").await;
        poller.heard("40{").await;
    }
}

#[tokio::test]
async fn packets_that_no_handler_sees_are_counted_too() {
    let stack = Stack::builder()
        .env("LIMITS", "on")
        .env("MESSAGES_PER_SECOND", "5")
        .env("MESSAGES_BURST", "10")
        .start()
        .await;
    let floods = [
        Message::text("3"),
        Message::text("437[{}]"),
        Message::text(r#"42/other,["user_message",{}]"#),
        Message::Ping(Vec::new().into()),
    ];
    let mut ended = 0.5;
    for (at, packet) in floods.into_iter().enumerate() {
        let (mut socket, _) =
            if at % 2 == 0 { direct(&stack).await } else { upgraded(&stack).await };
        for _ in 0..1_000 {
            socket.feed(packet.clone()).await.unwrap();
        }
        socket.flush().await.unwrap();
        send(&mut socket, r#"420["init_session",{}]"#).await;
        while !text(&mut socket).await.starts_with("430") {}
        for _ in 0..20_000 {
            if socket.send(packet.clone()).await.is_err() {
                break;
            }
        }
        assert!(ends(&mut socket).await, "a flood of {packet:?} ends");
        eventually(SOON, "it is counted", async || excessive(&stack, "packets").await > ended)
            .await;
        ended += 1.0;
    }

    let sid = open_polling(&stack).await;
    let poll = stack.url(&format!("/socket.io/?EIO=4&transport=polling&sid={sid}"));
    stack.http().post(&poll).body("40").send().await.unwrap();
    let mut taken = 0;
    while stack.http().post(&poll).body(["3"; 500].join("\u{1e}")).send().await.unwrap().status()
        == 200
    {
        taken += 500;
        assert!(taken < 20_000, "a flood of packets over polling ends");
    }
    assert!(taken >= 1_000, "only {taken} packets were taken");
}

#[tokio::test]
async fn a_websocket_begins_only_where_nothing_stands_behind_its_request() {
    let stack = Stack::start().await;
    let upgrade = upgrade("");
    // A connection that was used before, as proxies keep them.
    let mut kept = connect(&stack, STRANGER, false).await;
    for _ in 0..3 {
        assert!(ask(&mut kept, HEALTH).await.unwrap().starts_with("HTTP/1.1 200"));
    }
    assert!(ask(&mut kept, &upgrade).await.unwrap().starts_with("HTTP/1.1 101"));
    for behind in ["x", "\u{81}\u{0}frame\r\n\r\n", HEALTH] {
        let mut stream = connect(&stack, STRANGER, false).await;
        let answer = ask(&mut stream, &format!("{upgrade}{behind}")).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let mut both = connect(&stack, STRANGER, false).await;
    let first = ask(&mut both, &format!("{HEALTH}{upgrade}")).await.unwrap();
    assert!(first.starts_with("HTTP/1.1 200") && !first.contains(" 101 "), "{first}");
}

#[tokio::test]
async fn wrong_words_come_back_short() {
    let stack = Stack::builder().env("ROOMS_PER_SOCKET", "1").start().await;
    let (mut socket, _) = direct(&stack).await;
    let long = "я".repeat(200_000);
    let wrong = [
        serde_json::json!(["user_message", { "sessionId": long, "clientOffset": long, "content": "x" }]),
        serde_json::json!(["admin_message", { "sessionId": long, "clientOffset": long, "content": 1 }]),
        serde_json::json!(["user_message", { "sessionId": 1, "clientOffset": long }]),
    ];
    for wrong in wrong {
        send(&mut socket, &format!("42{wrong}")).await;
        let told = packet(&mut socket).await;
        assert!(
            told.starts_with(r#"42["message_error""#) && told.len() < 2_000,
            "{} bytes",
            told.len()
        );
        assert!(told.contains(&"я".repeat(256)), "{told}");
    }
    // In a room already, it may be in no other.
    send(&mut socket, r#"420["init_session",{}]"#).await;
    assert!(packet(&mut socket).await.starts_with("430"));
    send(
        &mut socket,
        &format!("421{}", serde_json::json!(["init_session", { "sessionId": long }])),
    )
    .await;
    let refused = packet(&mut socket).await;
    assert!(refused.starts_with("431") && refused.len() < 2_000, "{} bytes", refused.len());
}

#[tokio::test]
async fn events_that_a_websocket_does_not_read_are_bounded_in_bytes() {
    let stack = Stack::builder()
        .env("WAITING_BYTES_PER_SOCKET", "1000000")
        .env("SLOW_SECONDS", "60")
        .start()
        .await;
    let (mut deaf, _) = direct(&stack).await;
    send(&mut deaf, r#"420["init_session",{}]"#).await;
    let joined = packet(&mut deaf).await;
    assert!(joined.starts_with("430"), "{joined}");
    let session = joined.split('"').nth(3).unwrap().to_owned();
    let (mut speaker, _) = direct(&stack).await;
    let before = stack.gateway(0).resident_bytes();
    let message =
        serde_json::json!(["user_message", { "sessionId": session, "content": "x".repeat(7_000) }]);
    let mut most = 0;
    eventually(6 * SOON, "it is ended", async || {
        for _ in 0..50 {
            send(&mut speaker, &format!("42{message}")).await;
        }
        most = most.max(stack.gateway(0).resident_bytes());
        overfull(&stack, "socket").await > 0.1
    })
    .await;
    let grown = most.saturating_sub(before);
    println!("{} KiB more", grown / 1024);
    assert!(grown < MEMORY_MAX_BYTES, "{grown} bytes more");
}
