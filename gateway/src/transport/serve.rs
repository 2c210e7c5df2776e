//! Listens and serves HTTP/1.1, with bounds that axum's own server lacks.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use governor::Quota;
use hyper::body::Incoming as Body;
use hyper::server::conn::http1;
use shared::lifecycle::Stop;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::access::client_address::TrustedProxies;
use crate::access::limits;
use crate::metrics::METRICS;
use crate::problem::Problem;
use crate::transport::connection_slots::{ConnectionSlot, ConnectionSlots};
use crate::transport::disconnect::{self, Wire, Wires};
use crate::transport::engine_io::{self, IsKnown, Refusal};
use crate::transport::host_header;
use crate::transport::http_limits::{HttpLimits, LeastRate};
use crate::transport::incoming::Incoming;
use crate::transport::packets::CountedBody;
use crate::transport::request_body::{self, TimedBody};
use crate::transport::stream::SharedStream;
use crate::transport::timeouts::HeadTimer;

/// Longest time that sent bytes may stay unacknowledged, or a zero window may last: a client that
/// does not read is cut off by the kernel, which no lock of ours can hold up.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(15);
/// What the kernel keeps of a connection before it is on its way: it would take megabytes that a client is slow
/// to read, and tell of room for more only when a third of them is gone.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 32 * 1024;
/// What a connection reads and writes at a time: of a long answer that a client is slow to take, this much waits
/// here, and one piece.
const BUFFER_BYTES: usize = 32 * 1024;
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
    let wires = Wires::new(bounds.packets, router.clone());
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
    /// What is kept of what clients send until it has ended.
    pub incoming: Incoming,
    /// Whose word about a client's address is taken.
    pub trusted: Arc<TrustedProxies>,
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
        let Self { router, wires, bounds, stop, .. } = self;
        let Bounds { http: limits, packets, incoming, trusted, .. } = bounds;
        prepare(&stream);
        let stream = SharedStream::new(stream, slot, limits.least_rate, packets);
        let wire = stream.wire();
        let timer = HeadTimer::new(limits.header_time, stream.activity());
        let exchange =
            Exchange { router, wires, wire, least_rate: limits.least_rate, incoming, trusted };
        let service = hyper::service::service_fn(move |mut request: Request<Body>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            exchange.clone().answer(request)
        });
        let connection = http1::Builder::new()
            .timer(timer)
            // The timer shortens it from a request's first byte on.
            .header_read_timeout(limits.idle_time)
            .max_header_size(limits.header_bytes)
            .max_buf_size(BUFFER_BYTES.max(limits.header_bytes))
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
    incoming: Incoming,
    trusted: Arc<TrustedProxies>,
}

impl Exchange {
    async fn answer(self, mut request: Request<Body>) -> Result<Response, Infallible> {
        if let Some(mistake) = host_header::mistake(&request) {
            return Ok(Problem::new(StatusCode::BAD_REQUEST, mistake).into_response());
        }
        let is_for_sockets = request.uri().path().starts_with(engine_io::PATH);
        if is_for_sockets {
            engine_io::settle_query(request.uri_mut());
        }
        // Elsewhere a query may say anything.
        let named = if is_for_sockets { self.wires.named(&request) } else { Ok(None) };
        let Ok(named) = named else { return Ok(Refusal::UnknownSession.into_response()) };
        let opens = named.is_none() && is_for_sockets;
        let opening = opens.then(|| self.wires.opening(&self.wire));
        if let Some(opening) = &opening {
            request.extensions_mut().insert(Arc::clone(opening));
        }
        if let Some(sid) = named {
            request.extensions_mut().insert(IsKnown(self.wires.is_known(sid)));
        }
        let asks_to_upgrade = engine_io::asks_for_a_websocket(request.method(), request.headers());
        let polls = named.filter(|_| request.method() == Method::GET && !asks_to_upgrade);
        if let Some(sid) = polls
            && self.wires.last_answer_left(sid, self.least_rate.grace()).await.is_err()
        {
            return Ok(Refusal::UnknownSession.into_response());
        }
        if asks_to_upgrade && !self.wire.begin_websocket() {
            // Something stands behind the request, which would be no websocket's.
            return Ok(Refusal::BadRequest.of_upgrade());
        }
        // What polls has no body.
        let count = named.filter(|_| polls.is_none()).and_then(|sid| self.wires.packets_of(sid));
        let network = self.trusted.client_of(&request).map(limits::network);
        let of = request_body::Of { incoming: self.incoming.clone(), network };
        let timed = |body| TimedBody::new(body, self.least_rate, of);
        let request = request.map(|body| CountedBody::new(timed(body), count.clone()));
        let response = self.router.oneshot(request).await?;
        if let (Some(sid), Some(count)) = (named, count)
            && count.awaits_attachments()
        {
            self.wires.expect_attachments(sid, self.least_rate.grace());
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if !asks_to_upgrade {
                return Ok(Refusal::BadRequest.of_upgrade());
            }
            self.wire.keeps_of(self.incoming.of(network));
            if let Some(sid) = named {
                self.wire.upgraded(sid, &self.wires);
            }
            return Ok(response);
        }
        if asks_to_upgrade {
            self.wire.stay_http();
        }
        if let Some(opening) = opening
            && response.status() == StatusCode::OK
        {
            return Ok(disconnect::name(&opening, response).await);
        }
        if let Some(sid) = polls
            && engine_io::is_polled(&response)
        {
            let answer = self.wires.polled(sid, &self.wire, response);
            return Ok(answer.unwrap_or_else(|_| Refusal::UnknownSession.into_response()));
        }
        Ok(response)
    }
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
