//! A proxy between two programs that a test can cut, freeze, delay, wear and mend.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use stack::Port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::chaos::Random;
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
    delay: watch::Sender<Duration>,
    wear: Arc<Wear>,
    carrier: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to the server on this port of 127.0.0.1.
    pub async fn to(server: u16) -> Self {
        let port = must(Port::reserve(), "a port for a proxy");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server));
        let (state, watched) = watch::channel(State::Whole);
        let (delay, delayed) = watch::channel(Duration::ZERO);
        let wear = Arc::<Wear>::default();
        let worn = Arc::clone(&wear);
        let listener = must(TcpListener::bind(address).await, "listening for a proxy");
        let carrier = tokio::spawn(async move {
            // The carrier ends with the proxy; an error before that shows as refused connections.
            let _ = carry(listener, (address, server), watched, delayed, &worn).await;
        });
        Self { port, state, delay, wear, carrier }
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

    /// Lets each new connection wait so long for its first byte, as a busy server does.
    pub fn delay(&self, delay: Duration) {
        self.delay.send_replace(delay);
    }

    /// Breaks each new connection after some number of bytes below this one, small ones more often than large ones, in the
    /// middle of whatever it carries. The seed repeats the numbers.
    pub fn wear(&self, seed: u64, bytes: u64) {
        let wear = Some((Random::new(seed), bytes));
        *self.wear.0.lock().unwrap_or_else(PoisonError::into_inner) = wear;
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

/// After how many bytes connections break.
#[derive(Debug, Default)]
struct Wear(Mutex<Option<(Random, u64)>>);

impl Wear {
    fn next(&self) -> Allowance {
        let mut wear = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = wear.as_mut().map_or(u64::MAX, |(random, bytes)| {
            let most = random.below(*bytes) + 1;
            random.below(most)
        });
        Allowance(AtomicU64::new(bytes))
    }
}

/// What one connection may still carry, in both directions together.
struct Allowance(AtomicU64);

impl Allowance {
    /// How many of so many bytes may pass.
    fn take(&self, bytes: usize) -> usize {
        let less = |left: u64| Some(left.saturating_sub(bytes as u64));
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        left.map_or(0, |left| usize::try_from(left).unwrap_or(usize::MAX).min(bytes))
    }
}

/// Listens whenever the proxy is not cut.
async fn carry(
    mut listener: TcpListener,
    (address, server): (SocketAddr, SocketAddr),
    mut state: watch::Receiver<State>,
    delay: watch::Receiver<Duration>,
    wear: &Wear,
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
                let delay = *delay.borrow();
                tokio::spawn(connect(accepted?.0, server, state.clone(), delay, wear.next()));
            }
        }
    }
}

/// Carries one connection, after a delay, until it ends, is worn out or the proxy is cut.
async fn connect(
    client: TcpStream,
    server: SocketAddr,
    mut state: watch::Receiver<State>,
    delay: Duration,
    allowance: Allowance,
) {
    let mut cut = state.clone();
    let both = async {
        tokio::time::sleep(delay).await;
        until(&mut state, |state| state == State::Whole).await?;
        let server = TcpStream::connect(server).await?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::try_join!(
            pump(from_client, to_server, state.clone(), &allowance),
            pump(from_server, to_client, state.clone(), &allowance)
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
    allowance: &Allowance,
) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).await?;
        anyhow::ensure!(read > 0, "the other side closed the connection");
        until(&mut state, |state| state == State::Whole).await?;
        let allowed = allowance.take(read);
        to.write_all(&chunk[..allowed]).await?;
        anyhow::ensure!(allowed == read, "the connection is worn out");
    }
}
