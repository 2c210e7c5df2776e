//! Backing up a stack's database and putting the backup in its place.

use std::time::Duration;

use anyhow::Context;
use sqlx::{AssertSqlSafe, PgPool};

use crate::stack::Stack;
use crate::wait::{eventually, must};

/// Sessions that are told to end are gone soon.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// A copy of the stack's database on its own server.
#[derive(Debug)]
pub struct Backups {
    server: PgPool,
    database: String,
}

impl Backups {
    /// Of a stack with a Postgres of its own.
    pub async fn of(stack: &Stack) -> Self {
        let parts = stack.database_url().rsplit_once('/').context("a URL without a database");
        let (server, database) = must(parts, "the URL of the database");
        let database = database.split('?').next().unwrap_or_default().to_owned();
        let server = PgPool::connect(&format!("{server}/postgres")).await;
        Self { server: must(server, "connecting to the server"), database }
    }

    /// Takes one; the one before is thrown away. Connections to the database end.
    pub async fn back_up(&self) {
        self.run("DROP DATABASE IF EXISTS backup".into()).await;
        self.copy(&self.database, "backup").await;
    }

    /// Puts it in the place of the database.
    pub async fn restore(&self) {
        self.close(&self.database).await;
        self.run(format!("DROP DATABASE \"{}\" WITH (FORCE)", self.database)).await;
        self.copy("backup", &self.database).await;
    }

    /// A template must have no connections, and those that end come back at once.
    async fn copy(&self, from: &str, to: &str) {
        self.close(from).await;
        self.run(format!("CREATE DATABASE \"{to}\" TEMPLATE \"{from}\"")).await;
        self.run(format!("ALTER DATABASE \"{from}\" ALLOW_CONNECTIONS true")).await;
    }

    async fn close(&self, database: &str) {
        self.run(format!("ALTER DATABASE \"{database}\" ALLOW_CONNECTIONS false")).await;
        let others =
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1";
        eventually(ENDS_WITHIN, "connections end", async || {
            let left = sqlx::query_scalar::<_, i64>(others).bind(database).fetch_one(&self.server);
            must(left.await, "ending connections") == 0
        })
        .await;
    }

    async fn run(&self, statement: String) {
        must(sqlx::query(AssertSqlSafe(statement)).execute(&self.server).await, "a backup");
    }
}
