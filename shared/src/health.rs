//! Asks a service of ours on this machine whether it is ready: the health check of a container that
//! holds nothing but the service.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for the answer; the service bounds its own looks below it.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Why a service is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// Nobody listens there.
    #[error("nobody answers at {0}: {1}")]
    Unreachable(SocketAddr, std::io::Error),
    /// It took the request and did not answer in time.
    #[error("no answer from {0}")]
    Silent(SocketAddr),
    /// It says itself that it is not; one line per dependency.
    #[error("not ready:\n{0}")]
    Report(String),
}

/// Asks the service at this address.
pub async fn ask(address: SocketAddr) -> Result<(), NotReady> {
    let answer = tokio::time::timeout(TIMEOUT, answer(address)).await;
    let answer = answer.map_err(|_| NotReady::Silent(address))?;
    let answer = answer.map_err(|error| NotReady::Unreachable(address, error))?;
    let report = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    match answer.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => Err(NotReady::Report(report.trim().to_owned())),
    }
}

async fn answer(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
