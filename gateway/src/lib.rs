//! The gateway: Socket.IO and HTTP towards visitors, agents and integrators; NATS towards the
//! persisters. It never writes to Postgres.
//!
//! One message's way: [`socket::events`] takes it from a socket, [`socket::send_message`] checks it,
//! [`log::publisher`] puts it into the log; once it is stored, [`delivery::task`] hears of it, or
//! [`delivery::recovery`] reads it, and [`delivery::rooms`] emits it. Agents see all sessions in their
//! [`delivery::inboxes`]; [`presence`] is who is connected, here or to another gateway; [`signals`] is what those in a
//! session tell each other beside the log.

pub mod access;
pub mod app;
pub mod config;
pub mod db;
pub mod delivery;
pub mod emitted;
pub mod error;
pub mod fields;
pub mod http;
pub mod inbox;
pub mod log;
pub mod metrics;
pub mod presence;
pub mod problem;
mod run;
pub mod signals;
pub mod socket;
pub mod transport;

pub use run::run;
