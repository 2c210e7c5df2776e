//! `cargo abuse`: see [`tests::abuse`].

use clap::Parser;
use tests::abuse::{Arguments, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    run(Arguments::parse()).await
}
