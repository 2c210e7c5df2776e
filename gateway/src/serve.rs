//! Listens and serves HTTP/1.1, with bounds that axum's own server lacks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use shared::lifecycle::Stop;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::config::Host;

/// Longest wait for the headers of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest time that sent bytes may stay unacknowledged, or a zero window may last: a client that
/// does not read is cut off by the kernel, which no lock of ours can hold up.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for answers that are under way at the stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after an error of `accept`, which is usually a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
pub async fn serve(listeners: Vec<TcpListener>, router: Router, stop: Stop) -> anyhow::Result<()> {
    let connections = TaskTracker::new();
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let address = listener.local_addr()?;
        tracing::info!("listening on http://{address}");
        accepting.spawn(accept(listener, router.clone(), connections.clone(), stop.clone()));
    }
    while accepting.join_next().await.is_some() {}
    connections.close();
    tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.ok();
    Ok(())
}

async fn accept(listener: TcpListener, router: Router, connections: TaskTracker, stop: Stop) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(serve_connection(stream, peer, router.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection; at the stop it ends after the answer that is under way. An upgrade ends
/// it too: websockets live on in tasks of the library.
async fn serve_connection(stream: TcpStream, peer: SocketAddr, router: Router, stop: Stop) {
    prepare(&stream);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
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

/// Small packets leave at once, and a peer that takes nothing is given up.
fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let mut prepared = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        prepared = prepared.and_then(|()| socket.set_tcp_user_timeout(Some(UNREAD_TIMEOUT)));
    }
    if let Err(error) = prepared.and_then(|()| socket.set_keepalive(true)) {
        tracing::debug!(%error, "a connection ended before it was served");
    }
}
