//! Who somebody is, what they may do, and how much of it.

pub mod client_address;
pub mod forwarded;
pub mod limits;
pub mod rights;
pub mod token;
