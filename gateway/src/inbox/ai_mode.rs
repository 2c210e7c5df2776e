//! Relays to all inboxes, on every gateway, that an agent switched the AI of a session on or off.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use futures_util::StreamExt;
use shared::lifecycle::Stop;
use shared::presence::AiMode;
use shared::subjects;

use crate::delivery::inboxes::Inboxes;
use crate::emitted::Emitted;
use crate::error::ClientError;

/// Longest wait for NATS to take it.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The way to all gateways.
pub struct AiModes(Client);

impl AiModes {
    /// Publishes over this connection.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    /// Tells all gateways, this one included.
    pub async fn switch(&self, mode: &AiMode) -> Result<(), ClientError> {
        // Without a connection the library would queue it, and send it some time later.
        if self.0.connection_state() != State::Connected {
            return Err(ClientError::unavailable());
        }
        let payload = serde_json::to_vec(mode).map_err(|_| ClientError::unavailable())?;
        let published = self.0.publish(subjects::AI_MODE, payload.into());
        match tokio::time::timeout(PUBLISH_TIMEOUT, published).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ClientError::unavailable()),
        }
    }
}

/// Tells the inboxes of this gateway until the stop.
pub async fn listen(inboxes: Arc<Inboxes>, client: Client, stop: Stop) -> anyhow::Result<()> {
    let mut switched = client.subscribe(subjects::AI_MODE).await?;
    while let Some(Some(message)) = stop.run_until_cancelled(switched.next()).await {
        match serde_json::from_slice::<AiMode>(&message.payload) {
            Ok(mode) => inboxes.emit(Emitted::AiModeChanged, &mode),
            Err(error) => tracing::warn!(%error, "a switch of an AI cannot be read"),
        }
    }
    anyhow::ensure!(stop.is_cancelled(), "the subscription to switches of AIs ended");
    Ok(())
}
