//! The connection to NATS: comes up by itself, comes back by itself, and says when something may
//! have been missed meanwhile.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use tokio::sync::watch;

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

/// A NATS URL whose credentials never show.
#[derive(Clone)]
pub struct NatsUrl(String);

impl NatsUrl {
    /// Connects now or fails; for commands.
    pub async fn connect_once(&self) -> Result<Client, async_nats::ConnectError> {
        let options = self.authenticated(ConnectOptions::new().connection_timeout(CONNECT_TIMEOUT));
        options.connect(self.servers()).await
    }

    fn servers(&self) -> Vec<&str> {
        self.0.split(',').map(str::trim).collect()
    }

    /// The credentials of the first server hold for all: `user:password@`, or a token before the `@`.
    fn authenticated(&self, options: ConnectOptions) -> ConnectOptions {
        let first = self.0.split(',').next().unwrap_or_default();
        let credentials = first.rsplit_once('@').map(|(before, _)| before);
        let credentials = credentials.map(|text| text.rsplit("//").next().unwrap_or(text));
        match credentials.map(|text| text.split_once(':')) {
            Some(Some((user, password))) => options.user_and_password(user.into(), password.into()),
            Some(None) => options.token(credentials.unwrap_or_default().into()),
            None => options,
        }
    }

    /// The servers of the list, each without credentials.
    fn redacted(&self) -> String {
        let server = |url: &str| {
            let after_credentials = url.rsplit('@').next().unwrap_or(url);
            after_credentials.trim_start_matches("nats://").to_owned()
        };
        self.0.split(',').map(server).collect::<Vec<_>>().join(",")
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
        let valid = |url: &str| {
            let known = |scheme| ["nats", "tls"].contains(&scheme);
            let scheme = url.trim().split_once("://").is_none_or(|(scheme, _)| known(scheme));
            scheme && url.trim().parse::<async_nats::ServerAddr>().is_ok()
        };
        if !text.is_empty() && text.split(',').all(valid) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidNatsUrl)
        }
    }
}

/// The text is no list of NATS servers.
#[derive(Debug, thiserror::Error)]
#[error("must be nats://[user:password@]host[:port], several separated by commas")]
pub struct InvalidNatsUrl;

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
        .connect(url.servers())
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
    use super::*;

    #[test]
    fn credentials_never_show() {
        let url: NatsUrl = "nats://user:secret@one:4222,two".parse().unwrap();
        assert_eq!(format!("{url} {url:?}"), "one:4222,two one:4222,two");
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
