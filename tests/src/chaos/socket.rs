//! Connections of clients: of the real JavaScript client, or lean ones over one websocket that speak as
//! much of Engine.IO 4 and Socket.IO 5 as a chat needs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::Stack;

use super::javascript::{JsClient, JsSocket};

/// A gateway that is frozen takes the connection and says nothing.
const CONNECTS_WITHIN: Duration = Duration::from_secs(3);
/// A peer that reads nothing.
const SENDS_WITHIN: Duration = Duration::from_secs(5);

/// How a client connects.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// Lean, to any gateway.
    Lean,
    /// By the JavaScript client, to its gateway.
    Javascript(Arc<JsClient>),
}

/// A connected client; dropping it is going away without a word.
#[derive(Debug)]
pub(super) enum Socket {
    Lean(Box<Lean>),
    Javascript(JsSocket),
}

/// A connection of our own.
#[derive(Debug)]
pub(super) struct Lean {
    stream: WebSocketStream<TcpStream>,
    asked: u64,
}

/// What a client is told.
#[derive(Debug)]
pub(super) enum Packet {
    /// An event and its first argument.
    Event(String, Value),
    /// The first argument of the ack of an emit.
    Ack(u64, Value),
}

impl Way {
    /// Connects to one of the gateways, counted without end; which one it is.
    pub(super) async fn connect(&self, stack: &Stack, turn: usize) -> Result<(usize, Socket)> {
        let gateways = stack.gateways();
        let (gateway, socket) = match self {
            Self::Lean => {
                let gateway = turn % gateways.len();
                (gateway, Socket::Lean(Box::new(Lean::connect(gateways[gateway].port()).await?)))
            }
            Self::Javascript(client) => {
                let gateway = client.gateway(gateways.len());
                let socket = client.connect(gateways[gateway].port()).await?;
                (gateway, Socket::Javascript(socket))
            }
        };
        Ok((gateway, socket))
    }
}

impl Socket {
    /// Emits an event; the number of the ack that it asks for.
    pub(super) async fn emit(&mut self, event: &str, data: Value) -> Result<u64> {
        match self {
            Self::Lean(lean) => lean.emit(event, data).await,
            Self::Javascript(javascript) => javascript.emit(event, &data),
        }
    }

    /// The next packet that says something. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Packet> {
        match self {
            Self::Lean(lean) => lean.next().await,
            Self::Javascript(javascript) => javascript.next().await,
        }
    }
}

impl Lean {
    /// Connects to the default namespace of the gateway on this port.
    async fn connect(port: u16) -> Result<Self> {
        timeout(CONNECTS_WITHIN, Self::handshake(port)).await.context("no handshake in time")?
    }

    async fn handshake(port: u16) -> Result<Self> {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        tcp.set_nodelay(true)?;
        let url = format!("ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket");
        let (stream, _) = tokio_tungstenite::client_async(url, tcp).await?;
        let mut socket = Self { stream, asked: 0 };
        let open = socket.text().await?;
        ensure!(open.starts_with('0'), "no open packet: {open}");
        socket.send("40".to_owned()).await?;
        let connected = socket.text().await?;
        ensure!(connected.starts_with("40"), "not connected: {connected}");
        Ok(socket)
    }

    async fn emit(&mut self, event: &str, data: Value) -> Result<u64> {
        let number = self.asked;
        self.asked += 1;
        self.send(format!("42{number}{}", Value::from(vec![event.into(), data]))).await?;
        Ok(number)
    }

    async fn next(&mut self) -> Result<Packet> {
        loop {
            let text = self.text().await?;
            if text == "2" {
                self.send("3".to_owned()).await?;
            } else if let Some(event) = text.strip_prefix("42") {
                return event_of(event);
            } else if let Some(ack) = text.strip_prefix("43") {
                return ack_of(ack);
            } else {
                bail!("the connection was ended with {text:?}");
            }
        }
    }

    async fn text(&mut self) -> Result<String> {
        loop {
            match self.stream.next().await.context("the connection ended")?? {
                Message::Text(text) => return Ok(text.as_str().to_owned()),
                Message::Close(_) => bail!("the connection was closed"),
                _ => {}
            }
        }
    }

    async fn send(&mut self, text: String) -> Result<()> {
        let sent = self.stream.send(Message::text(text));
        Ok(timeout(SENDS_WITHIN, sent).await.context("the gateway reads nothing")??)
    }
}

fn event_of(text: &str) -> Result<Packet> {
    let Value::Array(mut parts) = serde_json::from_str(text)? else { bail!("an event: {text}") };
    let data = if parts.len() > 1 { parts.swap_remove(1) } else { Value::Null };
    let name = parts.first().and_then(Value::as_str).context("an event without a name")?;
    Ok(Packet::Event(name.to_owned(), data))
}

fn ack_of(text: &str) -> Result<Packet> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).context("an empty ack")?;
    let (number, data) = text.split_at(digits);
    let Value::Array(mut parts) = serde_json::from_str(data)? else { bail!("an ack: {text}") };
    let data = if parts.is_empty() { Value::Null } else { parts.swap_remove(0) };
    Ok(Packet::Ack(number.parse()?, data))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_and_an_ack_are_read() {
        let Packet::Event(name, data) = event_of(r#"["message",{"id":"x"}]"#).unwrap() else {
            panic!("an event")
        };
        assert_eq!((name.as_str(), data), ("message", json!({"id": "x"})));
        let Packet::Ack(number, data) = ack_of(r#"12[{"id":"y"}]"#).unwrap() else {
            panic!("an ack")
        };
        assert_eq!((number, data), (12, json!({"id": "y"})));
        assert!(event_of("{}").is_err() && ack_of("[]").is_err());
    }
}
