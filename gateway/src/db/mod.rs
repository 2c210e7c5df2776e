//! What is read from Postgres. The gateway never writes to it.

pub mod events;
pub mod history;
pub mod rows;
pub mod schema;
pub mod search;
pub mod together;
