//! What proxies say of the way that a request came: `Forwarded` (RFC 7239) and `X-Forwarded-For`.
//!
//! The last entry is what our own peer says of its peer, the one before what that one said. Everything to
//! the left of what a trusted proxy wrote can be made up by anybody.

use std::net::IpAddr;

use axum::http::header::FORWARDED;
use axum::http::{HeaderMap, HeaderName};

/// The older header, an address per hop.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The hops that a request came over, nearest last; `None` where an entry names no address.
pub type Hops = Vec<Option<IpAddr>>;

/// The hops of `Forwarded`, if it is there.
pub fn forwarded(headers: &HeaderMap) -> Option<Hops> {
    let line = joined(headers, &FORWARDED)?;
    // Quotes that do not close may have been opened by the client: nothing in it can be told apart.
    let hops = split(&line, ',').map(|entries| entries.into_iter().map(hop).collect());
    Some(hops.unwrap_or_else(|| vec![None]))
}

/// The hops of `X-Forwarded-For`, if it is there.
pub fn x_forwarded_for(headers: &HeaderMap) -> Option<Hops> {
    let line = joined(headers, &X_FORWARDED_FOR)?;
    Some(line.split(',').map(address).collect())
}

/// A header that stands there several times is one list.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines: Vec<_> = headers.get_all(name).iter().collect();
    let texts = lines.iter().map(|line| line.to_str().unwrap_or("unknown"));
    (!lines.is_empty()).then(|| texts.collect::<Vec<_>>().join(","))
}

/// The address in `for=…` of an entry of `Forwarded`.
fn hop(entry: &str) -> Option<IpAddr> {
    let pairs = split(entry, ';')?;
    let mut pairs = pairs.iter().filter_map(|pair| pair.trim().split_once('='));
    let (_, node) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    address(node)
}

/// An address, which may have a port, brackets and quotes; names and obfuscated ones are none.
fn address(node: &str) -> Option<IpAddr> {
    let node = node.trim().trim_matches('"');
    let host = match node.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(host, _)| host)?,
        // One colon is that of a port, several are those of an IPv6 address.
        None if node.matches(':').count() == 1 => node.split_once(':')?.0,
        None => node,
    };
    host.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Splits where no quotes are open; nothing if they are at the end.
fn split(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = text
        .split(|character| {
            match character {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ => return !quoted && character == separator,
            }
            false
        })
        .collect();
    (!quoted).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &HeaderName, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), line.parse().unwrap())).collect()
    }

    fn texts(hops: Option<Hops>) -> Vec<String> {
        let text = |hop: Option<IpAddr>| hop.map_or("-".into(), |hop| hop.to_string());
        hops.unwrap().into_iter().map(text).collect()
    }

    fn forwarded_as(lines: &[&str]) -> Vec<String> {
        texts(forwarded(&headers(&FORWARDED, lines)))
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        let example =
            r#"for=192.0.2.60;proto=http;by=203.0.113.43, For="[2001:db8:cafe::17]:4711""#;
        assert_eq!(forwarded_as(&[example]), ["192.0.2.60", "2001:db8:cafe::17"]);
        assert_eq!(
            forwarded_as(&["for=192.0.2.1", "by=x; FOR=192.0.2.2:80"]),
            ["192.0.2.1", "192.0.2.2"]
        );
        assert_eq!(forwarded_as(&[r#"for="192.0.2.43:_port""#]), ["192.0.2.43"]);
        assert_eq!(forwarded_as(&[r#"for="::ffff:192.0.2.1""#]), ["192.0.2.1"]);
    }

    #[test]
    fn what_names_no_address_is_a_hop_without_one() {
        for entry in
            ["for=unknown", "for=_hidden", "for=", "by=192.0.2.1", "", "192.0.2.1", "for=[::1"]
        {
            assert_eq!(forwarded_as(&[entry]), ["-"], "{entry}");
        }
        assert_eq!(
            texts(x_forwarded_for(&headers(&X_FORWARDED_FOR, &["", "a, fe80::1%eth0"]))),
            ["-"; 3]
        );
    }

    #[test]
    fn separators_between_quotes_separate_nothing() {
        let made_up = r#"for="_a,for=192.0.2.9;for=192.0.2.9\"," ;x="\\", for=192.0.2.1"#;
        assert_eq!(forwarded_as(&[made_up]), ["-", "192.0.2.1"]);
        assert_eq!(forwarded_as(&[r#"for=192.0.2.9;x=", for=192.0.2.1"#]), ["-"]);
    }

    #[test]
    fn x_forwarded_for_is_a_list_also_over_several_lines() {
        let lines = ["192.0.2.1, 192.0.2.2:443", "[2001:db8::1]:80,2001:db8::2"];
        let hops = texts(x_forwarded_for(&headers(&X_FORWARDED_FOR, &lines)));
        assert_eq!(hops, ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]);
        assert_eq!(x_forwarded_for(&HeaderMap::new()), None);
    }
}
