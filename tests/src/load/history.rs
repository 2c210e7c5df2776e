//! Reads of long histories: all of them, while `/health` is looked at; then single ones, many at a time.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::arguments::History;
use super::figures::{Figures, Unit, float, histogram};
use super::target::{Target, pool};

/// Sessions whose ids are known to the readers.
const IDS: i64 = 5_000;
/// How often `/health` is looked at, and the memory.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes read at a time.
const BUFFER: usize = 64 * 1024;
/// The end of the head of an answer.
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

const FILL_SESSIONS: &str = r#"
    INSERT INTO "ChatSession" ("id", "sessionId", "ip", "userAgent", "createdAt")
    SELECT 'c' || lpad(to_hex(n), 24, '0'), gen_random_uuid()::text, '127.0.0.1', NULL,
           TIMESTAMP '2026-01-01' + n * interval '1 second'
    FROM generate_series(1, $1) n"#;

/// Message by message of all sessions in turn: neighbours in a history are far apart in the table.
const FILL_MESSAGES: &str = r#"
    INSERT INTO "Message" ("id", "sender", "content", "createdAt", "isAI", "chatSessionId")
    SELECT 'c' || lpad(to_hex(m), 12, '0') || lpad(to_hex(s), 12, '0'),
           CASE m % 2 WHEN 0 THEN 'user' ELSE 'admin' END, repeat('x', 100),
           TIMESTAMP '2026-01-01' + m * interval '1 hour' + s * interval '1 second', false,
           'c' || lpad(to_hex(s), 24, '0')
    FROM generate_series(1, $2) m, generate_series(1, $1) s ORDER BY m, s"#;

/// Fills the database of a stack of ours, then reads.
pub(super) async fn measure(target: &Target, history: &History) -> Result<Figures> {
    let pool = match (&history.database_url, target.pool()) {
        (_, Some(pool)) => {
            fill(&pool, history).await?;
            pool
        }
        (Some(url), None) => pool(url)?,
        (None, None) => bail!("--database-url says where the ids of the sessions are"),
    };
    let query = sqlx::query_scalar(r#"SELECT "sessionId" FROM "ChatSession" LIMIT $1"#);
    let ids: Vec<String> = query.bind(IDS).fetch_all(&pool).await?;
    ensure!(!ids.is_empty(), "no session is stored");
    pool.close().await;
    let mut figures = Figures::default();
    all(target, &mut figures).await?;
    single(target, history, ids, &mut figures).await?;
    Ok(figures)
}

async fn fill(pool: &PgPool, history: &History) -> Result<()> {
    println!("  storing {} sessions of {} messages", history.sessions, history.messages);
    let (sessions, messages) = (history.sessions.cast_signed(), history.messages.cast_signed());
    sqlx::query(FILL_SESSIONS).bind(sessions).execute(pool).await?;
    sqlx::query(FILL_MESSAGES).bind(sessions).bind(messages).execute(pool).await?;
    sqlx::raw_sql("VACUUM ANALYZE").execute(pool).await?;
    Ok(())
}

/// `GET /api/chats`, with an eye on `/health` and on the memory.
async fn all(target: &Target, figures: &mut Figures) -> Result<()> {
    let server = target.addresses[0];
    let gateway = target.servers.get("gateway");
    let before = gateway.map(super::usage::Server::memory).transpose()?;
    let used = target.servers.used()?;
    let health = Rc::new(RefCell::new(histogram()));
    let most = Rc::new(Cell::new(0));
    let mut beside = JoinSet::new();
    beside.spawn_local(look_at_health(server, Rc::clone(&health)));
    if let Some(gateway) = gateway {
        let (gateway, most) = (gateway.clone(), Rc::clone(&most));
        beside.spawn_local(async move {
            loop {
                most.set(gateway.memory().unwrap_or_default().max(most.get()));
                sleep(LOOK).await;
            }
        });
    }
    let begun = Instant::now();
    let bytes = Reader::connect(server).await?.get("/api/chats").await?;
    let took = begun.elapsed();
    figures.add("GET /api/chats", Unit::Seconds, took.as_secs_f64());
    figures.add("GET /api/chats, bytes", Unit::Mib, float(bytes) / 1024.0 / 1024.0);
    target.servers.used()?.add_since(&used, 1, figures);
    if let Some(before) = before {
        let grown = most.get().saturating_sub(before);
        figures.add("memory above idle meanwhile", Unit::Mib, float(grown) / 1024.0 / 1024.0);
    }
    figures.latency("/health meanwhile,", &health.borrow());
    Ok(())
}

/// From when each look was due.
async fn look_at_health(server: SocketAddr, health: Rc<RefCell<hdrhistogram::Histogram<u64>>>) {
    let Ok(mut reader) = Reader::connect(server).await else { return };
    let mut due = interval(LOOK);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        let due = due.tick().await;
        if reader.get("/health").await.is_err() {
            return;
        }
        let micros = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
        health.borrow_mut().saturating_record(micros);
    }
}

