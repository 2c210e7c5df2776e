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
        .env("HEADER_SECONDS", "5")
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
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
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
    let stack = Stack::builder().env("HEADER_SECONDS", "1").env("IDLE_SECONDS", "60").start().await;
    let mut silent = connect(&stack, STRANGER, false).await;
    let mut kept = connect(&stack, STRANGER, false).await;
    assert!(ask(&mut kept, HEALTH).await.is_some());
    assert!(closed_within(&mut silent, SOON).await, "one that says nothing");
    assert!(!closed_within(&mut kept, Duration::from_secs(2)).await, "one that asked before");
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
        assert!(grown < MEMORY_MAX_BYTES, "{path}: {grown} bytes more");
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
        poller.heard("40{").await;
        poller
    }

    /// It may be ended already.
    async fn post(&self, packet: &str) {
        self.http.post(&self.url).body(packet.to_owned()).send().await.ok();
    }

    async fn poll(&self) -> Option<String> {
        let answer = self.http.get(&self.url).send().await.ok()?;
        if answer.status() == 200 { answer.text().await.ok() } else { None }
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
    eventually(6 * SOON, "it is ended", async || {
        // It answers pings that it never heard.
        silent.post("3").await;
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
    let asked = serde_json::json!(["get-messages", { "sessionId": session }]);
    reader.post(&format!("4210{asked}")).await;
    let heard = reader.heard("4310[").await;
    assert!(heard.len() > 4_000_000, "{} bytes", heard.len());
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
        Message::text("40/other,"),
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
