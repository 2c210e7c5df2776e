//! What the services promise: a module for each kind of promise, named as in `cargo test outages::`.
//!
//! All in one program. Each of several would be linked by itself, and would wait for the slowest test of the one before.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "clippy does not see that helpers of tests are tests"
)]

mod balancer;
mod bounds;
mod clients;
mod cluster;
mod compose;
mod contract;
mod data_life;
mod dead_letters;
mod documents;
mod foreign_records;
mod full_disk;
mod fuzz;
mod harness;
mod healing;
mod hostile;
mod idempotence;
mod inbox;
mod kubernetes;
