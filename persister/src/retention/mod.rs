//! What goes, and when: old records of the log, what it holds of erased sessions, sessions in which nothing happens.

pub mod erased;
pub mod prune;
pub mod pruner;
pub mod trim;
