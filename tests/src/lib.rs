//! The harness: every test has a stack of its own, made of real servers and the built services.
//!
//! ```no_run
//! # async fn example() {
//! let stack = tests::Stack::builder().persisters(2).start().await;
//! stack.persister(0).kill();
//! let answer = stack.http().get(stack.url("/health")).send().await;
//! # }
//! ```
//!
//! Nothing has to be prepared: servers are found or fetched, Postgres is shared between test
//! processes, and nothing is left running, also after a `kill -9`.
//!
//! The harness panics where it cannot do what a test asks for: that is what fails a test.

pub mod abuse;
mod acks;
pub mod announcing;
mod backend;
mod backups;
mod balancer;
mod binaries;
mod block_disk;
mod browser;
mod builder;
pub mod chaos;
mod clock_step;
mod conversation;
mod database;
mod disk;
#[cfg(feature = "docker")]
mod docker;
mod folder;
mod js_client;
pub mod load;
mod mount;
mod names;
mod node;
mod pooler;
pub mod power;
mod proxy;
mod room;
pub mod runbooks;
mod server;
mod service;
mod socket_client;
mod stack;
mod wait;

pub use acks::is_taken;
pub use backups::Backups;
pub use balancer::Balancer;
pub use binaries::{machine, program, workspace};
pub use block_disk::{BlockDisk, Switch};
pub use browser::{Browser, Shown, Tab};
pub use builder::{Builder, Link};
pub use clock_step::step_clock_back;
pub use conversation::Conversation;
pub use database::Database;
pub use disk::Disk;
pub use folder::copy_folder;
pub use js_client::{Client, JsClients, Talk, Visit, Visitor};
pub use node::{NodeRun, node, node_test, web_node};
pub use pooler::Pooler;
pub use proxy::Proxy;
pub use server::{Nats, Postgres, Process, Server};
pub use service::Service;
pub use stack::Stack;
pub use wait::eventually;
