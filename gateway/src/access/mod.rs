//! Who somebody is, what they may do, and how much of it.

pub mod client_address;
pub mod forwarded;
pub mod limits;
pub mod origins;
pub mod rights;
pub mod shown_tokens;
pub mod token;
