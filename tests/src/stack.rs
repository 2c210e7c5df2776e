//! A stack of a test's own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use stack::run_dir::RunDir;
use stack::tool;

use crate::builder::{Builder, Link};
use crate::database::Database;
use crate::node::{NodeRun, node, node_test};
use crate::proxy::Proxy;
use crate::room::Room;
use crate::server::{Nats, Postgres};
use crate::service::Service;
use crate::wait::must;

/// Lines of each log to show when a test fails.
const SHOWN: usize = 200;
const POOL: u32 = 4;
const CONNECTS_WITHIN: Duration = Duration::from_secs(10);

/// Everything that a test runs against; all of it ends with this value.
///
/// If the test is failing, the logs are printed first.
#[derive(Debug)]
pub struct Stack {
    // Dropped in this order: services before what they use, the folder behind them, the room last.
    pub(crate) gateways: Vec<Service>,
    pub(crate) persisters: Vec<Service>,
    pub(crate) proxies: BTreeMap<(Link, usize), Proxy>,
    pub(crate) database: Database,
    pub(crate) nats: Nats,
    pub(crate) others: Vec<Nats>,
    pub(crate) postgres: Option<Postgres>,
    pub(crate) home: RunDir,
    pub(crate) _room: Room,
}

impl Stack {
    /// One gateway, one persister, a nats-server of its own, and a database on the shared Postgres,
    /// unless the builder is told otherwise.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The builder's stack, unchanged.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A gateway, counted from 0.
    pub fn gateway(&self, index: usize) -> &Service {
        &self.gateways[index]
    }

    /// A persister, counted from 0.
    pub fn persister(&self, index: usize) -> &Service {
        &self.persisters[index]
    }

    /// All gateways.
    pub fn gateways(&self) -> &[Service] {
        &self.gateways
    }

    /// All persisters.
    pub fn persisters(&self) -> &[Service] {
        &self.persisters
    }

    /// The nats-server.
    pub fn nats(&self) -> &Nats {
        &self.nats
    }

    /// All nats-servers of the cluster; the one, if there is none.
    pub fn nats_servers(&self) -> impl Iterator<Item = &Nats> {
        [&self.nats].into_iter().chain(&self.others)
    }

    /// The Postgres of this stack alone.
    pub fn postgres(&self) -> &Postgres {
        must(
            self.postgres.as_ref().context("the builder was not told `own_postgres`"),
            "breaking Postgres",
        )
    }

    /// The proxy of one process, counted from 0.
    pub fn proxy(&self, link: Link, index: usize) -> &Proxy {
        let proxy = self.proxies.get(&(link, index));
        must(
            proxy.with_context(|| format!("the builder was not told `proxy({link:?})`")),
            "reaching for a proxy",
        )
    }

    /// All proxies in connections of this kind.
    pub fn proxies(&self, link: Link) -> impl Iterator<Item = &Proxy> {
        self.proxies.iter().filter(move |((of, _), _)| *of == link).map(|(_, proxy)| proxy)
    }

    /// The URL of a path on the first gateway.
    pub fn url(&self, path: &str) -> String {
        self.gateway(0).url(path)
    }

    /// The database's URL, past all proxies.
    pub fn database_url(&self) -> &str {
        self.database.url()
    }

    /// A pool on the database, past all proxies; it connects when it is used.
    pub fn pool(&self) -> PgPool {
        let options = PgPoolOptions::new().max_connections(POOL).acquire_timeout(CONNECTS_WITHIN);
        must(options.connect_lazy(self.database_url()), "a pool")
    }

    /// A client of the nats-servers, past all proxies.
    pub async fn nats_client(&self) -> async_nats::Client {
        let urls: Vec<_> = self.nats_servers().map(Nats::url).collect();
        must(async_nats::connect(urls).await, "connecting to NATS")
    }

    /// A client for HTTP.
    pub fn http(&self) -> reqwest::Client {
        reqwest::Client::new()
    }

    /// Runs a script of `tests/client` with `GATEWAY_URL` (the first gateway) and `GATEWAY_URLS` (all,
    /// with commas), `DATABASE_URL` and `NATS_URL` in its environment.
    pub async fn node(&self, script: &str, args: &[&str]) -> NodeRun {
        let args: Vec<_> = [script].into_iter().chain(args.iter().copied()).collect();
        node(&args, &self.client_env()).await
    }

    /// Runs `node --test` on a file of `tests/client` with the same environment and more; panics with
    /// its output if it fails.
    pub async fn node_test(&self, file: &str, env: &[(&str, &str)]) {
        let more = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let env: Vec<_> = self.client_env().into_iter().chain(more).collect();
        node_test(file, &env).await;
    }

    /// Starts all services that do not run and waits until they are ready.
    pub async fn start_services(&self) {
        let services = || self.persisters.iter().chain(&self.gateways);
        services().filter(|service| !service.is_running()).for_each(Service::spawn);
        for service in services() {
            service.ready().await;
        }
    }

    fn client_env(&self) -> Vec<(String, String)> {
        let urls: Vec<_> = self.gateways.iter().map(|gateway| gateway.url("")).collect();
        let env = [
            ("GATEWAY_URL", urls.first().cloned().unwrap_or_default()),
            ("GATEWAY_URLS", urls.join(",")),
            ("DATABASE_URL", self.database_url().to_owned()),
            ("NATS_URL", self.nats.url()),
        ];
        env.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// All that a process of the stack printed, by its name: `gateway-0`, `nats`, `postgres`.
    pub fn log_of(&self, name: &str) -> String {
        let printed = fs::read(self.home.path().join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&printed).into_owned()
    }

    /// Copies what the processes printed to where it outlives the stack.
    pub(crate) fn keep_logs(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder)?;
        for file in fs::read_dir(self.home.path())?.flatten() {
            let path = file.path();
            if path.extension() == Some("log".as_ref()) {
                fs::copy(&path, folder.join(file.file_name()))?;
            }
        }
        Ok(())
    }

    /// The end of every log of the stack.
    pub fn logs(&self) -> String {
        let files = fs::read_dir(self.home.path()).into_iter().flatten().flatten();
        let mut logs: Vec<_> = files
            .map(|file| file.path())
            .filter(|path| path.extension() == Some("log".as_ref()))
            .collect();
        logs.sort();
        let shown = |log: &PathBuf| format!("--- {}\n{}", log.display(), tool::tail(log, SHOWN));
        logs.iter().map(shown).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}
