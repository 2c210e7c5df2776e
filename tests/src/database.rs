//! A database for every test, on the Postgres that all test processes share.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use stack::lock::Lock;
use stack::shared_postgres::SharedPostgres;
use stack::tool;
use tokio::sync::OnceCell;
use url::Url;

use crate::binaries::{Binaries, workspace};
use crate::wait::{blocking, must};

/// Connecting, and making or dropping a database.
const SQL_WITHIN: Duration = Duration::from_mins(1);
/// `persister migrate` on an empty database.
const MIGRATES_WITHIN: Duration = Duration::from_mins(1);

/// A database of a test's own; dropped with this value.
#[derive(Debug)]
pub struct Database {
    server: String,
    name: String,
    url: String,
}

impl Database {
    /// An empty one on the shared server.
    pub async fn empty() -> Self {
        Self::create(&shared().await.url, None).await
    }

    /// One that `persister migrate` has brought up to date.
    pub async fn migrated() -> Self {
        static TEMPLATE: OnceCell<String> = OnceCell::const_new();
        let shared = shared().await;
        let template =
            TEMPLATE.get_or_init(|| async { must(shared.template().await, "making the template") });
        Self::create(&shared.url, Some(template.await)).await
    }

    /// An empty one on a server of one's own.
    pub(crate) async fn empty_on(server: &str) -> Self {
        Self::create(server, None).await
    }

    /// One on a server of one's own that `persister migrate` has brought up to date.
    pub(crate) async fn migrated_on(server: &str) -> Self {
        let database = Self::empty_on(server).await;
        migrate(database.url.clone()).await;
        database
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    async fn create(server: &str, template: Option<&str>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let like = template.map(|template| format!("TEMPLATE {template}")).unwrap_or_default();
        // A process id comes back some day, and a server of one's own keeps what a killed run left.
        must(
            execute(server, &format!("DROP DATABASE IF EXISTS {name}")).await,
            "making room for a database",
        );
        must(execute(server, &format!("CREATE DATABASE {name} {like}")).await, "making a database");
        let url = must(with_database(server, &name), "the URL of Postgres");
        Self { server: server.to_owned(), name, url }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let server = self.server.clone();
        let dropping = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            // A server that the test killed took the database with it.
            let _ = runtime.map(|runtime| runtime.block_on(execute(&server, &drop)));
        });
        // The server of our own is thrown away anyway: no test has to wait for that.
        if given().is_some() {
            let _ = dropping.join();
        }
    }
}

/// A server for all: ours, or the one that `TEST_DATABASE_URL` names.
struct Shared {
    url: String,
    ours: Option<SharedPostgres>,
}

async fn shared() -> &'static Shared {
    static SHARED: OnceCell<Shared> = OnceCell::const_new();
    SHARED.get_or_init(join).await
}

async fn join() -> Shared {
    if let Some(url) = given() {
        return Shared { url, ours: None };
    }
    let join = || SharedPostgres::join(&Binaries::get().machine());
    let ours = blocking("starting the shared Postgres", join).await;
    Shared { url: ours.url().to_owned(), ours: Some(ours) }
}

fn given() -> Option<String> {
    env::var("TEST_DATABASE_URL").ok().filter(|url| !url.is_empty())
}

impl Shared {
    /// The name of a migrated database to copy, made by the first test process.
    async fn template(&self) -> Result<String> {
        let name = format!("template_{}", hash_of_migrations()?);
        let folder =
            self.ours.as_ref().map_or_else(env::temp_dir, |ours| ours.folder().to_path_buf());
        let lock = move || Lock::exclusive(&folder.join("template"), MIGRATES_WITHIN);
        let _lock = blocking("waiting for the template", lock).await;
        if !self.has(&name).await? {
            self.make_template(&name).await?;
        }
        Ok(name)
    }

    async fn has(&self, name: &str) -> Result<bool> {
        let mut connection = connect(&self.url).await?;
        let query =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
                .bind(name);
        Ok(query.fetch_one(&mut connection).await?)
    }

    /// Under another name until it is complete.
    async fn make_template(&self, name: &str) -> Result<()> {
        let unfinished = format!("unfinished_{name}");
        execute(&self.url, &format!("DROP DATABASE IF EXISTS {unfinished}")).await?;
        execute(&self.url, &format!("CREATE DATABASE {unfinished}")).await?;
        migrate(with_database(&self.url, &unfinished)?).await;
        execute(&self.url, &format!("ALTER DATABASE {unfinished} RENAME TO {name}")).await
    }
}

async fn migrate(url: String) {
    let mut persister = process::Command::new(Binaries::get().path("persister"));
    persister.arg("migrate").env_clear().env("DATABASE_URL", url).current_dir(env::temp_dir());
    blocking("persister migrate", || tool::run(persister, MIGRATES_WITHIN)).await;
}

/// A template is good for exactly these migrations.
fn hash_of_migrations() -> Result<String> {
    let entries = fs::read_dir(workspace().join("migrations"))?.collect::<Result<Vec<_>, _>>()?;
    let files = entries.into_iter().map(|entry| Ok((entry.file_name(), fs::read(entry.path())?)));
    let files: BTreeMap<_, _> = files.collect::<Result<_>>()?;
    let mut hash = Sha256::new();
    for (name, content) in files {
        hash.update(name.as_encoded_bytes());
        hash.update(content);
    }
    let hash = hash.finalize();
    let first = hash.first_chunk().context("a hash is longer than that")?;
    Ok(format!("{:016x}", u64::from_be_bytes(*first)))
}

async fn connect(url: &str) -> Result<PgConnection> {
    Ok(tokio::time::timeout(SQL_WITHIN, PgConnection::connect(url)).await??)
}

async fn execute(url: &str, sql: &str) -> Result<()> {
    let mut connection = connect(url).await?;
    let work = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection);
    tokio::time::timeout(SQL_WITHIN, work).await??;
    Ok(connection.close().await?)
}

fn with_database(server: &str, name: &str) -> Result<String> {
    let mut url = Url::parse(server)?;
    url.set_path(name);
    Ok(url.into())
}
