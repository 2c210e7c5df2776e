//! What clients emit over Socket.IO: from the connection to the ack.

pub mod ack;
pub mod change_events;
pub mod connection;
pub mod events;
pub mod handshake;
pub mod inbox_events;
pub mod init_session;
pub mod lane;
pub mod line;
pub mod payload;
pub mod send_message;
pub mod side_events;
