//! What one address can do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use tokio::time::{interval, sleep};

use super::{http, websocket};

/// Where attacks come from; the neighbours are on 127.0.0.1.
pub(super) const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Connections that are held open.
const HELD: usize = 1_000;
/// Sockets that want to be connected and say nothing.
const IDLE: usize = 10_000;
/// Connections of attacks that cost more.
const FEW: usize = 100;
/// Pause before who was refused comes again.
const AGAIN: Duration = Duration::from_secs(1);

/// One way to do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Attack {
    /// A thousand connections send their headers byte by byte.
    SlowHeaders,
    /// A thousand connections send nothing.
    Silence,
    /// A hundred connections stop in the middle of a body.
    HalfBodies,
    /// A hundred connections read a long history a few bytes at a time.
    TrickleReaders,
    /// One connection names a socket that does not exist in each request.
    Names,
    /// Connections ask for upgrades of a socket that others are upgraded for.
    Decoys,
    /// Four polling sockets ask for a long history again and again, and never poll.
    Resumes,
    /// Ten thousand sockets connect and say nothing.
    IdleSockets,
    /// A thousand new sessions a second, each by a connection of its own.
    NewSessions,
    /// One socket sends as fast as it can, and comes back when it is cut off.
    Messages,
    /// One sends messages of nearly a megabyte that are no messages.
    WrongPayloads,
    /// One joins namespaces with names of nearly a megabyte.
    Namespaces,
}

/// What it came to.
#[derive(Default)]
pub(super) struct Done {
    pub(super) tried: AtomicU64,
    pub(super) taken: AtomicU64,
    pub(super) ended: AtomicU64,
}

impl Attack {
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Attacks until the process is ended; says every second what it came to. A session with a long history is there.
    pub(super) async fn run(self, server: SocketAddr, session: &str) -> Result<()> {
        let done = Arc::new(Done::default());
        let session: Arc<str> = session.into();
        match self {
            Self::SlowHeaders => each(HELD, &done, move |done| http::slow_headers(server, done)),
            Self::Silence => each(HELD, &done, move |done| http::silence(server, done)),
            Self::HalfBodies => each(FEW, &done, move |done| http::half_body(server, done)),
            Self::TrickleReaders => {
                each(FEW, &done, move |done| http::trickle(server, Arc::clone(&session), done));
            }
            Self::Names => each(1, &done, move |done| http::names(server, done)),
            Self::Decoys => each(2, &done, move |done| http::decoys(server, done)),
            Self::Resumes => {
                each(4, &done, move |done| http::resumes(server, Arc::clone(&session), done));
            }
            Self::IdleSockets => each(IDLE, &done, move |done| websocket::idle(server, done)),
            Self::NewSessions => {
                drop(tokio::spawn(websocket::sessions(server, Arc::clone(&done))));
            }
            Self::Messages => each(1, &done, move |done| websocket::messages(server, done)),
            Self::WrongPayloads => {
                each(1, &done, move |done| websocket::wrong_payloads(server, done));
            }
            Self::Namespaces => each(1, &done, move |done| websocket::namespaces(server, done)),
        }
        let mut seconds = interval(Duration::from_secs(1));
        loop {
            seconds.tick().await;
            let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
            let Done { tried, taken, ended } = &*done;
            println!(
                "tried {}, taken {}, ended by the gateway {}",
                read(tried),
                read(taken),
                read(ended)
            );
        }
    }
}

/// So many that try, and again after each failure, in a row of beginnings.
fn each<F>(count: usize, done: &Arc<Done>, one: impl Fn(Arc<Done>) -> F + Clone + Send + 'static)
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let done = Arc::clone(done);
    tokio::spawn(async move {
        let mut beginnings = interval(Duration::from_millis(1));
        for _ in 0..count {
            beginnings.tick().await;
            let (one, done) = (one.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                loop {
                    add(&done.tried, 1);
                    if one(Arc::clone(&done)).await.is_err() {
                        add(&done.ended, 1);
                    }
                    // One that sends as fast as it can does not rest either.
                    sleep(if count == 1 { Duration::ZERO } else { AGAIN }).await;
                }
            });
        }
    });
}

pub(super) fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}
