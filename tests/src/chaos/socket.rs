//! Connections of clients: of the real JavaScript client, or our own.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::Stack;
use crate::socket_client::SocketClient;

use super::javascript::{JsClient, JsSocket};

/// Characters that say what a packet is.
const KIND: usize = 2;

/// How a client connects.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// By our own client, to any gateway.
    Rust,
    /// By the JavaScript client, to its gateway.
    Javascript(Arc<JsClient>),
}

/// A connected client; dropping it is going away without a word.
#[derive(Debug)]
pub(super) enum Socket {
    Rust(Box<RustSocket>),
    Javascript(JsSocket),
}

/// A connection of our own.
#[derive(Debug)]
pub(super) struct RustSocket {
    client: SocketClient,
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
            Self::Rust => {
                let gateway = turn % gateways.len();
                let server = SocketAddr::from((Ipv4Addr::LOCALHOST, gateways[gateway].port()));
                let client = SocketClient::connect(server).await?;
                (gateway, Socket::Rust(Box::new(RustSocket { client, asked: 0 })))
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
            Self::Rust(rust) => rust.emit(event, data).await,
            Self::Javascript(javascript) => javascript.emit(event, &data),
        }
    }

    /// The next packet that says something. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Packet> {
        match self {
            Self::Rust(rust) => rust.next().await,
            Self::Javascript(javascript) => javascript.next().await,
        }
    }
}

impl RustSocket {
    async fn emit(&mut self, event: &str, data: Value) -> Result<u64> {
        let number = self.asked;
        self.asked += 1;
        self.client.emit(number, event, data).await?;
        Ok(number)
    }

    async fn next(&mut self) -> Result<Packet> {
        let text = self.client.next().await?;
        match text.split_at(KIND) {
            ("42", event) => event_of(event),
            (_, ack) => ack_of(ack),
        }
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
