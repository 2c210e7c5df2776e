//! The persister's command line.

use clap::{Parser, Subcommand};
use persister::commands::{dead_letters, sessions};
use persister::search::index;
use persister::{config, migrate, ops};
use shared::lifecycle::stop_on_signal;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stores what the log holds in Postgres, exactly once and in order, and announces it.
///
/// Without a command it migrates the database and runs until it is stopped.
#[derive(Parser)]
#[command(version, after_long_help = config::help(), after_help = config::help())]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Brings the database up to date.
    Migrate {
        #[command(subcommand)]
        command: Option<MigrateCommand>,
    },
    /// Looks after records that could not be stored.
    DeadLetters {
        #[command(subcommand)]
        command: dead_letters::Command,
    },
    /// Exports or erases what was said.
    Sessions {
        #[command(subcommand)]
        command: sessions::Command,
    },
    /// Asks the persister that runs here whether it serves, whatever it lacks; exit status 0 if it does.
    Health,
}

#[derive(Subcommand)]
enum MigrateCommand {
    /// Lists the migrations and which of them are applied.
    Status,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    match run(arguments).await {
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
            let ops = ops::bind(config.ops_address).await?;
            persister::run(config, ops, stop_on_signal()?).await
        }
        Some(Command::Migrate { command: None }) => {
            migrate::run_within(&config.database, migrate::COMMAND_WAITS).await?;
            if config.search {
                index::make_by_command(&config.database).await?;
            }
            Ok(())
        }
        Some(Command::Migrate { command: Some(MigrateCommand::Status) }) => {
            migrate::print_status(&config.database).await
        }
        Some(Command::DeadLetters { command }) => dead_letters::run(command, &config).await,
        Some(Command::Sessions { command }) => sessions::run(command, &config).await,
        Some(Command::Health) => Ok(shared::health::ask(config.ops_address).await?),
    }
}
