//! The real JavaScript client in the hands of a Rust test, which kills what the client talks to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use crate::node::{NodeRun, node, web_node};
use crate::wait::{eventually, must};

/// Starting Node on a busy machine, and installing the client before.
const STARTS_WITHIN: Duration = Duration::from_mins(5);
/// Above what the script itself waits for.
const ANSWERS_WITHIN: Duration = Duration::from_mins(1);
/// A visitor whose messages wait tries again every five seconds, and has up to a hundred of them.
const CATCHES_UP_WITHIN: Duration = Duration::from_mins(1);
/// A client that was cut off tries twice a second.
const CONNECTS_WITHIN: Duration = Duration::from_secs(20);

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>;

/// A Node process with any number of clients; ends with this value.
#[derive(Clone, Debug)]
pub struct JsClients {
    requests: Arc<AsyncMutex<OwnedWriteHalf>>,
    waiting: Waiting,
    count: Arc<AtomicU64>,
}

impl JsClients {
    /// Starts Node.
    pub async fn start() -> Self {
        Self::run(|port| async move { node(&["js_client.mjs"], &[port]).await }).await
    }

    /// The same with a script of `tests/web`, which is told in the same way.
    pub(crate) async fn of_web(script: &'static str, mut env: Vec<(String, String)>) -> Self {
        Self::run(|port| async move {
            env.push(port);
            web_node(&[script], &env).await
        })
        .await
    }

    async fn run<F>(script: impl FnOnce((String, String)) -> F) -> Self
    where
        F: Future<Output = NodeRun> + Send + 'static,
    {
        let listener = must(TcpListener::bind("127.0.0.1:0").await, "listening for Node");
        let port = must(listener.local_addr(), "the port of Node").port().to_string();
        let script = tokio::spawn(script(("CONTROL_PORT".into(), port)));
        let connected = async {
            tokio::select! {
                accepted = listener.accept() => Ok(accepted?.0),
                ended = script => Err(anyhow!("{}", ended?.output)),
            }
        };
        let connected = tokio::time::timeout(STARTS_WITHIN, connected).await;
        let stream = must(must(connected, "starting Node"), "starting Node");
        let (answers, requests) = stream.into_split();
        let waiting = Waiting::default();
        tokio::spawn(listen(answers, Arc::clone(&waiting)));
        Self { requests: Arc::new(requests.into()), waiting, count: Arc::default() }
    }

    /// A client of the gateway at this URL; it connects by itself.
    pub async fn client(&self, url: &str, transports: &[&str]) -> Client {
        let client = Client { js_clients: self.clone(), client: self.number() };
        let options = json!({ "transports": transports });
        client.act("make", json!({ "url": url, "options": options })).await;
        client
    }

    /// A visitor with so many pages, all of them with the client of `web/client` and one storage, who says one thing
    /// after the other on them in turn.
    pub async fn visitor(&self, url: &str, pages: usize) -> Visitor {
        let client = Client { js_clients: self.clone(), client: self.number() };
        client.act("visit", json!({ "url": url, "pages": pages })).await;
        Visitor(client)
    }

    /// One that nothing else has.
    pub(crate) fn number(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) async fn request(&self, mut request: Value) -> Result<Value> {
        let n = self.number();
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(n, answer);
        request["n"] = n.into();
        let line = format!("{request}\n");
        self.requests.lock().await.write_all(line.as_bytes()).await?;
        let mut answer = tokio::time::timeout(ANSWERS_WITHIN, answered).await??;
        match answer["error"].as_str() {
            Some(error) => Err(anyhow!("{error}")),
            None => Ok(answer["ok"].take()),
        }
    }
}

async fn listen(answers: OwnedReadHalf, waiting: Waiting) -> Result<()> {
    let mut lines = BufReader::new(answers).lines();
    while let Some(line) = lines.next_line().await? {
        let answer: Value = serde_json::from_str(&line)?;
        let n = answer["n"].as_u64().context("an answer to nothing")?;
        let waits = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&n);
        // The caller may have given up.
        waits.map(|waits| waits.send(answer));
    }
    Ok(())
}

/// One client of a [`JsClients`].
#[derive(Clone, Debug)]
pub struct Client {
    js_clients: JsClients,
    client: u64,
}

/// What a client said until it was hushed.
#[derive(Debug)]
pub struct Talk {
    /// Contents and ids, in order.
    pub accepted: Vec<(String, String)>,
    /// Contents of which nobody knows whether they were taken; with offsets at most the last one.
    pub doubtful: Vec<String>,
    /// Codes of the errors before.
    pub refused: Vec<String>,
}

impl Client {
    /// Waits until it is connected.
    pub async fn connected(&self) {
        eventually(CONNECTS_WITHIN, "a client connects", async || {
            self.act("connected", json!({})).await == true
        })
        .await;
    }

    /// Leaves until [`Client::connect`].
    pub async fn disconnect(&self) {
        self.act("disconnect", json!({})).await;
    }

    /// Comes back.
    pub async fn connect(&self) {
        self.act("connect", json!({})).await;
        self.connected().await;
    }

