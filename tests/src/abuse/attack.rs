//! What one address can do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::time::{interval, sleep};

use crate::socket_client::SocketClient;

/// Where attacks come from; the neighbours are on 127.0.0.1.
const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Connections that send headers byte by byte.
const SLOW: usize = 1_000;
/// Sockets that want to be connected and say nothing.
const IDLE: usize = 10_000;
/// New connections at a time, or the attacker's own queue would slow it down.
const PENDING_MAX: usize = 4_000;
/// Pause before who was refused comes again.
const AGAIN: Duration = Duration::from_secs(1);
/// Messages that are sent before answers are looked at.
const AT_ONCE: u64 = 256;

/// One way to do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Attack {
    /// A thousand connections send their headers byte by byte.
    SlowHeaders,
    /// Ten thousand sockets connect and say nothing.
    IdleSockets,
    /// A thousand new sessions a second, each by a connection of its own.
    NewSessions,
    /// One socket sends as fast as it can, and comes back when it is cut off.
    Messages,
}

/// What it came to.
#[derive(Default)]
struct Done {
    tried: AtomicU64,
    taken: AtomicU64,
    ended: AtomicU64,
}

impl Attack {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SlowHeaders => "slow-headers",
            Self::IdleSockets => "idle-sockets",
            Self::NewSessions => "new-sessions",
            Self::Messages => "messages",
        }
    }

    /// Attacks until the process is ended; says every second what it came to.
    pub(super) async fn run(self, server: SocketAddr) -> Result<()> {
        let done = Arc::new(Done::default());
        match self {
            Self::SlowHeaders => {
                each(SLOW, &done, move |done| slow_headers(server, done));
            }
            Self::IdleSockets => {
                each(IDLE, &done, move |done| idle(server, done));
            }
            Self::NewSessions => drop(tokio::spawn(sessions(server, Arc::clone(&done)))),
            Self::Messages => each(1, &done, move |done| messages(server, done)),
        }
        let mut seconds = interval(Duration::from_secs(1));
        loop {
            seconds.tick().await;
            let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
            let Done { tried, taken, ended } = &*done;
            println!(
                "tried {}, taken {}, ended by the gateway {}",
                read(tried),
                read(taken),
                read(ended)
            );
        }
    }
}

/// So many that try, and again after each failure, in a row of beginnings.
fn each<F>(count: usize, done: &Arc<Done>, one: impl Fn(Arc<Done>) -> F + Clone + Send + 'static)
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let done = Arc::clone(done);
    tokio::spawn(async move {
        let mut beginnings = interval(Duration::from_millis(1));
        for _ in 0..count {
            beginnings.tick().await;
            let (one, done) = (one.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                loop {
                    add(&done.tried, 1);
                    if one(Arc::clone(&done)).await.is_err() {
                        add(&done.ended, 1);
                    }
                    // One that sends as fast as it can does not rest either.
                    sleep(if count == 1 { Duration::ZERO } else { AGAIN }).await;
                }
            });
        }
    });
}

async fn slow_headers(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((FROM, 0).into())?;
    let mut stream = socket.connect(server).await?;
    add(&done.taken, 1);
    stream.write_all(b"GET /health HTTP/1.1\r\nX: ").await?;
    loop {
        stream.write_all(b"x").await?;
        sleep(Duration::from_millis(500)).await;
    }
}

async fn idle(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let mut socket = SocketClient::connect_from(server, Some(FROM)).await?;
    add(&done.taken, 1);
    loop {
        socket.next().await?;
    }
}

async fn sessions(server: SocketAddr, done: Arc<Done>) {
    let pending = Arc::new(tokio::sync::Semaphore::new(PENDING_MAX));
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

async fn messages(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let mut socket = SocketClient::connect_from(server, Some(FROM)).await?;
    socket.emit(0, "init_session", json!({})).await?;
    let joined: Value = serde_json::from_str(socket.next().await?.trim_start_matches("430"))?;
    let payload = json!({ "sessionId": joined[0]["sessionId"], "content": "x".repeat(100) });
    let event = json!(["user_message", payload]);
    for number in 0.. {
        socket.put(format!("42{number}{event}")).await?;
        add(&done.tried, 1);
        if number % AT_ONCE == 0 {
            socket.flush().await?;
            while let Some(answer) = socket.next_now() {
                add(&done.taken, u64::from(answer?.contains("accepted")));
            }
            // Others of this process have their turn.
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}
