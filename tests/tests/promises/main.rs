//! What the services promise: a module for each kind of promise, named as in `cargo test outages::`.
//!
//! All in one program. Each of several would be linked by itself, and would wait for the slowest test of the one before.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "clippy does not see that helpers of tests are tests"
)]

mod acks;
mod agreement;
mod balancer;
mod bounds;
mod changes;
mod clients;
mod cluster;
mod compose;
mod contract;
mod data_life;
mod dead_letters;
mod documents;
mod feed;
mod foreign_records;
mod foreign_rows;
mod full_disk;
mod fuzz;
mod harness;
mod healing;
mod hostile;
mod idempotence;
mod inbox;
mod kubernetes;
mod layering;
mod limits;
mod log_faults;
mod lost_sessions;
mod migrations;
mod observe;
mod openapi;
mod order;
mod outages;
mod ownership;
mod pages;
mod plans;
mod pooler;
mod power;
mod progress;
mod resume;
mod rights;
mod roles;
mod runbooks;
mod search;
mod settings;
mod standstill;
mod stopping;
mod strangers;
mod surroundings;
mod systemd;
mod to_cluster;
mod up;
mod visitors;

/// A file that nobody names is not compiled, and its tests are not missed.
#[test]
fn every_file_beside_this_one_is_a_module_of_it() {
    let folder = tests::workspace().join("tests/tests/promises");
    let declared = include_str!("main.rs");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(name == "main" || declared.contains(&format!("\nmod {name};\n")), "{name}");
    }
}
