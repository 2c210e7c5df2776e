//! Connections that say nothing: what each takes in the gateway's memory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::sleep;

use crate::socket_client::SocketClient;

use super::arguments::Idle;
use super::figures::{Figures, Unit, float};
use super::talker::init;
use super::target::Target;

/// Connections that are made at a time.
const JOIN_AT_ONCE: usize = 32;
/// Connections of one address: a gateway may limit them, and an address has few ports.
const OF_ONE_ADDRESS: usize = 50;
/// Buffers of the first packets are given back meanwhile.
const SETTLES: Duration = Duration::from_secs(3);

/// Measures before and after.
pub(super) async fn measure(target: &Target, idle: &Idle) -> Result<Figures> {
    let gateways =
        target.servers.0.first().context("nothing to measure: name it with --process")?;
    // The first connections pay for what all share.
    let first = connect(target, 0, idle).await?;
    sleep(SETTLES).await;
    let (memory, cpu) = (gateways.memory()?, gateways.cpu_time()?);
    let clients: Vec<SocketClient> = stream::iter(1..=idle.connections)
        .map(|number| connect(target, number, idle))
        .buffer_unordered(JOIN_AT_ONCE)
        .try_collect()
        .await
        .context("the connections cannot be made")?;
    sleep(SETTLES).await;
    let connections = float(clients.len() as u64);
    let grown = gateways.memory()?.saturating_sub(memory);
    let mut figures = Figures::default();
    figures.add("memory of a connection", Unit::Kib, float(grown) / 1024.0 / connections);
    let cpu = gateways.cpu_time()?.saturating_sub(cpu).as_secs_f64() * 1e6 / connections;
    figures.add("processor time to connect", Unit::Micros, cpu);
    drop((first, clients));
    Ok(figures)
}

async fn connect(target: &Target, number: usize, idle: &Idle) -> Result<SocketClient> {
    let server = target.addresses[number % target.addresses.len()];
    let mut client = SocketClient::connect_from(server, address_of(server, number)).await?;
    if !idle.without_session {
        init(&mut client, None).await?;
    }
    Ok(client)
}

/// From where one of many clients connects, if it has a choice.
pub(super) fn address_of(server: SocketAddr, number: usize) -> Option<IpAddr> {
    server.ip().is_loopback().then(|| address(number / OF_ONE_ADDRESS))
}

/// One of the sixteen million addresses of the loopback network.
fn address(number: usize) -> IpAddr {
    let [.., a, b, c] = number.to_be_bytes();
    Ipv4Addr::new(127, a.wrapping_add(1), b, c.max(1)).into()
}
