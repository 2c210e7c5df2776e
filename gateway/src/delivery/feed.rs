//! Announcements as they arrive. Those that wait are bounded in bytes: what is dropped is missed, and read from
//! Postgres.

use std::sync::Arc;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::metrics::METRICS;

/// Bytes of announcements that wait: those of a second at 20,000 messages of 500 bytes a second.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Announcements in the order in which they arrived.
pub struct Feed {
    waiting: mpsc::UnboundedReceiver<(Bytes, OwnedSemaphorePermit)>,
    _taking: AbortOnDropHandle<()>,
}

impl Feed {
    /// Takes what arrives, until it is dropped. The library bounds how many announcements wait, and not how large
    /// they are.
    pub fn start(mut subscriber: Subscriber) -> Self {
        let room = Arc::new(Semaphore::new(WAITING_BYTES_MAX));
        let (sender, waiting) = mpsc::unbounded_channel();
        let taking = async move {
            while let Some(message) = subscriber.next().await {
                let bytes = u32::try_from(message.payload.len()).unwrap_or(u32::MAX);
                match Arc::clone(&room).try_acquire_many_owned(bytes) {
                    Ok(permit) => drop(sender.send((message.payload, permit))),
                    Err(_) => drop(METRICS.announcements_dropped.inc()),
                }
            }
        };
        Self { waiting, _taking: AbortOnDropHandle::new(tokio::spawn(taking)) }
    }

    /// The next one; `None` when the subscription has ended.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.waiting.recv().await.map(|(payload, _)| payload)
    }
}
