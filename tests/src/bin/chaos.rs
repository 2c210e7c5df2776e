//! `cargo chaos`: see [`tests::chaos`].

use std::process::ExitCode;

use clap::Parser;
use tests::chaos::{Arguments, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    run(Arguments::parse()).await
}
