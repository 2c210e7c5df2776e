//! What operators ask for on the command line.

pub mod dead_letters;
pub mod sessions;
