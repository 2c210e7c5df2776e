//! The gateway's command line.

use clap::{Parser, Subcommand};
use gateway::{config, ready, serve};
use shared::lifecycle::stop_on_signal;

/// Speaks Socket.IO and HTTP with visitors and agents.
///
/// Without a command it runs until it is stopped.
#[derive(Parser)]
#[command(version, after_long_help = config::help(), after_help = config::help())]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Asks the gateway that runs here whether it is ready; exit status 0 if it is.
    Health,
}

// One thread: an echo costs half of what it costs on several, and two gateways use two cores.
#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = config::from_environment()?;
    match arguments.command {
        None => {
            let listeners = serve::bind(&config.host, config.port).await?;
            for listener in &listeners {
                tracing::info!("listening on http://{}", listener.local_addr()?);
            }
            gateway::run(config, listeners, stop_on_signal()?).await
        }
        Some(Command::Health) => ready::ask(&config.host, config.port).await,
    }
}
