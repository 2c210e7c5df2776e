//! The gateway's command line.

use clap::{Parser, Subcommand};
use gateway::access::token::TokenRole;
use gateway::config;
use gateway::http::{ops, readiness};
use gateway::transport::serve;
use shared::lifecycle::stop_on_signal;
use shared::settings::Span;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Prints a token for an agent or a program, signed with the first of `JWT_SECRET`.
    Token {
        /// Who it is for.
        #[arg(long)]
        sub: String,
        /// How long it holds: 30s, 15m, 12h, 7d.
        #[arg(long)]
        ttl: Span,
        /// What it allows.
        #[arg(long, value_enum, default_value_t = TokenRole::Admin)]
        role: TokenRole,
    },
    /// Asks the gateway that runs here whether it serves, whatever it lacks; exit status 0 if it does.
    Health,
}

// One thread: an echo costs half of what it costs on several, and two gateways use two cores.
#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", shared::causes::told(error.as_ref()));
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = config::from_environment()?;
    match arguments.command {
        None => {
            let listeners = serve::bind(&config.host, config.port).await?;
            if config.keys.is_empty() {
                tracing::warn!("open mode: everybody who connects may do everything");
            }
            for listener in &listeners {
                tracing::info!("listening on http://{}", listener.local_addr()?);
            }
            let ops = ops::bind(config.ops_address).await?;
            gateway::run(config, listeners, ops, stop_on_signal()?).await
        }
        Some(Command::Token { sub, ttl, role }) => {
            println!("{}", config.keys.sign(&sub, role, ttl.0)?);
            Ok(())
        }
        Some(Command::Health) => readiness::ask(&config.host, config.port).await,
    }
}
