//! A Socket.IO client of our own over one websocket: as much of Engine.IO 4 and Socket.IO 5 as a chat needs,
//! and nothing that would count in a measurement.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// A gateway that is frozen takes the connection and says nothing.
const CONNECTS_WITHIN: Duration = Duration::from_secs(3);
/// A peer that reads nothing.
const SENDS_WITHIN: Duration = Duration::from_secs(5);
/// The library's 128 KB would be most of the memory of ten thousand clients.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// A connected client; dropping it is going away without a word.
#[derive(Debug)]
pub(crate) struct SocketClient {
    stream: WebSocketStream<TcpStream>,
}

impl SocketClient {
    /// Connects to the default namespace of the server at this address, in a time that is no fault's.
    pub(crate) async fn connect(server: SocketAddr) -> Result<Self> {
        timeout(CONNECTS_WITHIN, Self::connect_from(server, None))
            .await
            .context("no handshake in time")?
    }

    /// The same from an address of this machine, however long it takes.
    pub(crate) async fn connect_from(server: SocketAddr, from: Option<IpAddr>) -> Result<Self> {
        let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = from {
            socket.bind((from, 0).into())?;
        }
        let tcp = socket.connect(server).await?;
        tcp.set_nodelay(true)?;
        let url = format!("ws://{server}/socket.io/?EIO=4&transport=websocket");
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
        let (stream, _) =
            tokio_tungstenite::client_async_with_config(url, tcp, Some(config)).await?;
        let mut socket = Self { stream };
        let open = socket.text().await?;
        ensure!(open.starts_with('0'), "no open packet: {open}");
        socket.send("40".to_owned()).await?;
        let mut connected = socket.text().await?;
        // The first ping may come before.
        if connected.as_str() == "2" {
            socket.send("3".to_owned()).await?;
            connected = socket.text().await?;
        }
        ensure!(connected.starts_with("40"), "not connected: {connected}");
        Ok(socket)
    }

    /// Emits an event and asks for its ack by this number.
    pub(crate) async fn emit(&mut self, number: u64, event: &str, data: Value) -> Result<()> {
        self.send(format!("42{number}{}", Value::from(vec![event.into(), data]))).await
    }

    /// The next event (`42…`) or ack (`43…`). Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Utf8Bytes> {
        loop {
            let text = self.text().await?;
            if text.as_str() == "2" {
                self.send("3".to_owned()).await?;
            } else if text.starts_with("42") || text.starts_with("43") {
                return Ok(text);
            } else {
                bail!("the connection was ended with {text:?}");
            }
        }
    }

    /// The next one if it is here already.
    pub(crate) fn next_now(&mut self) -> Option<Result<Utf8Bytes>> {
        self.next().now_or_never()
    }

    /// Sends a packet.
    pub(crate) async fn send(&mut self, text: String) -> Result<()> {
        self.put(text).await?;
        self.flush().await
    }

    /// Puts a packet behind others that are flushed together.
    pub(crate) async fn put(&mut self, text: String) -> Result<()> {
        let put = self.stream.feed(Message::text(text));
        Ok(timeout(SENDS_WITHIN, put).await.context("the gateway reads nothing")??)
    }

    /// Sends what was put.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        let sent = self.stream.flush();
        Ok(timeout(SENDS_WITHIN, sent).await.context("the gateway reads nothing")??)
    }

    async fn text(&mut self) -> Result<Utf8Bytes> {
        loop {
            match self.stream.next().await.context("the connection ended")?? {
                Message::Text(text) => return Ok(text),
                Message::Close(_) => bail!("the connection was closed"),
                _ => {}
            }
        }
    }
}
