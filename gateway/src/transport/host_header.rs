//! `Host`, which a request of HTTP/1.1 names once: RFC 9112, section 3.2. What disagrees with itself may be read in one
//! way here and in another by a proxy in front.

use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Request, Version};

/// Why a request is refused; none where there is nothing against it.
pub fn mistake<B>(request: &Request<B>) -> Option<&'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() < Version::HTTP_11 => None,
        (None, _) => Some("Host: is missing"),
        (Some(_), Some(_)) => Some("Host: is given more than once"),
        (Some(host), None) if is_one(host) => None,
        (Some(_), None) => Some("Host: must be a host and, if need be, a port"),
    }
}

/// It may be empty: where the address that is asked for names no host.
fn is_one(host: &HeaderValue) -> bool {
    let bytes = host.as_bytes();
    bytes.is_empty()
        || Authority::try_from(bytes).is_ok_and(|authority| {
            let port = authority.as_str().strip_prefix(authority.host());
            let port = port
                .and_then(|port| if port.is_empty() { Some("") } else { port.strip_prefix(':') });
            !authority.as_str().contains(['@', ','])
                && !authority.host().is_empty()
                && port.is_some_and(|port| port.is_empty() || port.parse::<u16>().is_ok())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake_of(version: Version, hosts: &[&[u8]]) -> Option<&'static str> {
        let mut request = Request::get("/health").version(version);
        for host in hosts {
            request = request.header(HOST, HeaderValue::from_bytes(host).unwrap());
        }
        mistake(&request.body(()).unwrap())
    }

    #[test]
    fn a_host_is_named_once() {
        let hosts: [&[u8]; 6] = [
            b"x",
            b"chat.example:4000",
            b"127.0.0.1",
            b"[::1]:4000",
            b"",
            b"xn--bcher-kva.example",
        ];
        for host in hosts {
            assert_eq!(mistake_of(Version::HTTP_11, &[host]), None);
        }
        assert_eq!(mistake_of(Version::HTTP_10, &[]), None);
        assert_eq!(mistake_of(Version::HTTP_11, &[]), Some("Host: is missing"));
        for version in [Version::HTTP_10, Version::HTTP_11] {
            assert_eq!(mistake_of(version, &[b"a", b"a"]), Some("Host: is given more than once"));
        }
    }

    #[test]
    fn a_host_is_one() {
        let hosts: [&[u8]; 7] =
            [b"a b", b"a,b", b"user@a", b"a/b", b"a:b:c", b"b\xc3\xbccher.example", b"a:99999"];
        for host in hosts {
            assert!(mistake_of(Version::HTTP_11, &[host]).is_some(), "{host:?}");
        }
    }
}
