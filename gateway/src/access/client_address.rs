//! Who a socket is, as far as its handshake says.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::ConnectInfo;
use axum::http::header::USER_AGENT;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Request};
use ipnet::IpNet;

use crate::access::forwarded::{Hops, forwarded, x_forwarded_for};

/// Most bytes of a user agent that are stored.
const USER_AGENT_BYTES_MAX: usize = 1_024;

/// The client's address, among the extensions of a handshake.
#[derive(Debug, Clone, Copy)]
pub struct ClientAddress(pub IpAddr);

/// Peers whose word about their clients' addresses is taken.
#[derive(Debug, Default)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    warned: AtomicBool,
}

impl TrustedProxies {
    /// The client's address of a request; none where it came over no connection.
    pub fn client_of<B>(&self, request: &Request<B>) -> Option<IpAddr> {
        let ConnectInfo(peer) = request.extensions().get::<ConnectInfo<SocketAddr>>()?;
        Some(self.client(peer.ip(), request.headers()))
    }

    /// The client's address: the peer's own, or what a trusted peer says of its client. An IPv4 address
    /// that came over IPv6 is written as IPv4.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        let told = [forwarded(headers), x_forwarded_for(headers)];
        if told.iter().all(Option::is_none) {
            return peer;
        }
        if !self.trust(peer) {
            self.warn(
                "a peer that TRUSTED_PROXIES does not name says where its clients come from: ignored, its \
                 address counts for all of them",
            );
            return peer;
        }
        let [first, second] = told.map(|hops| hops.map(|hops| self.nearest(peer, &hops)));
        match (first, second) {
            (Some(first), Some(second)) if first != second => {
                self.warn(
                    "a proxy passes both Forwarded and X-Forwarded-For on, and they differ: it must \
                     remove the one that it does not write, until then its own address counts",
                );
                peer
            }
            (first, second) => first.or(second).unwrap_or(peer),
        }
    }

    /// The nearest hop that is not trusted, or the last of the trusted ones that is known.
    fn nearest(&self, peer: IpAddr, hops: &Hops) -> IpAddr {
        let mut nearest = peer;
        for hop in hops.iter().rev() {
            match hop {
                Some(address) if self.trust(nearest) => nearest = *address,
                _ => break,
            }
        }
        nearest
    }

    /// Whether this canonical address is a proxy's.
    pub fn trust(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Anybody can send such headers: once is enough.
    fn warn(&self, text: &str) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!("{text}");
        }
    }
}

impl FromStr for TrustedProxies {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let network = |text: &str| {
            let text = text.trim();
            text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        };
        let networks: Result<_, _> = text.split(',').map(network).collect();
        networks
            .map(|networks| Self { networks, ..Self::default() })
            .map_err(|_| "must be addresses or networks such as 10.0.0.0/8, separated by commas")
    }
}

/// Address of the client.
pub fn address(handshake: &Parts) -> Option<IpAddr> {
    handshake.extensions.get::<ClientAddress>().map(|address| address.0)
}

/// The browser, where it says so: Node's clients do not over websocket.
pub fn user_agent(handshake: &Parts) -> Option<String> {
    let text = handshake.headers.get(USER_AGENT)?.to_str().ok()?;
    // Header text is ASCII: every byte is a character.
    Some(text[..text.len().min(USER_AGENT_BYTES_MAX)].to_owned())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, Request};

    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn client(trusted: &str, peer: &str, told: &[(&'static str, &str)]) -> String {
        let headers = told
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let trusted: TrustedProxies = trusted.parse().unwrap();
        trusted.client(peer.parse().unwrap(), &headers.collect()).to_string()
    }

    fn forwarded_for(trusted: &str, hops: &str) -> String {
        client(trusted, PROXY, &[("x-forwarded-for", hops)])
    }

    #[test]
    fn an_ipv4_address_that_came_over_ipv6_is_written_as_ipv4() {
        assert_eq!(client("::1", "::ffff:192.0.2.7", &[]), "192.0.2.7");
        let mapped = client("10.0.0.1", "::ffff:10.0.0.1", &[("forwarded", "for=192.0.2.7")]);
        assert_eq!(mapped, "192.0.2.7");
    }

    #[test]
    fn only_a_trusted_peer_is_believed() {
        let told = [("x-forwarded-for", "192.0.2.7"), ("forwarded", "for=192.0.2.7")];
        assert_eq!(client("::1", PROXY, &told), PROXY);
        assert_eq!(client(PROXY, PROXY, &told), "192.0.2.7");
        assert_eq!(client("10.0.0.0/8", PROXY, &told[1..]), "192.0.2.7");
    }

    #[test]
    fn the_nearest_hop_that_is_not_trusted_is_the_client() {
        let trusted = "10.0.0.0/8, 2001:db8:1::/48";
        assert_eq!(
            forwarded_for(trusted, "1.1.1.1, 192.0.2.7, 2001:db8:1::2, 10.0.0.2"),
            "192.0.2.7"
        );
        assert_eq!(forwarded_for("10.0.0.1", "192.0.2.7, 10.0.0.2"), "10.0.0.2");
        assert_eq!(forwarded_for(trusted, "10.0.0.3, 10.0.0.2"), "10.0.0.3", "all are trusted");
    }

    #[test]
    fn nobody_is_believed_beyond_a_hop_that_is_not_known() {
        assert_eq!(forwarded_for(PROXY, "192.0.2.7, unknown"), PROXY);
        assert_eq!(forwarded_for("10.0.0.0/8", "192.0.2.7, unknown, 10.0.0.2"), "10.0.0.2");
    }

    #[test]
    fn a_header_that_the_proxy_only_passes_on_changes_nothing() {
        let told = [("forwarded", "for=203.0.113.9"), ("x-forwarded-for", "192.0.2.7")];
        assert_eq!(client(PROXY, PROXY, &told), PROXY);
    }

    #[test]
    fn a_list_of_anything_else_is_refused() {
        for text in ["", "proxy.example", "10.0.0.0/33", "10.0.0.1,"] {
            assert!(text.parse::<TrustedProxies>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_user_agent_may_be_missing_or_long() {
        let (mut parts, ()) = Request::new(()).into_parts();
        assert_eq!(user_agent(&parts), None);
        parts.headers.insert(USER_AGENT, "x".repeat(5_000).parse().unwrap());
        assert_eq!(user_agent(&parts).unwrap().len(), USER_AGENT_BYTES_MAX);
    }
}
