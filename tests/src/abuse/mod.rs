//! `cargo abuse`: what a well-behaved visitor notices of one address that does its worst.
//!
//! Every attack comes from a process of its own and from another address of this machine, after the same
//! time without it: the ratio is what counts.

mod attack;
mod neighbour;

use std::env;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use crate::Stack;
use attack::Attack;

const ATTACKS: [Attack; 4] =
    [Attack::SlowHeaders, Attack::IdleSockets, Attack::NewSessions, Attack::Messages];

/// Attacks a gateway as one address can, and shows what its neighbours notice.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo abuse")]
pub struct Arguments {
    /// How long each attack lasts, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// `off` shows what it would be without limits.
    #[arg(long, default_value = "on")]
    limits: String,
    /// Only this attack; with `--server`, this process is the attacker.
    #[arg(long)]
    attack: Option<Attack>,
    /// The gateway to attack.
    #[arg(long, hide = true)]
    server: Option<SocketAddr>,
}

/// Runs it.
pub async fn run(arguments: Arguments) -> Result<()> {
    if let (Some(attack), Some(server)) = (arguments.attack, arguments.server) {
        return attack.run(server).await;
    }
    let stack = Stack::builder().env("LIMITS", &arguments.limits).start().await;
    println!(
        "limits {}; times in ms: p50 / p99, and the ratio to the time before",
        arguments.limits
    );
    for attack in
        ATTACKS.into_iter().filter(|attack| arguments.attack.is_none_or(|only| only == *attack))
    {
        compare(&stack, attack, Duration::from_secs(arguments.seconds)).await?;
    }
    anyhow::ensure!(stack.gateway(0).is_running(), "the gateway ended");
    Ok(())
}

async fn compare(stack: &Stack, attack: Attack, time: Duration) -> Result<()> {
    let gateway = stack.gateway(0);
    let server = SocketAddr::from(([127, 0, 0, 1], gateway.port()));
    let before = neighbour::watch(server, time).await?;
    let (resident, cpu) = (gateway.resident_bytes(), gateway.cpu_time());
    let attacker = Attacker::start(attack, server)?;
    let during = neighbour::watch(server, time).await;
    let grown = gateway.resident_bytes().saturating_sub(resident) / 1024;
    let cpu = gateway.cpu_time().saturating_sub(cpu).as_secs_f64() / time.as_secs_f64();
    println!("{}\n  before  {before}", attack.name());
    match during {
        Ok(during) => println!("  during  {during}\n  ratio   {}", during.ratio(&before)),
        Err(error) => println!("  during  a neighbour was disturbed: {error:#}"),
    }
    println!("  gateway {grown} KiB more, {:.0} % of a processor", cpu * 100.0);
    attacker.end()
}

/// The process that attacks.
struct Attacker(Child);

impl Attacker {
    fn start(attack: Attack, server: SocketAddr) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["--attack", attack.name(), "--server", &server.to_string()]);
        Ok(Self(command.stdout(Stdio::piped()).spawn().context("starting the attacker")?))
    }

    /// Ends it; what it did last is shown.
    fn end(mut self) -> Result<()> {
        self.0.kill()?;
        let said = std::mem::take(&mut self.0.stdout).map(std::io::read_to_string).transpose()?;
        self.0.wait()?;
        let said = said.unwrap_or_default();
        println!("  attack  {}\n", said.lines().last().unwrap_or("did nothing"));
        Ok(())
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.0.kill().ok();
    }
}
