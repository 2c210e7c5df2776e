//! Listens and serves HTTP/1.1, with bounds that axum's own server lacks.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::header::UPGRADE;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use governor::Quota;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use shared::lifecycle::Stop;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::metrics::METRICS;
use crate::problem::Problem;
use crate::transport::connection_slots::{ConnectionSlot, ConnectionSlots};
use crate::transport::disconnect::{Wire, Wires};
use crate::transport::http_limits::{HttpLimits, LeastRate};
use crate::transport::packets::CountedBody;
use crate::transport::request_body::TimedBody;
use crate::transport::stream::SharedStream;
use crate::transport::timeouts::HeadTimer;

/// Longest time that sent bytes may stay unacknowledged, or a zero window may last: a client that
/// does not read is cut off by the kernel, which no lock of ours can hold up.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(15);
/// What the kernel keeps of a connection before it is on its way: it would take megabytes that a client is slow
/// to read, and tell of room for more only when a third of them is gone.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 32 * 1024;
/// Longest wait for answers that are under way at the stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after an error of `accept`, which is usually a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// `127.0.0.1` and, where there is one, `::1`.
    Localhost,
    Address(IpAddr),
}

impl Host {
    /// Whether nobody but this machine can connect.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Localhost => true,
            Self::Address(address) => address.to_canonical().is_loopback(),
        }
    }
}

impl FromStr for Host {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "localhost" {
            return Ok(Self::Localhost);
        }
        let address = text.trim_matches(['[', ']']).parse();
        address.map(Self::Address).map_err(|_| "must be localhost or an IP address")
    }
}

/// Listens where the settings say.
pub async fn bind(host: &Host, port: u16) -> anyhow::Result<Vec<TcpListener>> {
    match host {
        Host::Address(address) => Ok(vec![listen(*address, port).await?]),
        Host::Localhost => {
            let v4 = listen(Ipv4Addr::LOCALHOST.into(), port).await?;
            // The same port on both, also where the system chose it.
            let port = v4.local_addr()?.port();
            let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await;
            match v6 {
                Ok(v6) => Ok(vec![v4, v6]),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(in_use(port)),
                // A machine without IPv6.
                Err(_) => Ok(vec![v4]),
            }
        }
    }
}

async fn listen(address: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    match TcpListener::bind((address, port)).await {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(in_use(port)),
        bound => {
            bound.with_context(|| format!("HOST, PORT: cannot listen on {address} port {port}"))
        }
    }
}

fn in_use(port: u16) -> anyhow::Error {
    anyhow::anyhow!("PORT: {port} is taken by another process; stop it or set another PORT")
}

/// Serves until the stop, then lets answers that are under way end.
pub async fn serve(
    listeners: Vec<Arc<TcpListener>>,
    router: Router,
    bounds: Bounds,
    stop: Stop,
) -> anyhow::Result<()> {
    let connections = TaskTracker::new();
    let wires = Wires::new(bounds.packets);
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let server = Server {
            router: router.clone(),
            connections: connections.clone(),
            wires: wires.clone(),
            bounds: bounds.clone(),
            stop: stop.clone(),
        };
        accepting.spawn(server.accept(listener));
    }
    while let Some(ended) = accepting.join_next().await {
        // On one address alone it would look as if it served on all.
        ended?;
        anyhow::ensure!(stop.is_cancelled(), "a listener ended");
    }
    connections.close();
    tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.ok();
    Ok(())
}

/// What connections may take.
#[derive(Clone)]
pub struct Bounds {
    pub http: HttpLimits,
    pub slots: Arc<ConnectionSlots>,
    /// Packets of one socket, of whatever kind.
    pub packets: Option<Quota>,
}

/// What every connection needs.
#[derive(Clone)]
struct Server {
    router: Router,
    connections: TaskTracker,
    wires: Wires,
    bounds: Bounds,
    stop: Stop,
}

impl Server {
    async fn accept(self, listener: Arc<TcpListener>) {
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => match self.bounds.slots.open(peer.ip()) {
                    Ok(slot) => {
                        self.connections.spawn(self.clone().serve_connection(stream, peer, slot));
                    }
                    Err(full) => {
                        METRICS.refuse_connection(full);
                        tracing::debug!(reason = full.as_str(), "a connection is closed at once");
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection; at the stop it ends after the answer that is under way. An upgrade ends
    /// it too: websockets live on in tasks of the library.
    async fn serve_connection(self, stream: TcpStream, peer: SocketAddr, slot: ConnectionSlot) {
        let Self { router, wires, bounds: Bounds { http: limits, packets, .. }, stop, .. } = self;
        prepare(&stream);
        let stream = SharedStream::new(stream, slot, limits.least_rate, packets);
        let wire = stream.wire();
        let timer = HeadTimer::new(limits.header_time, stream.activity());
        let exchange = Exchange { router, wires, wire, least_rate: limits.least_rate };
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            exchange.clone().answer(request)
        });
        let connection = http1::Builder::new()
            .timer(timer)
            // The timer shortens it from a request's first byte on.
            .header_read_timeout(limits.idle_time)
            .max_header_size(limits.header_bytes)
            .serve_connection(stream, service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended with an error");
        }
    }
}

/// One request of a connection, and its answer.
#[derive(Clone)]
struct Exchange {
    router: Router,
    wires: Wires,
    wire: Wire,
    least_rate: LeastRate,
}

impl Exchange {
    async fn answer(self, mut request: Request<Incoming>) -> Result<Response, Infallible> {
        let Ok(named) = self.wires.observe(&mut request, &self.wire) else {
            // What the library answers to a socket that it does not know.
            return Ok(refusal("Session ID unknown"));
        };
        let asks_to_upgrade = request.headers().contains_key(UPGRADE);
        if asks_to_upgrade && !self.wire.begin_websocket() {
            return Ok(refusal("something stands behind the request for a websocket"));
        }
        let polls = request.method() == Method::GET;
        // What polls has no body.
        let count = named.filter(|_| !polls).map(|sid| self.wires.packets_of(sid));
        let timed = |body| TimedBody::new(body, self.least_rate);
        let request = request.map(|body| CountedBody::new(timed(body), count));
        let response = self.router.oneshot(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if !asks_to_upgrade {
                return Ok(refusal("the header Upgrade is missing"));
            }
            if let Some(sid) = named {
                self.wire.upgraded(sid, &self.wires);
            }
            return Ok(response);
        }
        if asks_to_upgrade {
            self.wire.stay_http();
        }
        if let Some(sid) = named
            && polls
            && response.status() == StatusCode::OK
        {
            let bytes = response.body().size_hint().lower();
            self.wires.polled(sid, usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        Ok(response)
    }
}

fn refusal(detail: &'static str) -> Response {
    Problem::new(StatusCode::BAD_REQUEST, detail).into_response()
}

/// Small packets leave at once, and a peer that takes nothing is given up.
fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let mut prepared = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        prepared = prepared
            .and_then(|()| socket.set_tcp_user_timeout(Some(UNREAD_TIMEOUT)))
            .and_then(|()| socket.set_tcp_notsent_lowat(UNSENT_BYTES));
    }
    if let Err(error) = prepared.and_then(|()| socket.set_keepalive(true)) {
        tracing::debug!(%error, "a connection ended before it was served");
    }
}
