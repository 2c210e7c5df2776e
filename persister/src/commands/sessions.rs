//! `persister sessions`: what becomes of a person's data.

use std::io::{BufWriter, Write};
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use shared::session::Extent;
use shared::settings::Span;
use time::OffsetDateTime;

use crate::config::Config;
use crate::retention::prune::{Sessions, unknown};
use crate::store::operator::OperatorStore;

/// Messages read at a time.
const MESSAGES_PAGE: u16 = 1_000;

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Erases a session and everything said in it, for good.
    Erase {
        /// Its `sessionId`.
        session_id: String,
    },
    /// Prints a session with everything said in it, as JSON.
    Export {
        /// Its `sessionId`.
        session_id: String,
    },
    /// Erases all sessions in which nothing happened for some time. If it is interrupted, run it again.
    Prune {
        /// How long, as 12h or 90d.
        #[arg(long, value_parser = parse_span)]
        older_than: Duration,
        /// Only says which sessions it would erase, one `sessionId` a line.
        #[arg(long)]
        dry_run: bool,
    },
}

fn parse_span(text: &str) -> Result<Duration, &'static str> {
    text.parse().map(|Span(duration)| duration)
}

pub async fn run(command: Command, config: &Config) -> anyhow::Result<()> {
    let store = OperatorStore::connect(&config.database);
    let sessions = Sessions::connect(store, &config.nats, &config.log.stream).await?;
    match command {
        Command::Erase { session_id } => sessions.erase(&session_id).await,
        Command::Export { session_id } => export(&sessions, &session_id).await,
        Command::Prune { older_than, dry_run } => {
            let before = OffsetDateTime::now_utc().checked_sub(older_than.try_into()?);
            let before = before.context("--older-than: longer ago than any time")?;
            if dry_run { sessions.list_quiet(before).await } else { sessions.prune(before).await }
        }
    }
}

async fn export(sessions: &Sessions, session_id: &str) -> anyhow::Result<()> {
    let last = sessions.last_record(session_id).await?;
    let extent = sessions.store.extent(session_id).await?;
    // An erasure takes more than one statement where much was said: what is left in between is no export.
    let is_ending = last.is_some_and(|last| last.erases);
    let extent = extent.filter(|_| !is_ending).with_context(|| unknown(session_id))?;
    print(&sessions.store, &extent).await
}

/// Prints what is stored of a session now. If some of it is erased before it is read, that is an error, and
/// what was printed is no JSON.
async fn print(store: &OperatorStore, extent: &Extent) -> anyhow::Result<()> {
    let Extent { session, count, last, .. } = extent;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let head = serde_json::to_string(&extent.to_head()?)?;
    // The head is an object: its brace gives way to the messages.
    write!(out, r#"{},"messages":["#, head.strip_suffix('}').unwrap_or(&head))?;
    let (mut after, mut missing) = (None, *count);
    loop {
        let messages = store.messages_between(&session.id, after, *last, MESSAGES_PAGE).await?;
        missing -= i64::try_from(messages.len())?;
        for message in &messages {
            out.write_all(if after.is_some() { b"," } else { b"" })?;
            serde_json::to_writer(&mut out, &message.to_message())?;
            after = Some(message.seq);
        }
        if messages.len() < usize::from(MESSAGES_PAGE) {
            break;
        }
    }
    out.flush()?;
    anyhow::ensure!(missing <= 0, "it was erased meanwhile: what was printed is not all of it");
    writeln!(out, "]}}")?;
    Ok(out.flush()?)
}
