//! Tells those who opened a session when it can be read over REST.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Client;
use futures_util::StreamExt;
use shared::ids::SessionId;
use shared::lifecycle::Stop;
use shared::subjects;
use tokio::sync::oneshot;

use crate::delivery::inboxes::Inboxes;

/// Sessions that somebody waits for.
#[derive(Default)]
pub struct StoredSessions(Mutex<HashMap<SessionId, oneshot::Sender<()>>>);

impl StoredSessions {
    /// Resolves when the session is stored. To be called before it is asked for.
    pub fn wait(&self, session: SessionId) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(session, sender);
        receiver
    }

    /// Nobody waits any longer.
    pub fn forget(&self, session: SessionId) {
        self.lock().remove(&session);
    }

    fn stored(&self, session: SessionId) {
        if let Some(waiting) = self.lock().remove(&session) {
            waiting.send(()).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens for stored sessions until the stop.
pub async fn listen(
    waiting: Arc<StoredSessions>,
    inboxes: Arc<Inboxes>,
    client: Client,
    stop: Stop,
) -> anyhow::Result<()> {
    let mut stored = client.subscribe(subjects::ALL_OPENED).await?;
    while let Some(Some(message)) = stop.run_until_cancelled(stored.next()).await {
        if let Some((_, session)) = subjects::parse(&message.subject) {
            waiting.stored(session);
            inboxes.changed();
        }
    }
    anyhow::ensure!(stop.is_cancelled(), "the subscription to stored sessions ended");
    Ok(())
}
