//! The contract between the gateway and the persister.
//!
//! Domain types that are parsed once at the edge ([`ids`], [`content`], [`message`], [`change`]), what travels
//! over NATS ([`record`], [`announcement`], [`presence`], [`reading`], [`subjects`], [`partition`], [`log`]), and what both
//! processes need to live ([`settings`], [`env_file`], [`database`], [`pool`], [`nats`], [`telemetry`], [`metrics`], [`health`],
//! [`lifecycle`]).
//! It serves nothing and stores nothing.

pub mod announcement;
pub mod causes;
pub mod change;
pub mod content;
pub mod database;
pub mod env_file;
pub mod health;
pub mod ids;
pub mod lifecycle;
pub mod log;
pub mod message;
pub mod metrics;
pub mod nats;
pub mod partition;
pub mod pool;
pub mod presence;
pub mod reading;
pub mod record;
pub mod session;
pub mod settings;
pub mod subjects;
pub mod telemetry;
pub mod timestamp;

/// The migration that both services need to be applied: the number of the newest file in
/// `migrations/`.
pub const SCHEMA_VERSION: i64 = 5;
