//! The connection to NATS: comes up by itself, comes back by itself, and says when something may
//! have been missed meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Auth, AuthError, Client, ConnectOptions, Event, ServerAddr};
use percent_encoding::percent_decode_str;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longest pause between two tries to reconnect: delivery resumes within 5 s of the server's
/// return, so a try must come well before that.
const MAX_RECONNECT_DELAY: Duration = Duration::from_millis(500);
/// First pause; it doubles with every try.
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(20);
/// A peer that answers no ping for about three of these is given up: a cut cable sends no reset.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Bound of one request to the server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Bound of one try to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Counts the moments after which a subscriber may have missed something: a reconnect, or a
/// subscription that was too slow. The library drops silently but for these events.
pub type Disturbances = watch::Receiver<u64>;

/// Servers and the credentials for them, which never show.
#[derive(Clone)]
pub struct NatsUrl {
    /// Without credentials.
    servers: Vec<String>,
    credentials: Option<Credentials>,
}

/// What stands before the `@` of a URL, with its escapes resolved.
#[derive(Clone, PartialEq, Eq)]
enum Credentials {
    User { name: String, password: String },
    Token(String),
}

impl Credentials {
    fn parse(text: &str) -> Option<Self> {
        let decoded = |part: &str| {
            let part = percent_decode_str(part).decode_utf8().ok()?;
            Some(part.into_owned())
        };
        Some(match text.split_once(':') {
            Some((name, password)) => {
                Self::User { name: decoded(name)?, password: decoded(password)? }
            }
            None => Self::Token(decoded(text)?),
        })
    }
}

impl NatsUrl {
    /// Connects now or fails; for commands.
    pub async fn connect_once(&self) -> Result<Client, async_nats::ConnectError> {
        let options = self.authenticated(ConnectOptions::new().connection_timeout(CONNECT_TIMEOUT));
        options.connect(self.servers.as_slice()).await
    }

    /// Connects now or fails. The connection has one life: when it is cut it ends, and with it what waits to be
    /// written, which the library would else write to the next server it reaches. The token is cancelled then.
    pub async fn connect_until_cut(
        &self,
        name: &str,
    ) -> Result<(Client, CancellationToken), async_nats::ConnectError> {
        let cut = CancellationToken::new();
        let is_used = Arc::new(AtomicBool::new(false));
        let (was_used, told) = (Arc::clone(&is_used), cut.clone());
        let auth = self.auth();
        // The library has no other way to be kept from coming back: its second life is refused here.
        let options = ConnectOptions::with_auth_callback(move |_| {
            let auth = if was_used.load(Ordering::Relaxed) {
                Err(AuthError::new("the connection was cut"))
            } else {
                Ok(auth.clone())
            };
            std::future::ready(auth)
        });
        let client = options
            .name(name)
            .max_reconnects(self.servers.len())
            .ping_interval(PING_INTERVAL)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .connection_timeout(CONNECT_TIMEOUT)
            .event_callback(move |event| {
                if matches!(event, Event::Disconnected | Event::Closed) {
                    told.cancel();
                }
                std::future::ready(())
            })
            .connect(self.servers.as_slice())
            .await?;
        is_used.store(true, Ordering::Relaxed);
        Ok((client, cut))
    }

    fn auth(&self) -> Auth {
        let mut auth = Auth::new();
        match self.credentials.clone() {
            Some(Credentials::User { name, password }) => {
                auth.username = Some(name);
                auth.password = Some(password);
            }
            Some(Credentials::Token(token)) => auth.token = Some(token),
            None => {}
        }
        auth
    }

    fn authenticated(&self, options: ConnectOptions) -> ConnectOptions {
        match self.credentials.clone() {
            Some(Credentials::User { name, password }) => options.user_and_password(name, password),
            Some(Credentials::Token(token)) => options.token(token),
            None => options,
        }
    }

