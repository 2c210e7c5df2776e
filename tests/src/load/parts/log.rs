//! The log alone: publishing with acks, reading in order, and announcements past the log.

use std::collections::VecDeque;
use std::future::IntoFuture;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_nats::jetstream::context::{PublishAckFuture, PublishError};
use async_nats::jetstream::{self, stream};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::load::figures::float;
use crate::load::usage::{Server, generator};

use super::Cost;

const STREAM: &str = "PARTS";
const SUBJECT: &str = "parts.requests.7.0b0e7bd5-3f6a-4d43-8a3c-3a5f2e9c1d77";
const SAVED: &str = "parts.saved.7.0b0e7bd5-3f6a-4d43-8a3c-3a5f2e9c1d77";
/// Bytes of a record with a message of 100 characters.
const RECORD_BYTES: usize = 180;
/// Bytes of a saved message of 100 characters.
const SAVED_BYTES: usize = 260;
/// Records that are read.
const READ: u64 = 100_000;
/// Announcements that are sent before those received are counted.
const BURST: u64 = 256;

type Acks = VecDeque<Pin<Box<<PublishAckFuture as IntoFuture>::IntoFuture>>>;

/// Publishes with so many acks on their way at most.
pub(in crate::load) struct Window {
    jetstream: jetstream::Context,
    acks: Acks,
    size: usize,
}

impl Window {
    pub(in crate::load) fn new(jetstream: jetstream::Context, size: usize) -> Self {
        Self { jetstream, acks: VecDeque::new(), size }
    }

    pub(in crate::load) async fn publish(&mut self, subject: String, record: Bytes) -> Result<()> {
        if self.acks.len() >= self.size {
            self.acked().await?;
        }
        let ack = self.jetstream.publish(subject, record).await?;
        self.acks.push_back(Box::pin(ack.into_future()));
        Ok(())
    }

    pub(in crate::load) async fn settle(&mut self) -> Result<()> {
        while !self.acks.is_empty() {
            self.acked().await?;
        }
        Ok(())
    }

    async fn acked(&mut self) -> Result<(), PublishError> {
        match self.acks.pop_front() {
            Some(ack) => ack.await.map(drop),
            None => Ok(()),
        }
    }
}

/// Publishes so long with acks.
pub(super) async fn publish(
    client: &Client,
    nats: &Server,
    window: usize,
    lasts: Duration,
) -> Result<Cost> {
    let jetstream = jetstream::new(client.clone());
    let config = stream::Config {
        name: STREAM.into(),
        subjects: vec!["parts.requests.>".into()],
        storage: stream::StorageType::File,
        ..stream::Config::default()
    };
    jetstream.get_or_create_stream(config).await?;
    let mut window = Window::new(jetstream, window);
    let record = Bytes::from(vec![b'x'; RECORD_BYTES]);
    let meter = Meter::start(nats)?;
    let mut published = 0;
    while meter.begun.elapsed() < lasts {
        window.publish(SUBJECT.to_owned(), record.clone()).await?;
        published += 1;
    }
    window.settle().await?;
    meter.cost(published)
}

/// Reads what was published.
pub(super) async fn consume(client: &Client, nats: &Server) -> Result<Cost> {
    let stream = jetstream::new(client.clone()).get_stream(STREAM).await?;
    let there = stream.cached_info().state.messages.min(READ);
    let config = push::OrderedConfig {
        deliver_subject: client.new_inbox(),
        deliver_policy: DeliverPolicy::All,
        ..push::OrderedConfig::default()
    };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let meter = Meter::start(nats)?;
    for _ in 0..there {
        let message = messages.next().await.context("the consumer ended")??;
        message.info().map_err(anyhow::Error::from_boxed)?;
    }
    meter.cost(there)
}

/// Publishes past the log with headers, and receives on another connection.
pub(super) async fn announce(
    sender: Client,
    receiver: Client,
    nats: &Server,
    lasts: Duration,
) -> Result<Cost> {
    let mut saved = receiver.subscribe("parts.saved.>").await?;
    // A flush is no round trip: what the other connection sends could be there before the subscription.
    receiver.publish(SAVED, Bytes::new()).await?;
    saved.next().await.context("the subscription ended")?;
    let payload = Bytes::from(vec![b'x'; SAVED_BYTES]);
    let meter = Meter::start(nats)?;
    let mut sent = 0;
    while meter.begun.elapsed() < lasts {
        for _ in 0..BURST {
            let mut headers = HeaderMap::new();
            for name in ["Chat-Epoch", "Chat-Sequence", "Chat-Previous"] {
                headers.insert(name, sent.to_string());
            }
            sender.publish_with_headers(SAVED.to_owned(), headers, payload.clone()).await?;
            sent += 1;
        }
        for _ in 0..BURST {
            saved.next().await.context("the subscription ended")?;
        }
    }
    meter.cost(sent)
}

/// Measures one part.
pub(super) struct Meter<'a> {
    server: &'a Server,
    pub(super) begun: Instant,
    used: (Duration, Duration),
}

impl<'a> Meter<'a> {
    pub(super) fn start(server: &'a Server) -> Result<Self> {
        Ok(Self { server, begun: Instant::now(), used: (server.cpu_time()?, generator()?) })
    }

    /// What each of so many took.
    pub(super) fn cost(&self, count: u64) -> Result<Cost> {
        let count = float(count.max(1));
        let each =
            |now: Duration, then: Duration| now.saturating_sub(then).as_secs_f64() * 1e6 / count;
        Ok(Cost {
            rate: count / self.begun.elapsed().as_secs_f64(),
            server: each(self.server.cpu_time()?, self.used.0),
            client: each(generator()?, self.used.1),
        })
    }
}
