//! What is stored reaches those who are connected, in order.

pub mod audience;
pub mod feed;
pub mod heard;
pub mod inboxes;
pub mod missed_fates;
pub mod positions;
pub mod recovery;
pub mod ring;
pub mod rooms;
pub mod stored_sessions;
pub mod task;
