//! `cargo abuse`: what a well-behaved visitor notices of one address that does its worst.
//!
//! Every attack comes from a process of its own and from another address of this machine, after the same
//! time without it: the ratio is what counts.

mod attack;
mod http;
mod neighbour;
mod websocket;

use std::env;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use tokio::time::{interval, sleep};

use crate::{Service, Stack};
use attack::Attack;

/// Pause between two looks at the gateway's memory.
const LOOK: Duration = Duration::from_millis(250);
/// A session of 500 messages of 8,000 characters that take four bytes each.
const HISTORY: &str = r#"
    WITH s AS (INSERT INTO "ChatSession" ("id", "sessionId") VALUES ('c' || md5($1), $1) RETURNING "id")
    INSERT INTO "Message" ("id", "sender", "content", "chatSessionId")
    SELECT 'm' || md5(s."id" || n), 'user', repeat(chr(128512), 8000), s."id" FROM s, generate_series(1, 500) n"#;

/// Attacks a gateway as one address can, and shows what its neighbours notice.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo abuse")]
pub struct Arguments {
    /// How long each attack lasts, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// How long is waited behind each before the memory is looked at, in seconds.
    #[arg(long, default_value_t = 60)]
    rest: u64,
    /// How often each attack is made, all of them in turn.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// `off` shows what it would be without limits.
    #[arg(long, default_value = "on")]
    limits: String,
    /// Only this attack; with `--server`, this process is the attacker.
    #[arg(long)]
    attack: Option<Attack>,
    /// The gateway to attack.
    #[arg(long, hide = true)]
    server: Option<SocketAddr>,
    /// A session with a long history.
    #[arg(long, hide = true, default_value = "")]
    session: String,
}

/// Runs it.
pub async fn run(arguments: Arguments) -> Result<()> {
    if let (Some(attack), Some(server)) = (arguments.attack, arguments.server) {
        return attack.run(server, &arguments.session).await;
    }
    let stack = Stack::builder().env("LIMITS", &arguments.limits).start().await;
    let session = shared::ids::SessionId::random().to_string();
    sqlx::query(HISTORY).bind(&session).execute(&stack.pool()).await?;
    let trial = Trial {
        gateway: stack.gateway(0),
        session,
        time: Duration::from_secs(arguments.seconds),
        rest: Duration::from_secs(arguments.rest),
    };
    println!(
        "limits {}; times in ms: p50 / p99, and the ratio to the time before",
        arguments.limits
    );
    for _ in 0..arguments.rounds {
        for attack in Attack::value_variants() {
            if arguments.attack.is_none_or(|only| only == *attack) {
                trial.make(*attack).await?;
            }
        }
    }
    anyhow::ensure!(trial.gateway.is_running(), "the gateway ended");
    Ok(())
}

/// What all attacks are made on.
struct Trial<'a> {
    gateway: &'a Service,
    session: String,
    time: Duration,
    rest: Duration,
}

impl Trial<'_> {
    async fn make(&self, attack: Attack) -> Result<()> {
        let gateway = self.gateway;
        let server = SocketAddr::from(([127, 0, 0, 1], gateway.port()));
        let before = neighbour::watch(server, self.time).await?;
        let (resident, cpu) = (gateway.resident_bytes(), gateway.cpu_time());
        let attacker = Attacker::start(attack, server, &self.session)?;
        let mut most = resident;
        let during = tokio::select! {
            during = neighbour::watch(server, self.time) => during,
            never = follow(gateway, &mut most) => match never {},
        };
        let cpu = gateway.cpu_time().saturating_sub(cpu).as_secs_f64() / self.time.as_secs_f64();
        println!("{}\n  before  {before}", attack.name());
        match during {
            Ok(during) => println!("  during  {during}\n  ratio   {}", during.ratio(&before)),
            Err(error) => println!("  during  a neighbour was disturbed: {error:#}"),
        }
        attacker.end()?;
        sleep(self.rest).await;
        println!(
            "  gateway {:.0} % of a processor; memory {} before, {} at most, {} after {} s\n",
            cpu * 100.0,
            mib(resident),
            mib(most),
            mib(gateway.resident_bytes()),
            self.rest.as_secs()
        );
        Ok(())
    }
}

/// Looks how much memory the gateway takes.
async fn follow(gateway: &Service, most: &mut u64) -> std::convert::Infallible {
    let mut looks = interval(LOOK);
    loop {
        looks.tick().await;
        *most = gateway.resident_bytes().max(*most);
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes / 1024 / 1024)
}

/// The process that attacks.
struct Attacker(Child);

impl Attacker {
    fn start(attack: Attack, server: SocketAddr, session: &str) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.args(["--attack", &attack.name(), "--server", &server.to_string()]);
        command.args(["--session", session]);
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
