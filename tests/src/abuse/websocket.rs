//! Attacks over websockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::interval;

use super::attack::{Done, FROM, add};
use crate::acks::is_taken_text;
use crate::socket_client::SocketClient;

/// New connections at a time, or the attacker's own queue would slow it down.
const PENDING_MAX: usize = 4_000;
/// Messages that are sent before answers are looked at.
const AT_ONCE: u64 = 256;
/// The same of packets of nearly a megabyte.
const LONG_AT_ONCE: u64 = 4;
const LONG: usize = 900_000;

/// Is connected and says nothing.
pub(super) async fn idle(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let mut socket = SocketClient::connect_from(server, Some(FROM)).await?;
    add(&done.taken, 1);
    loop {
        socket.next().await?;
    }
}

/// New sessions, a thousand a second, each by a connection of its own.
pub(super) async fn sessions(server: SocketAddr, done: Arc<Done>) {
    let pending = Arc::new(Semaphore::new(PENDING_MAX));
    let mut often = interval(Duration::from_millis(1));
    loop {
        often.tick().await;
        let Ok(place) = Arc::clone(&pending).try_acquire_owned() else { continue };
        let done = Arc::clone(&done);
        tokio::spawn(async move {
            add(&done.tried, 1);
            if session(server, &done).await.is_err() {
                add(&done.ended, 1);
            }
            drop(place);
        });
    }
}

async fn session(server: SocketAddr, done: &Done) -> Result<()> {
    let mut socket = SocketClient::connect_from(server, Some(FROM)).await?;
    socket.emit(0, "init_session", json!({})).await?;
    let answer = socket.next().await?;
    if answer.contains("rate_limited") {
        bail!("refused");
    }
    add(&done.taken, 1);
    Ok(())
}

/// Messages as fast as they go.
pub(super) async fn messages(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let mut socket = SocketClient::connect_from(server, Some(FROM)).await?;
    socket.emit(0, "init_session", json!({})).await?;
    let joined: Value = serde_json::from_str(socket.next().await?.trim_start_matches("430"))?;
    let payload = json!({ "sessionId": joined[0]["sessionId"], "content": "x".repeat(100) });
    let event = json!(["user_message", payload]);
    flood(&mut socket, AT_ONCE, &done, |number| format!("42{number}{event}")).await
}

/// Messages whose session is a megabyte of nonsense.
pub(super) async fn wrong_payloads(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let mut socket = SocketClient::connect_from(server, Some(FROM)).await?;
    let long = "s".repeat(LONG);
    let event = json!(["user_message", { "sessionId": long, "content": "x" }]).to_string();
    flood(&mut socket, LONG_AT_ONCE, &done, |_| format!("42{event}")).await
}

/// Joins namespaces whose names are a megabyte.
pub(super) async fn namespaces(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let mut socket = SocketClient::connect_from(server, Some(FROM)).await?;
    let packet = format!("40/{},", "n".repeat(LONG));
    flood(&mut socket, LONG_AT_ONCE, &done, |_| packet.clone()).await
}

async fn flood(
    socket: &mut SocketClient,
    at_once: u64,
    done: &Done,
    packet: impl Fn(u64) -> String,
) -> Result<()> {
    for number in 1.. {
        socket.put(packet(number)).await?;
        add(&done.tried, 1);
        if number % at_once == 0 {
            socket.flush().await?;
            while let Some(answer) = socket.next_now() {
                add(&done.taken, u64::from(is_taken_text(&answer?)));
            }
            // Others of this process have their turn.
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}
