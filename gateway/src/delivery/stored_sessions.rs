//! Tells those who opened a session when it can be read over REST.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shared::ids::SessionId;
use tokio::sync::oneshot;

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

    /// A session can be read over REST from now on.
    pub fn stored(&self, session: SessionId) {
        if let Some(waiting) = self.lock().remove(&session) {
            waiting.send(()).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
