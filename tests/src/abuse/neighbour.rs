//! Visitors who type now and then, and look how long it takes.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use crate::acks::is_taken_text;
use crate::socket_client::SocketClient;

/// Visitors, each in a session of its own.
const VISITORS: usize = 10;
/// Each says something so often.
const EVERY: Duration = Duration::from_millis(100);
/// Who waits for longer is disturbed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the acks and the messages took, sorted.
pub(super) struct Noticed {
    acks: Vec<Duration>,
    messages: Vec<Duration>,
}

/// Lets visitors talk for so long.
pub(super) async fn watch(server: SocketAddr, time: Duration) -> Result<Noticed> {
    let mut visitors: JoinSet<_> =
        (0..VISITORS).map(|_| talk(server, Instant::now() + time)).collect();
    let mut noticed = Noticed { acks: Vec::new(), messages: Vec::new() };
    while let Some(talked) = visitors.join_next().await {
        let talked = talked??;
        noticed.acks.extend(talked.iter().map(|(ack, _)| *ack));
        noticed.messages.extend(talked.iter().map(|(_, message)| *message));
    }
    noticed.acks.sort_unstable();
    noticed.messages.sort_unstable();
    Ok(noticed)
}

async fn talk(server: SocketAddr, until: Instant) -> Result<Vec<(Duration, Duration)>> {
    let mut socket = SocketClient::connect(server).await?;
    socket.emit(0, "init_session", json!({})).await?;
    let joined = timeout(PATIENCE, socket.next()).await.context("no session")??;
    let joined: Value = serde_json::from_str(joined.trim_start_matches("430"))?;
    let payload = json!({ "sessionId": joined[0]["sessionId"], "content": "x".repeat(100) });
    let mut often = interval(EVERY);
    let mut took = Vec::new();
    while Instant::now() < until {
        often.tick().await;
        socket.emit(1, "user_message", payload.clone()).await?;
        took.push(timeout(PATIENCE, answered(&mut socket)).await.context("no answer")??);
    }
    Ok(took)
}

/// How long it takes until the ack is here, and until the message is.
async fn answered(socket: &mut SocketClient) -> Result<(Duration, Duration)> {
    let start = Instant::now();
    let (mut ack, mut message) = (None, None);
    loop {
        let text = socket.next().await?;
        if text.starts_with("43") {
            ensure!(is_taken_text(&text), "refused: {text}");
            ack = Some(start.elapsed());
        } else {
            message = Some(start.elapsed());
        }
        if let (Some(ack), Some(message)) = (ack, message) {
            return Ok((ack, message));
        }
    }
}

impl Noticed {
    /// How many times as long as before.
    pub(super) fn ratio(&self, before: &Self) -> String {
        let ratio = |of: fn(&Self) -> &[Duration], percent| {
            millis(of(self), percent) / millis(of(before), percent)
        };
        let both = |of| format!("{:8.2} / {:8.2}", ratio(of, 50), ratio(of, 99));
        format!("ack {}   message {}", both(|it| &it.acks), both(|it| &it.messages))
    }
}

impl fmt::Display for Noticed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let both = |of| format!("{:8.2} / {:8.2}", millis(of, 50), millis(of, 99));
        let Self { acks, messages } = self;
        write!(f, "ack {}   message {}   {} sends", both(acks), both(messages), acks.len())
    }
}

fn millis(sorted: &[Duration], percent: usize) -> f64 {
    sorted.get(sorted.len() * percent / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1_000.0)
}
