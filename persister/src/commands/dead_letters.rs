//! `persister dead-letters`: what could not be stored, and what becomes of it.

use std::io::Write;

use anyhow::Context;
use async_nats::jetstream;
use clap::Subcommand;
use shared::timestamp::Timestamp;

use crate::config::Config;
use crate::store::operator::{DeadLetter, OperatorStore};

/// Dead letters listed unless `--limit` says otherwise.
const LISTED: u32 = 100;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists them, oldest first.
    List {
        /// Most to list.
        #[arg(long, default_value_t = LISTED)]
        limit: u32,
    },
    /// Prints the record of one as it stands in the log.
    Show {
        /// Number of the dead letter.
        id: i64,
    },
    /// Appends records at the end of the log again, once what kept them from being stored is mended.
    Requeue {
        /// Numbers of the dead letters.
        #[arg(required = true)]
        ids: Vec<i64>,
    },
    /// Forgets them for good.
    Drop {
        /// Numbers of the dead letters.
        #[arg(required = true)]
        ids: Vec<i64>,
    },
}

pub async fn run(command: Command, config: &Config) -> anyhow::Result<()> {
    let store = OperatorStore::connect(&config.database);
    match command {
        Command::List { limit } => list(&store, limit).await,
        Command::Show { id } => show(&store, id).await,
        Command::Requeue { ids } => requeue(&store, config, &ids).await,
        Command::Drop { ids } => {
            for id in ids {
                find(&store, id).await?;
                store.drop_dead_letter(id).await?;
                println!("dropped {id}");
            }
            Ok(())
        }
    }
}

async fn list(store: &OperatorStore, limit: u32) -> anyhow::Result<()> {
    let letters = store.dead_letters(limit).await?;
    if letters.is_empty() {
        // Not on standard output, where a script counts lines.
        eprintln!("there are no dead letters: everything in the log could be stored");
    }
    for letter in letters {
        let DeadLetter { id, subject, reason, .. } = &letter;
        let bytes = letter.payload.len();
        println!(
            "{id}  {}  {subject}  {bytes} bytes  {reason}",
            Timestamp::truncate(letter.recorded_at)
        );
    }
    Ok(())
}

async fn show(store: &OperatorStore, id: i64) -> anyhow::Result<()> {
    let letter = find(store, id).await?;
    let mut out = std::io::stdout().lock();
    out.write_all(&letter.payload)?;
    writeln!(out)?;
    Ok(())
}

async fn requeue(store: &OperatorStore, config: &Config, ids: &[i64]) -> anyhow::Result<()> {
    let client = config.nats.connect_once().await.context("NATS cannot be reached (NATS_URL)")?;
    let jetstream = jetstream::new(client);
    for id in ids {
        let letter = find(store, *id).await?;
        jetstream.publish(letter.subject, letter.payload.into()).await?.await?;
        // A crash in between leaves it here too; its id keeps it from being stored twice.
        store.drop_dead_letter(*id).await?;
        println!("requeued {id}");
    }
    Ok(())
}

async fn find(store: &OperatorStore, id: i64) -> anyhow::Result<DeadLetter> {
    store.dead_letter(id).await?.with_context(|| format!("there is no dead letter {id}"))
}
