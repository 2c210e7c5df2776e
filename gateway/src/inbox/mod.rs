//! What agents see of all sessions: their lists, and which of them an AI answers.

pub mod entry;
pub mod lists;
pub mod updates;
