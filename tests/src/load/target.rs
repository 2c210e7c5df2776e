//! What the load goes to: a stack that is made for the run, or a server that runs already.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use url::Url;

use crate::Stack;
use crate::builder::Builder;
use crate::wait::must;

use super::arguments::Arguments;
use super::usage::{Server, Servers};

/// More than any run collects, so that nothing is refused or trimmed.
const LOG_MAX_BYTES: &str = "17179869184";

/// A server under load.
#[derive(Debug)]
pub(super) struct Target {
    /// Where its gateways listen.
    pub(super) addresses: Vec<SocketAddr>,
    /// What is measured of it.
    pub(super) servers: Servers,
    /// The whole of it, if it is ours.
    pub(super) stack: Option<Stack>,
}

impl Target {
    /// What the arguments say; `programs` is a folder with another build of ours.
    pub(super) async fn of(arguments: &Arguments, programs: Option<&Path>) -> Result<Self> {
        match &arguments.url {
            Some(url) => Self::other(arguments, url),
            None => Ok(Self::ours(builder(arguments, programs).start().await)),
        }
    }

    /// A stack of ours whose services run.
    pub(super) fn ours(stack: Stack) -> Self {
        let address = |gateway: &crate::Service| ([127, 0, 0, 1], gateway.port()).into();
        Self {
            addresses: stack.gateways().iter().map(address).collect(),
            servers: servers(&stack),
            stack: Some(stack),
        }
    }

    fn other(arguments: &Arguments, url: &Url) -> Result<Self> {
        let processes = arguments.process.iter();
        let servers = processes
            .map(|process| Server { name: process.name.clone(), ids: vec![process.id] })
            .collect();
        let addresses = url.socket_addrs(|| None).context("--url names no server")?;
        // Of a name with several addresses one is enough.
        let addresses = addresses.into_iter().take(1).collect();
        Ok(Self { addresses, servers: Servers(servers), stack: None })
    }

    /// A pool on the database of a stack of ours.
    pub(super) fn pool(&self) -> Option<PgPool> {
        self.stack.as_ref().map(Stack::pool)
    }
}

/// As it would be in production: Postgres writes every commit to the disk, the log is written to the
/// disk every two minutes unless said otherwise.
pub(super) fn builder(arguments: &Arguments, programs: Option<&Path>) -> Builder {
    let builder = Stack::builder()
        .gateways(arguments.gateways.into())
        .persisters(arguments.persisters.into())
        .durable()
        .nats_sync_interval(&arguments.sync_interval)
        .env("LOG_MAX_BYTES", LOG_MAX_BYTES);
    let builder = if arguments.nats_cluster {
        let builder = must(builder.nats_cluster().ok_or("no cluster"), "three nats-servers");
        builder.env("LOG_REPLICAS", "3")
    } else {
        builder
    };
    let builder = arguments
        .env
        .iter()
        .fold(builder, |builder, variable| builder.env(&variable.name, &variable.value));
    match programs {
        Some(folder) => builder.programs(folder),
        None => builder,
    }
}

/// The processes of a stack that run.
pub(super) fn servers(stack: &Stack) -> Servers {
    let services = |services: &[crate::Service]| {
        let running = services.iter().filter(|service| service.is_running());
        running.map(crate::Service::id).collect()
    };
    let servers = [
        ("gateway", services(stack.gateways())),
        ("persister", services(stack.persisters())),
        ("NATS", stack.nats_servers().filter_map(crate::Nats::id).collect()),
        ("Postgres", stack.postgres().id().into_iter().collect()),
    ];
    let server = |(name, ids): (&str, Vec<u32>)| Server { name: name.to_owned(), ids };
    Servers(servers.into_iter().map(server).filter(|server| !server.ids.is_empty()).collect())
}

/// A pool on a database by its URL; it connects when it is used.
pub(super) fn pool(url: &str) -> Result<PgPool> {
    Ok(PgPoolOptions::new().max_connections(2).connect_lazy(url)?)
}
