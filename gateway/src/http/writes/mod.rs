//! What programs do to a session: everything takes its way through the log, but that they type.

pub mod change_session;
pub mod erase_session;
pub mod post_message;
