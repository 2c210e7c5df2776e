//! The log as the gateway uses it: what it takes, how far it is stored, which sessions it tells of.

pub mod accept_message;
pub mod guard;
pub mod health;
pub mod pending_sends;
pub mod progress;
pub mod publisher;
pub mod send_permits;
pub mod session_lookup;
pub mod slowest;
