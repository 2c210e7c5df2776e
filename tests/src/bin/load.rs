//! `cargo load`: see [`tests::load`].

use std::process::ExitCode;

use clap::Parser;
use tests::load::{Arguments, run};

// One thread, as the gateway: what the generator takes is taken from what it measures.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    run(Arguments::parse()).await
}
