//! A backlog: messages are put into the log while no persister runs; then some drain it. The same
//! backlog is stored again by another number of them, as after the restore of an older database.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use shared::content::Content;
use shared::ids::{ChatSessionId, MessageId, SessionId};
use shared::message::Sender;
use shared::partition::PartitionCount;
use shared::record::{NewMessage, NewSession, Record};
use shared::subjects;
use sqlx::PgPool;
use tokio::time::sleep;

use super::account::Name;
use super::arguments::Backlog;
use super::figures::{Figures, Unit, float};
use super::parts::Window;
use super::target::Target;
use super::usage::{Servers, Used};

/// Acks that are waited for at a time.
const WINDOW: usize = 512;
const LOOK: Duration = Duration::from_millis(100);
/// Without a new row for so long, something is broken.
const STALLS_WITHIN: Duration = Duration::from_mins(1);

/// Nothing of the log counts as stored any more.
const FORGET: &str = r#"
    TRUNCATE "Message", "ChatSession", "DeadLetter" RESTART IDENTITY;
    UPDATE "LogPartition" SET "sequence" = 0, "recordedAt" = NULL, "streamCreatedAt" = NULL,
        "owner" = NULL, "leaseUntil" = NULL;
    DELETE FROM "Worker";
    CHECKPOINT"#;

/// Collects once, stores with each number of persisters.
pub(super) async fn measure(target: &Target, backlog: &Backlog) -> Result<Figures> {
    let stack = target.stack.as_ref().context("only a stack of our own has persisters to stop")?;
    let most = backlog.by.iter().copied().max().unwrap_or_default();
    ensure!(stack.persisters().len() >= most, "--persisters {most} is needed");
    let pool = stack.pool();
    stop_all(target).await;
    let mut figures = Figures::default();
    let begun = Instant::now();
    fill(stack.nats_client().await, backlog).await?;
    let rate = float(backlog.messages) / begun.elapsed().as_secs_f64();
    figures.add("published", Unit::PerSecond, rate);
    for count in &backlog.by {
        sqlx::raw_sql(FORGET).execute(&pool).await?;
        for persister in &stack.persisters()[..*count] {
            persister.spawn();
        }
        let servers = super::target::servers(stack);
        figures.extend(drain(&pool, &servers, backlog, *count).await?);
        stop_all(target).await;
    }
    Ok(figures)
}

async fn stop_all(target: &Target) {
    let persisters = target.stack.iter().flat_map(crate::Stack::persisters);
    for persister in persisters.filter(|persister| persister.is_running()) {
        persister.terminate().await;
    }
}

async fn fill(client: async_nats::Client, backlog: &Backlog) -> Result<()> {
    println!("  putting {} messages into the log", backlog.messages);
    let sessions: Vec<_> = (0..backlog.sessions).map(|_| SessionId::random()).collect();
    let mut window = Window::new(jetstream::new(client), WINDOW);
    for session in &sessions {
        let new = NewSession { id: ChatSessionId::random(), ip: None, user_agent: None };
        window.publish(subject(*session), Record::Session(new).encode()?.into()).await?;
    }
    for (number, session) in (0..backlog.messages).zip(sessions.iter().cycle()) {
        let content = Content::parse(Name { sender: 0, number }.content(), usize::MAX)?;
        let message =
            NewMessage { id: MessageId::random(), sender: Sender::User, content, is_ai: false };
        window.publish(subject(*session), Record::Message(message).encode()?.into()).await?;
    }
    window.settle().await
}

fn subject(session: SessionId) -> String {
    subjects::request(PartitionCount::DEFAULT.partition_of(session), session)
}

/// Waits until everything is stored; the first tenth, in which the workers find their shares and
/// Postgres its memory, does not count.
async fn drain(
    pool: &PgPool,
    servers: &Servers,
    backlog: &Backlog,
    persisters: usize,
) -> Result<Figures> {
    let mut begun: Option<(Instant, u64, Used)> = None;
    let (mut rows, mut news) = (0, Instant::now());
    while rows < backlog.messages {
        sleep(LOOK).await;
        let now = stored(pool).await?;
        if now > rows {
            news = Instant::now();
        }
        rows = now;
        if begun.is_none() && rows >= backlog.messages / 10 {
            begun = Some((Instant::now(), rows, servers.used()?));
        }
        ensure!(news.elapsed() < STALLS_WITHIN, "only {rows} messages are stored");
    }
    let (begun, before, used) = begun.context("it went too fast to be measured")?;
    let rate = float(rows - before) / begun.elapsed().as_secs_f64();
    println!("  {persisters} persisters: {rate:.0} rows/s");
    let mut figures = Figures::default();
    figures.add(format!("stored by {persisters}"), Unit::PerSecond, rate);
    let mut each = Figures::default();
    servers.used()?.add_since(&used, rows - before, &mut each);
    figures.extend(each.renamed(|name| format!("by {persisters}, {name}")));
    let unlike = counted(pool).await?.abs_diff(backlog.messages);
    figures.count(format!("by {persisters}, stored too few or too many"), unlike);
    Ok(figures)
}

/// Numbers given to rows, from 1 after a truncation; counting a million rows again and again would take
/// what is measured.
async fn stored(pool: &PgPool) -> Result<u64> {
    const GIVEN: &str =
        r#"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM "Message_seq_seq""#;
    let rows: i64 = sqlx::query_scalar(GIVEN).fetch_one(pool).await?;
    Ok(rows.unsigned_abs())
}

async fn counted(pool: &PgPool) -> Result<u64> {
    let rows: i64 = sqlx::query_scalar(r#"SELECT count(*) FROM "Message""#).fetch_one(pool).await?;
    Ok(rows.unsigned_abs())
}
