//! A proxy between two programs that a test can cut, freeze and mend.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use stack::Port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::wait::must;

const CHUNK: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Whole,
    Frozen,
    Cut,
}

/// A TCP proxy on 127.0.0.1 in front of one server.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    state: watch::Sender<State>,
    carrier: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to the server on this port of 127.0.0.1.
    pub async fn to(server: u16) -> Self {
        let port = must(Port::reserve(), "a port for a proxy");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server));
        let (state, watched) = watch::channel(State::Whole);
        let listener = must(TcpListener::bind(address).await, "listening for a proxy");
        let carrier = tokio::spawn(async move {
            // The carrier ends with the proxy; an error before that shows as refused connections.
            let _ = carry(listener, address, server, watched).await;
        });
        Self { port, state, carrier }
    }

    /// The port to connect to instead of the server's.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Closes all connections and refuses new ones.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Holds every byte back in both directions; connections stay, new ones get no answer.
    pub fn freeze(&self) {
        self.state.send_replace(State::Frozen);
    }

    /// Carries again, also what was held back.
    pub fn mend(&self) {
        self.state.send_replace(State::Whole);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.send_replace(State::Cut);
        self.carrier.abort();
    }
}

/// Listens whenever the proxy is not cut.
async fn carry(
    mut listener: TcpListener,
    address: SocketAddr,
    server: SocketAddr,
    mut state: watch::Receiver<State>,
) -> Result<()> {
    loop {
        tokio::select! {
            cut = until(&mut state, |state| state == State::Cut) => {
                cut?;
                drop(listener);
                until(&mut state, |state| state != State::Cut).await?;
                listener = TcpListener::bind(address).await?;
            }
            accepted = listener.accept() => {
                tokio::spawn(connect(accepted?.0, server, state.clone()));
            }
        }
    }
}

/// Carries one connection until it ends or the proxy is cut.
async fn connect(client: TcpStream, server: SocketAddr, mut state: watch::Receiver<State>) {
    let mut cut = state.clone();
    let both = async {
        until(&mut state, |state| state == State::Whole).await?;
        let server = TcpStream::connect(server).await?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::try_join!(
            pump(from_client, to_server, state.clone()),
            pump(from_server, to_client, state.clone())
        )
    };
    tokio::select! {
        // An end of either side ends the connection: nobody here speaks half-closed.
        _ = both => {}
        _ = until(&mut cut, |state| state == State::Cut) => {}
    }
}

async fn until(state: &mut watch::Receiver<State>, wanted: impl Fn(State) -> bool) -> Result<()> {
    state.wait_for(|state| wanted(*state)).await?;
    Ok(())
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).await?;
        anyhow::ensure!(read > 0, "the other side closed the connection");
        until(&mut state, |state| state == State::Whole).await?;
        to.write_all(&chunk[..read]).await?;
    }
}
