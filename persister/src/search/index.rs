//! How the index is made, on a connection of its own, which may take its time.

use std::time::Instant;

use anyhow::Context;
use shared::database::Database;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};

use crate::migrate::{TELLS_EVERY, Tell};

/// What Postgres lists the connection as.
const APPLICATION: &str = "chat-persister-search";
/// Longest silence on the connection. A firewall forgets one that is silent for as long as it may take to make an index.
const KEPT_ALIVE_EVERY: &str = "30s";

/// Whether the index is there and whole, and whether this role may make it. Null where there is none.
const SEARCH_INDEX_STATE: &str = r#"
    SELECT (SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
            WHERE i.indrelid = t.oid AND c.relname = 'Message_search_idx'),
           pg_has_role(t.relowner, 'USAGE')
    FROM pg_class t WHERE t.oid = '"Message"'::regclass"#;

/// One makes it at a time, in a database. The number is nobody else's: "chatsear" in ASCII.
const SEARCH_INDEX_LOCK: &str = "SELECT pg_try_advisory_lock(7163082360112898418)";

const DROP_SEARCH_INDEX: &str = r#"DROP INDEX CONCURRENTLY "Message_search_idx""#;

/// Of each message its words, and the windows that it stands in, of 4,096 and of 65,536 `seq`s
/// (`gateway/src/db/search.rs`). No word begins with `#`. Of a content its first 100,000 characters: as many as can be
/// sent, and too few for the megabyte of words beyond which Postgres would refuse the row. An adopter's message may be
/// longer. New rows wait in a list until it has half a megabyte: to sort each in by itself costs three times as much, and
/// with a longer list who fills it would wait longer, and every search read more.
const MAKE_SEARCH_INDEX: &str = r#"
    CREATE INDEX CONCURRENTLY "Message_search_idx" ON "Message" USING gin ((
        to_tsvector('simple', left("content", 100000))
        || array_to_tsvector(ARRAY['#' || ("seq" >> 12)::text, '##' || ("seq" >> 16)::text])
    )) WITH (gin_pending_list_limit = 512)"#;

/// What was found, or done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was there.
    Stands,
    Made,
    /// Another process makes it now.
    MadeByAnother,
    /// This role may not.
    NotOwner,
}

/// What a role is told that may not make it.
pub const NOT_OWNER: &str = "SEARCH: this role may not make the index, run `persister migrate` with SEARCH=on as the role \
                         that owns the tables";

/// Makes it where it is not there.
pub async fn make(database: &Database, tell: Tell) -> anyhow::Result<Outcome> {
    let mut connection = connect(database).await?;
    let made = make_on(&mut connection, tell).await;
    // Whatever happened: the end of the connection frees the lock.
    connection.close().await.ok();
    made.context("making the index of SEARCH")
}

/// The same for the command: who may not is an error.
pub async fn make_by_command(database: &Database) -> anyhow::Result<()> {
    match make(database, |line| println!("{line}")).await? {
        Outcome::NotOwner => anyhow::bail!(NOT_OWNER),
        Outcome::MadeByAnother => println!("the index of SEARCH is being made by another process"),
        Outcome::Stands => println!("the index of SEARCH is there"),
        Outcome::Made => {}
    }
    Ok(())
}

async fn connect(database: &Database) -> anyhow::Result<PgConnection> {
    let options = database.options.clone().disable_statement_logging();
    let options = options.application_name(APPLICATION).options([
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("tcp_keepalives_idle", KEPT_ALIVE_EVERY),
    ]);
    let connecting = PgConnection::connect_with(&options);
    Ok(tokio::time::timeout(database.connect_timeout, connecting).await??)
}

async fn make_on(connection: &mut PgConnection, tell: Tell) -> anyhow::Result<Outcome> {
    let is_ours: bool = sqlx::query_scalar(SEARCH_INDEX_LOCK).fetch_one(&mut *connection).await?;
    match state(connection).await? {
        (Some(true), _) => return Ok(Outcome::Stands),
        _ if !is_ours => return Ok(Outcome::MadeByAnother),
        (_, false) => return Ok(Outcome::NotOwner),
        (Some(false), true) => {
            tell("removing an index of SEARCH that was not made to its end");
            connection.execute(DROP_SEARCH_INDEX).await?;
        }
        (None, true) => {}
    }
    tell("making the index of SEARCH; messages are stored meanwhile");
    let begun = Instant::now();
    let mut look = tokio::time::interval(TELLS_EVERY);
    look.tick().await;
    let mut making = connection.execute(MAKE_SEARCH_INDEX);
    loop {
        tokio::select! {
            made = &mut making => {
                made?;
                break;
            }
            _ = look.tick() => {
                tell(&format!("still making the index of SEARCH: {} s", begun.elapsed().as_secs()));
            }
        }
    }
    tell(&format!("made the index of SEARCH in {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(Outcome::Made)
}

/// Whether it is whole, if it is there, and whether this role may make it.
async fn state(connection: &mut PgConnection) -> sqlx::Result<(Option<bool>, bool)> {
    sqlx::query_as(SEARCH_INDEX_STATE).fetch_one(connection).await
}
