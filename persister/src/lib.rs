//! The persister: reads requests from the log in order, stores them in Postgres, announces them.
//!
//! One record's way: [`reader`] takes it from the log, [`batch`] decodes it with its neighbours, [`batch::fold`]
//! decides what sessions become, [`store::commit`] stores them with the offsets in one statement, [`announcer`] tells the gateways. The
//! loop around them is [`worker`]; [`ownership`] says for which partitions it runs.

pub mod announcer;
pub mod batch;
pub mod commands;
pub mod config;
pub mod lag;
pub mod log_identity;
pub mod metrics;
pub mod migrate;
pub mod ops;
pub mod ownership;
pub mod progress;
pub mod read_marks;
pub mod reader;
pub mod readiness;
pub mod retention;
mod run;
pub mod search;
pub mod store;
pub mod worker;

pub use run::run;
