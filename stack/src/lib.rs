//! Finds, fetches and runs the servers that the two services need: for `cargo up`, and for the tests.
//!
//! Nothing here is part of a deployment, and nothing here is asynchronous: it builds in seconds, so
//! that `cargo up` can show progress soon.

pub mod build;
pub mod child;
pub mod cluster;
pub mod fetch;
pub mod find;
pub mod launch;
pub mod lock;
pub mod machine;
pub mod nats;
pub mod npm;
pub mod port;
pub mod postgres;
pub mod prefix;
mod progress;
pub mod run_dir;
pub mod secret;
pub mod shared_postgres;
pub mod stats;
pub mod style;
pub mod tool;
pub mod user;
pub mod version;
pub mod wait;

pub use child::Child;
pub use machine::Machine;
pub use port::Port;
