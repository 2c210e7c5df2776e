//! TCP connections and HTTP/1.1, with bounds.

pub mod backlog;
pub mod client_files;
pub mod connection_slots;
pub mod disconnect;
pub mod engine_io;
pub mod host_header;
pub mod http_limits;
pub mod incoming;
pub mod leaving_body;
pub mod packets;
pub mod request_body;
pub mod serve;
pub mod stream;
pub mod sums;
pub mod timeouts;
