//! The real JavaScript client, run by Node as `tests/client/chaos.mjs`: one process for all of them.

use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::timeout;

use super::socket::Packet;

const SCRIPT: &str = "chaos.mjs";
/// A client connects, or comes back by itself, more slowly than one of ours.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);

/// The Node process; it ends with this value.
#[derive(Debug)]
pub(super) struct Javascript {
    pub(super) clients: Vec<Arc<JsClient>>,
    _child: Child,
}

/// One client in it.
#[derive(Debug)]
pub(super) struct JsClient {
    number: usize,
    transport: &'static str,
    commands: UnboundedSender<Value>,
    asked: AtomicU64,
    /// What it tells; a connection has it while it lasts.
    told: Mutex<Option<UnboundedReceiver<Value>>>,
}

/// A connection of a client.
#[derive(Debug)]
pub(super) struct JsSocket {
    client: Arc<JsClient>,
    told: Option<UnboundedReceiver<Value>>,
    /// Whether it was lost; then the client comes back by itself.
    lost: bool,
}

impl Javascript {
    /// Starts Node with so many clients, by websocket and by polling in turn.
    pub(super) async fn start(count: usize) -> Result<Self> {
        let node = crate::node::installed().await;
        let mut child = Command::new(&node.node)
            .arg(SCRIPT)
            .current_dir(crate::node::client())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start Node")?;
        let (commands, mut queue) = mpsc::unbounded_channel::<Value>();
        let mut input = child.stdin.take().context("no standard input")?;
        tokio::spawn(async move {
            while let Some(command) = queue.recv().await {
                if input.write_all(format!("{command}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        let (tellers, clients) = (0..count).map(|number| client(number, &commands)).unzip();
        let output = child.stdout.take().context("no standard output")?;
        tokio::spawn(hand_out(BufReader::new(output).lines(), tellers));
        Ok(Self { clients, _child: child })
    }
}

fn client(
    number: usize,
    commands: &UnboundedSender<Value>,
) -> (UnboundedSender<Value>, Arc<JsClient>) {
    let (teller, told) = mpsc::unbounded_channel();
    let transport = if number.is_multiple_of(2) { "websocket" } else { "polling" };
    let client = JsClient {
        number,
        transport,
        commands: commands.clone(),
        asked: AtomicU64::new(0),
        told: Mutex::new(Some(told)),
    };
    (teller, Arc::new(client))
}

/// Gives every line to the client that it is about.
async fn hand_out(mut lines: Lines<BufReader<ChildStdout>>, tellers: Vec<UnboundedSender<Value>>) {
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(told) = serde_json::from_str::<Value>(&line) else { continue };
        let number = told["c"].as_u64().and_then(|number| usize::try_from(number).ok());
        if let Some(teller) = number.and_then(|number| tellers.get(number)) {
            // A client that has ended needs no more.
            let _ = teller.send(told);
        }
    }
}

impl JsClient {
    /// Which gateway it stays with: a page has one address.
    pub(super) fn gateway(&self, gateways: usize) -> usize {
        self.number / 2 % gateways
    }

    /// Connects, or waits until it has come back by itself.
    pub(super) async fn connect(self: &Arc<Self>, port: u16) -> Result<JsSocket> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut socket = JsSocket { client: Arc::clone(self), told, lost: false };
        while socket.told.as_mut().is_some_and(|told| told.try_recv().is_ok()) {}
        self.tell(json!({"do": "open", "port": port, "transport": self.transport}))?;
        let opened = async {
            while socket.line().await?["open"] != true {}
            anyhow::Ok(())
        };
        timeout(CONNECTS_WITHIN, opened).await.context("no connection in time")??;
        Ok(socket)
    }

    fn tell(&self, mut command: Value) -> Result<()> {
        command["c"] = self.number.into();
        self.commands.send(command).context("Node has ended")
    }
}

impl JsSocket {
    pub(super) fn emit(&self, event: &str, data: &Value) -> Result<u64> {
        let number = self.client.asked.fetch_add(1, Ordering::Relaxed);
        self.client.tell(json!({"do": "emit", "event": event, "n": number, "data": data}))?;
        Ok(number)
    }

    /// The next that it is told. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Packet> {
        loop {
            let mut line = self.line().await?;
            if let Some(number) = line["ack"].as_u64() {
                return Ok(Packet::Ack(number, line["data"].take()));
            }
            if line["message"].is_object() {
                return Ok(Packet::Event("message".to_owned(), line["message"].take()));
            }
            if let Some(reason) = line["gone"].as_str() {
                self.lost = true;
                bail!("the connection was lost: {reason}");
            }
        }
    }

    async fn line(&mut self) -> Result<Value> {
        let told = self.told.as_mut().context("two connections of one client")?;
        told.recv().await.context("Node has ended")
    }
}

impl Drop for JsSocket {
    fn drop(&mut self) {
        if !self.lost {
            // Node may be gone already.
            let _ = self.client.tell(json!({"do": "drop"}));
        }
        if let Some(told) = self.told.take() {
            *self.client.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        }
    }
}
