//! Who a socket is, as far as its handshake says.

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::http::header::USER_AGENT;
use axum::http::request::Parts;

/// Most bytes of a user agent that are stored.
const USER_AGENT_BYTES_MAX: usize = 1_024;

/// Address of the peer; an IPv4 address that came over IPv6 is written as IPv4.
pub fn address(handshake: &Parts) -> Option<IpAddr> {
    let peer = handshake.extensions.get::<ConnectInfo<SocketAddr>>()?;
    Some(peer.0.ip().to_canonical())
}

/// The browser, where it says so: Node's clients do not over websocket.
pub fn user_agent(handshake: &Parts) -> Option<String> {
    let text = handshake.headers.get(USER_AGENT)?.to_str().ok()?;
    // Header text is ASCII: every byte is a character.
    Some(text[..text.len().min(USER_AGENT_BYTES_MAX)].to_owned())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    #[test]
    fn an_ipv4_address_that_came_over_ipv6_is_written_as_ipv4() {
        let (mut parts, ()) = Request::new(()).into_parts();
        assert_eq!(address(&parts), None);
        let peer: SocketAddr = "[::ffff:192.0.2.7]:9".parse().unwrap();
        parts.extensions.insert(ConnectInfo(peer));
        assert_eq!(address(&parts).unwrap().to_string(), "192.0.2.7");
    }

    #[test]
    fn a_user_agent_may_be_missing_or_long() {
        let (mut parts, ()) = Request::new(()).into_parts();
        assert_eq!(user_agent(&parts), None);
        parts.headers.insert(USER_AGENT, "x".repeat(5_000).parse().unwrap());
        assert_eq!(user_agent(&parts).unwrap().len(), USER_AGENT_BYTES_MAX);
    }
}
