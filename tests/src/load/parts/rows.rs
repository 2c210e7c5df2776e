//! The database alone: batches of rows into a table with the columns and indexes of the messages.

use std::time::Duration;

use anyhow::Result;
use shared::ids::MessageId;
use sqlx::PgPool;

use crate::load::usage::Server;

use super::Cost;
use super::log::Meter;

const TABLE: &str = r#"CREATE TABLE IF NOT EXISTS "Parts" (LIKE "Message" INCLUDING ALL)"#;

const INSERT: &str = r#"
    INSERT INTO "Parts" ("id", "sender", "content", "createdAt", "chatSessionId", "logEpoch", "logSequence")
    SELECT "id", 'user', "content", now(), "chatSessionId", 7, "logSequence"
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
        WITH ORDINALITY AS m ("id", "content", "chatSessionId", "logSequence", "ord")
    ORDER BY "ord"
    ON CONFLICT DO NOTHING"#;

/// Sessions that the rows belong to.
const SESSIONS: i64 = 50;
const CONTENT_CHARS: usize = 100;

/// Makes the table, without rows.
pub(super) async fn prepare(pool: &PgPool) -> Result<()> {
    sqlx::query(TABLE).execute(pool).await?;
    sqlx::query(r#"TRUNCATE "Parts""#).execute(pool).await?;
    Ok(())
}

/// Stores so long in batches, on one connection.
pub(super) async fn store(
    pool: &PgPool,
    postgres: &Server,
    batch: usize,
    lasts: Duration,
) -> Result<Cost> {
    let first: i64 = sqlx::query_scalar(r#"SELECT coalesce(max("logSequence"), 0) FROM "Parts""#)
        .fetch_one(pool)
        .await?;
    let mut connection = pool.acquire().await?;
    let content = "x".repeat(CONTENT_CHARS);
    let meter = Meter::start(postgres)?;
    let mut sequence = first;
    while meter.begun.elapsed() < lasts {
        let mut columns = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..batch {
            sequence += 1;
            columns.0.push(MessageId::random().as_str().to_owned());
            columns.1.push(content.clone());
            columns.2.push(format!("c{:024}", sequence % SESSIONS));
            columns.3.push(sequence);
        }
        let (ids, contents, chats, sequences) = columns;
        let insert = sqlx::query(INSERT).bind(ids).bind(contents).bind(chats).bind(sequences);
        insert.execute(&mut *connection).await?;
    }
    meter.cost((sequence - first).unsigned_abs())
}
