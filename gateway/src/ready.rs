//! `/ready`: whether this gateway can do its work now, dependency by dependency.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use axum::http::StatusCode;

use crate::config::Host;
use crate::history::History;

/// Longest wait for Postgres before it counts as away.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// What readiness depends on.
#[derive(Clone)]
pub struct Readiness {
    client: Client,
    history: History,
}

impl Readiness {
    /// Depends on these two.
    pub fn new(client: Client, history: History) -> Self {
        Self { client, history }
    }

    /// One line per dependency, and whether all are well.
    pub async fn report(&self) -> (StatusCode, String) {
        let ping = tokio::time::timeout(PING_TIMEOUT, self.history.ping()).await;
        let postgres = ping.is_ok_and(|ping| ping.is_ok());
        let nats = self.client.connection_state() == State::Connected;
        let state = |well| if well { "ok" } else { "unavailable" };
        let text = format!("postgres: {}\nnats: {}\n", state(postgres), state(nats));
        (if postgres && nats { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
    }
}

/// Asks the gateway that listens here whether it is ready; its report is the error.
pub async fn ask(host: &Host, port: u16) -> anyhow::Result<()> {
    let address = match host {
        Host::Address(address) if !address.is_unspecified() => *address,
        Host::Address(_) | Host::Localhost => Ipv4Addr::LOCALHOST.into(),
    };
    Ok(shared::health::ask(SocketAddr::new(address, port)).await?)
}