    /// Takes nothing from the network any more; the connection stays. By websocket only.
    pub async fn stop_reading(&self) {
        self.act("deafen", json!({})).await;
    }

    /// Takes what came meanwhile.
    pub async fn go_on_reading(&self) {
        self.act("hear", json!({})).await;
    }

    /// Emits and waits for the ack.
    pub async fn ask(&self, event: &str, payload: Value) -> Value {
        self.timed(event, payload).await.1
    }

    /// Emits and waits for the ack; says how long that took.
    pub async fn timed(&self, event: &str, payload: Value) -> (Duration, Value) {
        let asked = self.act("ask", json!({ "event": event, "args": [payload] })).await;
        let millis = asked[0].as_f64().unwrap_or(f64::MAX);
        (Duration::from_secs_f64(millis / 1_000.0), asked[1].clone())
    }

    /// Emits and waits for nothing.
    pub async fn tell(&self, event: &str, payload: Value) {
        self.act("tell", json!({ "event": event, "args": [payload] })).await;
    }

    /// Emits all of these at once; the acks in their order.
    pub async fn burst(&self, event: &str, payloads: Vec<Value>) -> Vec<Value> {
        let acks = self.act("burst", json!({ "event": event, "payloads": payloads })).await;
        must(acks.as_array().cloned().context("no array"), "a burst")
    }

    /// Joins this session, or a new one; returns after every loss of the connection and is given
    /// what it missed. The first ack.
    pub async fn stay(&self, session: Option<&str>) -> Value {
        self.act("stay", json!({ "sessionId": session })).await
    }

    /// Everything that came under this name, also `connect`, `disconnect` and `connect_error`.
    pub async fn seen(&self, event: &str) -> Vec<Value> {
        let seen = self.act("seen", json!({ "event": event })).await;
        must(seen.as_array().cloned().context("no array"), "what a client has seen")
    }

    /// How often something came under this name: for waiting, where everything that came may be megabytes.
    pub async fn count(&self, event: &str) -> usize {
        let count = self.act("count", json!({ "event": event })).await;
        must(usize::deserialize(count), "how often a client has seen something")
    }

    /// What came last under this name; null if nothing did.
    pub async fn last(&self, event: &str) -> Value {
        self.act("last", json!({ "event": event })).await
    }

    /// The messages it was given, in order.
    pub async fn messages(&self) -> Vec<Value> {
        self.seen("message").await
    }

    /// The longest time without a message since this was asked last.
    pub async fn longest_silence(&self) -> Duration {
        let millis = self.act("silence", json!({})).await.as_f64().unwrap_or(f64::MAX);
        Duration::from_secs_f64(millis / 1_000.0)
    }

    /// Begins a light load: one message after the other. With `offsets` each is sent again until
    /// it is accepted.
    pub async fn talk(&self, event: &str, session: &str, offsets: bool) {
        let talk = json!({
            "event": event, "sessionId": session, "name": event, "offsets": offsets,
        });
        self.act("talk", talk).await;
    }

    /// How many messages of the talk are accepted.
    pub async fn accepted(&self) -> u64 {
        self.act("talked", json!({})).await[0].as_u64().unwrap_or_default()
    }

    /// How many sends of the talk were refused.
    pub async fn refused(&self) -> u64 {
        self.act("talked", json!({})).await[1].as_u64().unwrap_or_default()
    }

    /// Ends the talk.
    pub async fn hush(&self) -> Talk {
        let talk = self.act("hush", json!({})).await;
        let talk = serde_json::from_value(talk);
        let (accepted, doubtful, refused) = must(talk, "what a client said");
        Talk { accepted, doubtful, refused }
    }

    async fn act(&self, what: &str, mut request: Value) -> Value {
        request["do"] = what.into();
        request["client"] = self.client.into();
        must(self.js_clients.request(request).await, what)
    }
}

/// A visitor of a [`JsClients`].
#[derive(Clone, Debug)]
pub struct Visitor(Client);

/// What a visitor said and saw.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Visit {
    /// The session's id.
    pub session_id: String,
    /// What each page said, in order.
    pub said: Vec<Vec<String>>,
    /// The messages that each page shows, in order.
    pub shown: Vec<Vec<Value>>,
}

impl Visitor {
    /// Waits until every page shows so many messages more that are in this state, or further.
    pub async fn sees_more(&self, state: &str, more: u64) {
        let enough = self.seen(state).await + more;
        eventually(CATCHES_UP_WITHIN, &format!("messages are {state}"), async || {
            self.seen(state).await >= enough
        })
        .await;
    }

    /// Says nothing more, waits until all is stored, and closes the pages.
    pub async fn leave(self) -> Visit {
        let visit = || self.0.act("leave", json!({}));
        let mut left = visit().await;
        eventually(CATCHES_UP_WITHIN, "all that a visitor said is stored", async || {
            left = visit().await;
            !left.is_null()
        })
        .await;
        must(serde_json::from_value(left), "what a visitor saw")
    }

    /// How many messages all pages show that are waiting, accepted or stored, or further.
    async fn seen(&self, state: &str) -> u64 {
        self.0.act("visited", json!({ "state": state })).await.as_u64().unwrap_or_default()
    }
}
