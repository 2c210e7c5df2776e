//! The load balancer of `compose.yaml`, started by the command and with the file that stand there.

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use stack::launch::{Output, Program};
use stack::{Child, Port, find};

use crate::binaries::{Binaries, workspace};
use crate::names::Names;
use crate::service::Service;
use crate::stack::Stack;
use crate::wait::{blocking, eventually, must};

/// Where the containers find the file.
const MOUNTED: &str = "/usr/local/etc/haproxy/haproxy.cfg";
const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// HAProxy in front of a stack's gateways; ends with this value.
#[derive(Debug)]
pub struct Balancer {
    clients: Port,
    operators: Port,
    names: Names,
    // For as long as the balancer.
    _child: Child,
}

impl Balancer {
    /// Starts one that finds all gateways of the stack, which are as containers, and waits until it has
    /// found them. `trusted` is what `TRUSTED_PROXIES` says.
    pub async fn start(stack: &Stack, trusted: &str) -> Self {
        let gateways = stack.gateways();
        let names = Names::start(gateways.iter().map(Service::address).collect()).await;
        let port = || must(Port::reserve(), "a port for a balancer");
        let (clients, operators) = (port(), port());
        let env = [
            ("BIND", format!("127.0.0.1:{}", clients.number())),
            ("OPS_BIND", format!("127.0.0.1:{}", operators.number())),
            ("NAMESERVER", format!("127.0.0.1:{}", names.port)),
            ("GATEWAYS", format!("gateway:{}", gateways[0].port())),
            ("OPS_PORT", gateways[0].ops_port().to_string()),
            ("TRUSTED_PROXIES", trusted.to_owned()),
        ];
        let log = stack.home.path().join("balancer.log");
        let child = blocking("starting a balancer", move || {
            let machine = Binaries::get().machine();
            let haproxy = find::haproxy(&machine)?;
            let env = env.map(|(name, value)| (name.into(), value.into()));
            program(&haproxy, Output::File(log), env.into())?.start(&machine)
        })
        .await;
        let balancer = Self { clients, operators, names, _child: child };
        balancer.knows(gateways.len()).await;
        balancer
    }

    /// The URL of a path for clients.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.clients.number())
    }

    /// The URL of a path for operators.
    pub fn ops_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.operators.number())
    }

    /// The engine says from now on that these are the gateways' addresses.
    pub fn set_addresses(&self, addresses: Vec<Ipv4Addr>) {
        self.names.set(addresses);
    }

    /// Waits until it gives clients to so many gateways.
    pub async fn knows(&self, gateways: usize) {
        let wanted = format!("the balancer knows {gateways} gateways");
        eventually(STARTS_WITHIN, &wanted, async || {
            self.of_gateways("active_servers").await == Some(gateways)
        })
        .await;
    }

    /// How many requests, polls and websockets are at its gateways.
    pub async fn open_requests(&self) -> Option<usize> {
        self.of_gateways("current_sessions").await
    }

    async fn of_gateways(&self, metric: &str) -> Option<usize> {
        let name = format!(r#"haproxy_backend_{metric}{{proxy="gateways"}} "#);
        let metrics = reqwest::get(self.ops_url("/metrics")).await.ok()?.text().await.ok()?;
        metrics.lines().find_map(|line| line.strip_prefix(&name))?.parse().ok()
    }
}

/// What `compose.yaml` runs, with this HAProxy and the file where it lies here.
fn program(haproxy: &Path, output: Output, env: Vec<(OsString, OsString)>) -> Result<Program> {
    let compose = fs::read_to_string(workspace().join("compose.yaml"))?;
    let compose: Value = serde_saphyr::from_str(&compose)?;
    let command = compose["services"]["balancer"]["command"].as_array().context("no command")?;
    let file = workspace().join("deploy/haproxy.cfg");
    let word = |word: &Value| {
        let word = word.as_str().context("a command of words")?.replace("$$", "$");
        Ok(word.replace(MOUNTED, &file.to_string_lossy()))
    };
    let command = command.iter().map(word).collect::<Result<Vec<String>>>()?;
    let [shell, rest @ ..] = command.as_slice() else { anyhow::bail!("no command") };
    let folder = haproxy.parent().context("no folder")?.to_string_lossy().into_owned();
    let program = Program { clean_env: true, env, output, ..Program::new("balancer", shell) };
    Ok(program.args(rest).env("PATH", format!("{folder}:/usr/bin:/bin")))
}