/// `GET /api/chats/:sessionId`, one after the other on each of several connections.
async fn single(
    target: &Target,
    history: &History,
    ids: Vec<String>,
    figures: &mut Figures,
) -> Result<()> {
    let ids = Rc::new(ids);
    let begun = Instant::now();
    let until = begun + Duration::from_secs(history.seconds);
    let used = target.servers.used()?;
    let mut readers = JoinSet::new();
    for number in 0..history.connections {
        let server = target.addresses[number % target.addresses.len()];
        let ids = Rc::clone(&ids);
        readers.spawn_local(async move {
            let mut reader = Reader::connect(server).await?;
            let mut times = histogram();
            let turns = ids.iter().cycle().skip(number * 101);
            for id in turns {
                let asked = Instant::now();
                if asked > until {
                    break;
                }
                reader.get(&format!("/api/chats/{id}")).await?;
                let micros = u64::try_from(asked.elapsed().as_micros())?;
                times.saturating_record(micros);
            }
            anyhow::Ok(times)
        });
    }
    let mut times = histogram();
    while let Some(read) = readers.join_next().await {
        times.add(read??).context("times of a reader")?;
    }
    let rate = float(times.len()) / begun.elapsed().as_secs_f64();
    figures.add("GET /api/chats/:sessionId", Unit::PerSecond, rate);
    figures.latency("GET /api/chats/:sessionId,", &times);
    let mut each = Figures::default();
    target.servers.used()?.add_since(&used, times.len(), &mut each);
    figures.extend(each.renamed(|name| format!("each, {name}")));
    Ok(())
}

/// A connection that reads answers and keeps nothing of them.
#[derive(Debug)]
struct Reader {
    stream: TcpStream,
    server: SocketAddr,
    buffer: Vec<u8>,
}

impl Reader {
    async fn connect(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, server, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Bytes of the answer's body, as they came over the network.
    async fn get(&mut self, path: &str) -> Result<u64> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.server);
        self.stream.write_all(request.as_bytes()).await?;
        self.buffer.clear();
        let head = loop {
            self.more().await?;
            let end = self.buffer.windows(END_OF_HEAD.len()).position(|part| part == END_OF_HEAD);
            if let Some(end) = end {
                break end + END_OF_HEAD.len();
            }
        };
        let text = String::from_utf8_lossy(&self.buffer[..head]).to_ascii_lowercase();
        ensure!(text.starts_with("http/1.1 200"), "{path}: {text}");
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        match length {
            Some(length) => self.rest(head, length.trim().parse()?).await,
            None => self.chunks(head).await,
        }
    }

    async fn rest(&mut self, head: usize, length: usize) -> Result<u64> {
        let mut read = self.buffer.len() - head;
        while read < length {
            self.buffer.clear();
            self.more().await?;
            read += self.buffer.len();
        }
        Ok(read as u64)
    }

    /// Until the last chunk, which is empty.
    async fn chunks(&mut self, head: usize) -> Result<u64> {
        const LAST: &[u8] = b"0\r\n\r\n";
        self.buffer.drain(..head);
        let mut read = self.buffer.len();
        while !self.buffer.ends_with(LAST) {
            // What may be the beginning of the last chunk stays.
            let kept = self.buffer.len().saturating_sub(LAST.len() - 1);
            self.buffer.drain(..kept);
            read += self.more().await?;
        }
        Ok(read as u64)
    }

    async fn more(&mut self) -> Result<usize> {
        let read = self.stream.read_buf(&mut self.buffer).await?;
        ensure!(read > 0, "the answer was cut off");
        Ok(read)
    }
}
