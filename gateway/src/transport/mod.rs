//! TCP connections and HTTP/1.1, with bounds.

pub mod backlog;
pub mod connection_slots;
pub mod disconnect;
pub mod http_limits;
pub mod packets;
pub mod request_body;
pub mod serve;
pub mod stream;
pub mod timeouts;
