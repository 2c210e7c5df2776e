//! The index that `SEARCH=on` needs: made while messages are stored, by the role that owns the tables.
//!
//! It is no migration: it is wanted where a setting says so, and what is made beside others at work cannot be part of
//! a transaction. What was broken off leaves an index that is kept up to date and never used: that goes first.

pub mod index;
pub mod keeper;
