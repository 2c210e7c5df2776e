//! What those in a session tell each other beside the log: who types, and up to where each side has read. It may be
//! lost without harm.

pub mod read_marks;
pub mod typing;
