//! Attacks over plain TCP connections, with as much of HTTP as they need.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;

use super::attack::{Done, FROM, add};

/// Pause between bytes that are to keep a connection alive.
const DRIP: Duration = Duration::from_millis(500);
/// Bytes that one who reads a trickle takes at a time.
const TRICKLE: usize = 64;
/// Characters of the name that a request carries; what its headers may have is some more.
const NAME: usize = 12_000;
/// Resumes that one polling socket asks for before it answers pings.
const RESUMES: u64 = 16;

/// Sends headers byte by byte.
pub(super) async fn slow_headers(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let mut stream = connect(server, None).await?;
    add(&done.taken, 1);
    stream.write_all(b"GET /health HTTP/1.1\r\nX: ").await?;
    loop {
        stream.write_all(b"x").await?;
        sleep(DRIP).await;
    }
}

/// Connects and says nothing.
pub(super) async fn silence(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let mut stream = connect(server, None).await?;
    add(&done.taken, 1);
    ensure!(stream.read(&mut [0]).await? > 0, "ended");
    Ok(())
}

/// Stops in the middle of a body.
pub(super) async fn half_body(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let sid = open(server).await?;
    let mut stream = connect(server, None).await?;
    let head =
        format!("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n40", polling(&sid));
    stream.write_all(head.as_bytes()).await?;
    add(&done.taken, 1);
    read_to_end(&mut stream).await
}

/// Reads a long history a few bytes at a time.
pub(super) async fn trickle(server: SocketAddr, session: Arc<str>, done: Arc<Done>) -> Result<()> {
    let mut stream = connect(server, Some(4_096)).await?;
    let request = format!("GET /api/chats/{session} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut part = [0; TRICKLE];
    add(&done.taken, 1);
    while stream.read(&mut part).await? > 0 {
        ensure!(!part.starts_with(b"HTTP/1.1 4"), "refused");
        sleep(DRIP).await;
    }
    bail!("ended")
}

/// Names a socket that does not exist in each request of one connection, another one each time.
pub(super) async fn names(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let mut stream = connect(server, None).await?;
    let name = "n".repeat(NAME);
    for number in 0_u64.. {
        add(&done.tried, 1);
        let target = format!("/health?transport=websocket&sid={number}{name}");
        ask(&mut stream, "GET", &target, "").await?;
        add(&done.taken, 1);
    }
    Ok(())
}

/// Asks for upgrades of sockets of others, and of one of its own.
pub(super) async fn decoys(server: SocketAddr, done: Arc<Done>) -> Result<()> {
    let sid = open(server).await?;
    loop {
        add(&done.tried, 1);
        let mut stream = connect(server, None).await?;
        let head = format!(
            "GET /socket.io/?EIO=4&transport=websocket&sid={sid} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        ensure!(stream.read(&mut [0; 512]).await? > 0, "ended");
        add(&done.taken, 1);
    }
}

/// Asks again and again for a long history over polling, answers pings and never polls.
pub(super) async fn resumes(server: SocketAddr, session: Arc<str>, done: Arc<Done>) -> Result<()> {
    let target = polling(&open(server).await?);
    let mut stream = connect(server, None).await?;
    ask(&mut stream, "POST", &target, "40").await?;
    for number in 0_u64.. {
        let event = json!(["init_session", { "sessionId": &*session, "after": "x" }]);
        let packet =
            if number % RESUMES == 0 { "3".to_owned() } else { format!("42{number}{event}") };
        add(&done.tried, 1);
        ask(&mut stream, "POST", &target, &packet).await?;
        add(&done.taken, 1);
    }
    Ok(())
}

fn polling(sid: &str) -> String {
    format!("/socket.io/?EIO=4&transport=polling&sid={sid}")
}

/// Opens a socket over polling; gives its name.
async fn open(server: SocketAddr) -> Result<String> {
    let mut stream = connect(server, None).await?;
    let answer = ask(&mut stream, "GET", "/socket.io/?EIO=4&transport=polling", "").await?;
    let open: Value = serde_json::from_str(answer.get(1..).unwrap_or_default())?;
    open["sid"].as_str().map(str::to_owned).context("no socket")
}

async fn connect(server: SocketAddr, buffer: Option<u32>) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((FROM, 0).into())?;
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(socket.connect(server).await?)
}

/// The body of the answer, which is 200 and says how long it is.
async fn ask(stream: &mut TcpStream, method: &str, target: &str, body: &str) -> Result<String> {
    let length = body.len();
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut part = [0; 4_096];
    loop {
        let read = stream.read(&mut part).await?;
        ensure!(read > 0, "ended");
        answer.extend_from_slice(&part[..read]);
        let so_far = String::from_utf8_lossy(&answer);
        let Some((head, body)) = so_far.split_once("\r\n\r\n") else { continue };
        ensure!(head.starts_with("HTTP/1.1 200"), "refused");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.context("no length")?.parse()? {
            return Ok(body.to_owned());
        }
    }
}

async fn read_to_end(stream: &mut TcpStream) -> Result<()> {
    while stream.read(&mut [0; 4_096]).await? > 0 {}
    bail!("ended")
}
