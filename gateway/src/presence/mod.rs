//! Which sessions have a visitor, here or at another gateway.

pub mod active;
pub mod list_revision;
pub mod peers;
