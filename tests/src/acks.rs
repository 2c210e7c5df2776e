//! What an ack of a send says.

use serde_json::Value;

/// Whether it says that the message is stored, or in the log and surely will be.
#[must_use]
pub fn is_taken(ack: &Value) -> bool {
    matches!(ack["status"].as_str(), Some("stored" | "accepted"))
}

/// The same of an ack as it comes over the wire.
pub(crate) fn is_taken_text(packet: &str) -> bool {
    packet.contains(r#""status":"stored""#) || packet.contains(r#""status":"accepted""#)
}
