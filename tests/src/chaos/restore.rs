//! Dumps of the database, and putting one in the place of the present one, as an operator would do it.
//!
//! A dump is one snapshot of all tables, copied into a database of its own while everything goes on;
//! a restore renames: connections end, and the next ones find the older state.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, Row};
use tokio::time::sleep;
use url::Url;

/// A database that nothing was ever stored in, to make dumps from.
const PRISTINE: &str = "chaos_pristine";
/// Sessions that are told to end are gone soon.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// The server on which databases are copied and renamed.
#[derive(Clone, Debug)]
pub(super) struct Dumps {
    server: Url,
    live: String,
}

/// A database with an older state.
#[derive(Debug)]
pub(super) struct Dump {
    name: String,
}

impl Dumps {
    /// Dumps of the database with this URL. The URL of the database to migrate for them comes with it.
    pub(super) async fn of(database: &str) -> Result<(Self, String)> {
        let mut server = Url::parse(database)?;
        let live = server.path().trim_start_matches('/').to_owned();
        server.set_path("postgres");
        let dumps = Self { server, live };
        dumps.execute(&format!("CREATE DATABASE {PRISTINE}")).await?;
        let pristine = dumps.url(PRISTINE);
        Ok((dumps, pristine))
    }

    /// Takes a dump under this name.
    pub(super) async fn take(&self, name: &str) -> Result<Dump> {
        self.execute(&format!("CREATE DATABASE {name} TEMPLATE {PRISTINE}")).await?;
        let mut from = PgConnection::connect(&self.url(&self.live)).await?;
        let mut to = PgConnection::connect(&self.url(name)).await?;
        from.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        // Without triggers the order of the tables does not matter.
        to.execute("SET session_replication_role = replica").await?;
        for table in tables(&mut from).await? {
            copy(&mut from, &mut to, &table).await.with_context(|| table.clone())?;
        }
        copy_sequences(&mut from, &mut to).await?;
        from.close().await?;
        to.close().await?;
        Ok(Dump { name: name.to_owned() })
    }

    /// Puts a dump in the place of the database, which is thrown away.
    pub(super) async fn put_back(&self, dump: Dump) -> Result<()> {
        let live = &self.live;
        let Dump { name } = dump;
        self.execute(&format!("ALTER DATABASE {live} ALLOW_CONNECTIONS false")).await?;
        self.end_sessions(live).await?;
        let gone = format!("{name}_gone");
        self.execute(&format!("ALTER DATABASE {live} RENAME TO {gone}")).await?;
        self.execute(&format!("ALTER DATABASE {name} RENAME TO {live}")).await?;
        self.execute(&format!("DROP DATABASE {gone} WITH (FORCE)")).await
    }

    async fn end_sessions(&self, database: &str) -> Result<()> {
        let mut server = PgConnection::connect(self.server.as_str()).await?;
        let until = Instant::now() + ENDS_WITHIN;
        loop {
            let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
            let ended = sqlx::query(ended).bind(database).fetch_all(&mut server).await?;
            if ended.is_empty() {
                return Ok(server.close().await?);
            }
            ensure!(Instant::now() < until, "connections to {database} do not end");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn execute(&self, statement: &str) -> Result<()> {
        let mut server = PgConnection::connect(self.server.as_str()).await?;
        server.execute(AssertSqlSafe(statement)).await.with_context(|| statement.to_owned())?;
        Ok(server.close().await?)
    }

    fn url(&self, database: &str) -> String {
        let mut url = self.server.clone();
        url.set_path(database);
        url.into()
    }
}

/// All tables but the list of migrations, which the pristine database has.
async fn tables(from: &mut PgConnection) -> Result<Vec<String>> {
    let tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
                  WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations'";
    Ok(sqlx::query_scalar(tables).fetch_all(from).await?)
}

async fn copy(from: &mut PgConnection, to: &mut PgConnection, table: &str) -> Result<()> {
    let mut rows = from.copy_out_raw(&format!("COPY {table} TO STDOUT")).await?;
    let mut into = to.copy_in_raw(&format!("COPY {table} FROM STDIN")).await?;
    while let Some(chunk) = rows.try_next().await? {
        into.send(chunk).await?;
    }
    into.finish().await?;
    Ok(())
}

async fn copy_sequences(from: &mut PgConnection, to: &mut PgConnection) -> Result<()> {
    let sequences = "SELECT format('%I.%I', schemaname, sequencename) AS name, last_value
                     FROM pg_sequences WHERE schemaname = 'public' AND last_value IS NOT NULL";
    for row in sqlx::query(sequences).fetch_all(from).await? {
        let (name, last): (String, i64) = (row.try_get("name")?, row.try_get("last_value")?);
        sqlx::query("SELECT setval($1::text::regclass, $2)")
            .bind(name)
            .bind(last)
            .execute(&mut *to)
            .await?;
    }
    Ok(())
}
