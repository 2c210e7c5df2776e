//! What the environment and `.env` say.

use std::collections::HashMap;
use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::options::Options;

/// As the services read it.
#[expect(unreachable_pub, reason = "it is public where it is at home")]
#[path = "../../../shared/src/env_file.rs"]
mod env_file;

const DEFAULT_PORT: u16 = 4000;

/// The settings that matter before the services read theirs.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The folder of the whole project.
    pub project: PathBuf,
    /// The port of the first gateway.
    pub port: u16,
    /// The same without `--port`.
    own_port: u16,
    /// Where the gateways can be reached from here.
    pub host: IpAddr,
    /// A Postgres that is not ours.
    pub database_url: Option<String>,
    /// A NATS that is not ours.
    pub nats_url: Option<String>,
    /// The folder of the data folders.
    pub data_dir: Option<PathBuf>,
    /// Whether the files of Socket.IO's client for browsers are given.
    pub has_client_files: bool,
}

impl Settings {
    /// The environment comes before `.env`, as for the services.
    pub(crate) fn read(options: &Options) -> Result<Self> {
        let project = project()?;
        let file = dot_env(&project)?;
        let value = |name: &str| {
            let given = env::var(name).ok().or_else(|| file.get(name).cloned());
            given.filter(|value| !value.is_empty())
        };
        let server = |name: &str| value(name).filter(|_| !options.fresh);
        let own_port = port(value("PORT"))?;
        let port = options.port.unwrap_or(own_port);
        if port.checked_add(options.gateways - 1).is_none() {
            bail!(
                "port {port} leaves no room for {} gateways: choose a lower one",
                options.gateways
            );
        }
        Ok(Self {
            port,
            own_port,
            host: reachable(value("HOST")),
            database_url: server("DATABASE_URL"),
            nats_url: server("NATS_URL"),
            has_client_files: value("SOCKET_IO_CLIENT").is_some(),
            data_dir: value("DATA_DIR").map(|folder| project.join(folder)),
            project,
        })
    }

    /// Whether `cargo up` without `--port` means this one.
    pub(crate) fn is_default_port(&self) -> bool {
        self.port == self.own_port
    }

    /// The ports of all gateways.
    pub(crate) fn ports(&self, options: &Options) -> impl Iterator<Item = u16> + use<> {
        let first = self.port;
        (0..options.gateways).map(move |index| first + index)
    }

    /// Where a gateway on this port answers.
    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.host, port)
    }
}

/// cargo says where this crate lies; started without cargo, the present folder tells.
fn project() -> Result<PathBuf> {
    if let Some(stack) = env::var_os("CARGO_MANIFEST_DIR") {
        return Ok(Path::new(&stack)
            .parent()
            .context("no project around this crate")?
            .to_path_buf());
    }
    let here = env::current_dir()?;
    let found = here.ancestors().find(|folder| folder.join("gateway/Cargo.toml").exists());
    found.map(Path::to_path_buf).context("run this inside the project")
}

fn dot_env(project: &Path) -> Result<HashMap<String, String>> {
    let file = env_file::EnvFile::read(&project.join(".env")).context("cannot read .env")?;
    if let Some(line) = file.passed_over.first() {
        eprintln!("line {line} of .env sets nothing and is passed over");
    }
    Ok(file.values)
}

fn port(value: Option<String>) -> Result<u16> {
    let Some(text) = value else { return Ok(DEFAULT_PORT) };
    text.parse().with_context(|| format!("PORT is `{text}`: give a number from 1 to 65535"))
}

/// Who listens on every address listens on loopback, too.
fn reachable(host: Option<String>) -> IpAddr {
    let host = host.and_then(|text| text.parse::<IpAddr>().ok());
    host.filter(|host| !host.is_unspecified()).unwrap_or(Ipv4Addr::LOCALHOST.into())
}
