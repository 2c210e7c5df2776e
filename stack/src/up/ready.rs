//! One look at what a service says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// For one look.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// What a service said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub ready: bool,
    pub text: String,
}

/// Asks a service whether it takes work.
pub(crate) fn ask(address: SocketAddr) -> Result<Answer> {
    get(address, "/ready")
}

/// Whether something is served at a path.
pub(crate) fn serves(address: SocketAddr, path: &str) -> bool {
    get(address, path).is_ok_and(|answer| answer.ready)
}

fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWERS_WITHIN)?;
    stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
    stream.set_write_timeout(Some(ANSWERS_WITHIN))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    parse(&answer).context("that is not HTTP")
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?;
    Some(Answer { ready: status == "200", text: body.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::{Answer, parse};

    #[test]
    fn reads_status_and_reason() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 12\r\n\r\nlog: unknown";
        assert_eq!(parse(answer), Some(Answer { ready: false, text: "log: unknown".into() }));
        assert!(parse("HTTP/1.1 200 OK\r\n\r\n").unwrap().ready);
        assert_eq!(parse("INFO {}"), None);
    }
}