    /// The servers, as logs name them.
    fn redacted(&self) -> String {
        let shown = self.servers.iter().map(|server| server.trim_start_matches("nats://"));
        shown.collect::<Vec<_>>().join(",")
    }
}

impl std::fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl std::fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.redacted())
    }
}

impl std::str::FromStr for NatsUrl {
    type Err = InvalidNatsUrl;

    fn from_str(text: &str) -> Result<Self, InvalidNatsUrl> {
        let (mut servers, mut credentials) = (Vec::new(), None);
        for url in text.split(',').map(str::trim) {
            let (server, given) = server(url).ok_or(InvalidNatsUrl::NotAUrl)?;
            servers.push(server);
            // What one server is shown all are shown: the library knows one for all.
            if given.is_some() && credentials.is_some() && given != credentials {
                return Err(InvalidNatsUrl::SeveralCredentials);
            }
            credentials = credentials.or(given);
        }
        Ok(Self { servers, credentials })
    }
}

/// A server without its credentials, and those.
fn server(url: &str) -> Option<(String, Option<Credentials>)> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    // Credentials may hold an `@` that is not escaped.
    let (credentials, host) = rest.rsplit_once('@').unwrap_or(("", rest));
    let host = host.trim_end_matches('/');
    let is_host = !host.is_empty() && !host.contains(['/', '?', '#']);
    let server = format!("{scheme}://{host}");
    let is_known = ["nats", "tls"].contains(&scheme) && server.parse::<ServerAddr>().is_ok();
    let credentials = match credentials {
        "" => None,
        text => Some(Credentials::parse(text)?),
    };
    (is_host && is_known).then_some((server, credentials))
}

/// Why a text is no list of NATS servers. It is not repeated, as it may hold a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidNatsUrl {
    #[error(
        "must be nats://[user:password@]host[:port], several separated by commas; encode special characters of \
         the password as %XX"
    )]
    NotAUrl,
    #[error("all servers must have the same user and password, or none")]
    SeveralCredentials,
}

/// Starts connecting, without end, and returns at once. `name` is shown by the server's monitoring.
pub async fn connect(
    url: &NatsUrl,
    name: &str,
) -> Result<(Client, Disturbances), async_nats::ConnectError> {
    let (disturbed, disturbances) = watch::channel(0);
    let servers = url.redacted();
    let client = url
        .authenticated(ConnectOptions::new())
        .name(name)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(reconnect_delay)
        .ping_interval(PING_INTERVAL)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .connection_timeout(CONNECT_TIMEOUT)
        .event_callback(move |event| {
            observe(&event, &servers, &disturbed);
            std::future::ready(())
        })
        .connect(url.servers.as_slice())
        .await?;
    Ok((client, disturbances))
}

/// Watches over what tells of disturbances: without it nobody would know what was missed. It ends with an error
/// if that ends.
pub async fn watch(mut disturbances: Disturbances) -> anyhow::Result<()> {
    while disturbances.changed().await.is_ok() {}
    anyhow::bail!("nobody tells any more what becomes of the connection")
}

fn observe(event: &Event, servers: &str, disturbed: &watch::Sender<u64>) {
    match event {
        Event::Connected => {
            tracing::info!("connected to NATS");
            disturbed.send_modify(|count| *count += 1);
        }
        Event::SlowConsumer(_) => {
            tracing::warn!("a subscription was too slow and lost messages, resynchronising");
            disturbed.send_modify(|count| *count += 1);
        }
        Event::Disconnected => tracing::warn!("disconnected from NATS"),
        Event::ServerError(error) => tracing::warn!(%error, "NATS reports an error"),
        Event::ClientError(error) => {
            tracing::warn!(%error, servers, "NATS cannot be used (NATS_URL)");
        }
        other => tracing::info!(event = %other, "NATS connection changed"),
    }
}

fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(8);
    (MIN_RECONNECT_DELAY * 2_u32.pow(doublings)).min(MAX_RECONNECT_DELAY)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn credentials_never_show() {
        let url: NatsUrl = "nats://user:secret@one:4222,two".parse().unwrap();
        assert_eq!(format!("{url} {url:?}"), "one:4222,two one:4222,two");
    }

    fn credentials(url: &str) -> Option<(String, String)> {
        match url.parse::<NatsUrl>().unwrap().credentials? {
            Credentials::User { name, password } => Some((name, password)),
            Credentials::Token(token) => Some((token, String::new())),
        }
    }

    #[test]
    fn escapes_in_credentials_are_resolved() {
        let pair = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        assert_eq!(credentials("nats://u:p%40w%2F@host"), pair("u", "p@w/"));
        assert_eq!(credentials("nats://u%3Au:p+%2B%25@host:4223"), pair("u:u", "p++%"));
        assert_eq!(credentials("tls://to%C3%BCken@host"), pair("toüken", ""));
        // What is no escape stays.
        assert_eq!(credentials("u:100%@host"), pair("u", "100%"));
        assert_eq!(credentials("nats://u:a@b/c@host/"), pair("u", "a@b/c"));
        assert_eq!(credentials("nats://u:@host"), pair("u", ""));
        assert_eq!(credentials("nats://@host"), None);
        assert_eq!(credentials("one, nats://u:p@two,nats://u:p@three"), pair("u", "p"));
    }

    /// What clients show to a server that takes everybody.
    async fn shown(listener: &TcpListener) -> serde_json::Value {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let info = br#"INFO {"server_id":"x","version":"2.11.0","proto":1,"headers":true,"max_payload":1048576}"#;
        stream.write_all(&[info, "\r\n".as_bytes()].concat()).await.unwrap();
        let mut line = String::new();
        while !line.starts_with("CONNECT ") {
            line.clear();
            assert_ne!(stream.read_line(&mut line).await.unwrap(), 0);
        }
        stream.write_all(b"PONG\r\n").await.unwrap();
        serde_json::from_str(line.trim_start_matches("CONNECT ")).unwrap()
    }

    #[tokio::test]
    async fn every_connection_shows_the_credentials_that_are_meant() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url: NatsUrl = format!("nats://u:p%40w%2F@{address}").parse().unwrap();
        for kind in 0..3 {
            let connecting = async {
                match kind {
                    0 => url.connect_once().await.map(drop),
                    1 => url.connect_until_cut("test").await.map(drop),
                    _ => connect(&url, "test").await.map(drop),
                }
            };
            let (_, shown) = tokio::join!(connecting, shown(&listener));
            assert_eq!((&shown["user"], &shown["pass"]), (&"u".into(), &"p@w/".into()), "{kind}");
        }
    }

    #[test]
    fn what_can_have_no_effect_is_refused() {
        let refused = |url: &str| url.parse::<NatsUrl>().err();
        assert_eq!(
            refused("nats://u:p@one,nats://u:q@two"),
            Some(InvalidNatsUrl::SeveralCredentials)
        );
        for url in [
            "",
            ",",
            "http://host",
            "ws://host",
            "nats://",
            "nats://u:p@",
            "nats://host/chat",
            "nats://host?tls=1",
            "nats://u:%ff@host",
            "host:port",
        ] {
            assert_eq!(refused(url), Some(InvalidNatsUrl::NotAUrl), "{url}");
        }
    }

    #[tokio::test]
    async fn it_is_noticed_when_nobody_tells_of_disturbances_any_more() {
        let (disturbed, disturbances) = watch::channel(0);
        let watched = tokio::spawn(super::watch(disturbances));
        disturbed.send_modify(|count| *count += 1);
        tokio::task::yield_now().await;
        assert!(!watched.is_finished());
        drop(disturbed);
        assert!(watched.await.unwrap().is_err());
    }

    #[test]
    fn reconnects_come_soon_and_stay_soon() {
        assert_eq!(reconnect_delay(1), MIN_RECONNECT_DELAY);
        assert_eq!(reconnect_delay(1_000), MAX_RECONNECT_DELAY);
    }
}
