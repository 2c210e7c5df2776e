//! A gateway is stopped and started again with clients on it, as by a redeploy: how soon all are back in their
//! sessions, and what that takes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Stack;
use crate::socket_client::SocketClient;

use super::account::Name;
use super::arguments::Redeploy;
use super::figures::{Figures, Unit, float, histogram};
use super::idle;
use super::talker::init;
use super::target::{Target, servers};
use super::usage::{Servers, generator};

/// Sessions that are opened at a time.
const OPEN_AT_ONCE: usize = 64;
/// Everything that was said is stored and shown meanwhile.
const SETTLES: Duration = Duration::from_secs(2);
/// The pauses of a client of Socket.IO before it connects again, unless it is told others: so long at first, then
/// twice as long, each up to half longer or shorter.
const FIRST_PAUSE: f64 = 1.0;
const LONGEST_PAUSE: f64 = 5.0;
/// And its wait for an answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// Longest wait for the last of them.
const BACK_WITHIN: Duration = Duration::from_mins(3);

/// A client in a session of its own, in which it said something.
struct Visitor {
    number: usize,
    client: SocketClient,
    session: String,
    /// The last message that it has, where it tells.
    after: Option<String>,
}

/// A client that is in its session again.
struct Back {
    at: Instant,
    /// How often it had to try.
    tries: u32,
    _client: SocketClient,
}

/// Stops the gateway, starts it at once when it is gone, and waits for everybody.
pub(super) async fn measure(target: &Target, redeploy: &Redeploy) -> Result<Figures> {
    let stack = target.stack.as_ref().context("only a gateway of ours can be stopped")?;
    ensure!(stack.gateways().len() == 1, "of several gateways, clients would go to another one");
    let server = target.addresses[0];
    let visitors: Vec<_> = stream::iter(0..redeploy.connections)
        .map(|number| Visitor::begin(server, number))
        .buffer_unordered(OPEN_AT_ONCE)
        .try_collect()
        .await
        .context("the sessions cannot be opened")?;
    println!("  {} clients are in their sessions", visitors.len());
    let mut clients = JoinSet::new();
    for visitor in visitors {
        clients.spawn_local(visitor.come_back(server));
    }
    sleep(SETTLES).await;
    restart(stack, clients).await
}

async fn restart(stack: &Stack, mut clients: JoinSet<Result<Back>>) -> Result<Figures> {
    let gateway = stack.gateway(0);
    let (others, count) = (all_but_gateways(stack), clients.len() as u64);
    let (used, generated, asked) = (others.used()?, generator()?, Instant::now());
    gateway.terminate().await;
    let gone = asked.elapsed();
    gateway.spawn();
    let (mut times, mut tries) = (histogram(), 0);
    let _back = timeout(BACK_WITHIN, all_back(&mut clients, asked, &mut times, &mut tries))
        .await
        .with_context(|| format!("{} of {count} clients did not come back", clients.len()))??;
    let mut figures = Figures::default();
    figures.add("gateway gone after", Unit::Seconds, gone.as_secs_f64());
    figures.latency("clients back", &times);
    figures.add("tries of a client", Unit::Ratio, float(tries) / float(count));
    let each = |time: Duration| time.as_secs_f64() * 1e6 / float(count);
    figures.add("processor, gateway", Unit::Micros, each(gateway.cpu_time()));
    let mut rest = Figures::default();
    others.used()?.add_since(&used, count, &mut rest);
    figures.extend(rest.without(&["processor, all servers", "processor, generator"]));
    let generated = generator()?.saturating_sub(generated);
    figures.add("processor, generator", Unit::Micros, each(generated));
    let mib = float(gateway.resident_bytes()) / 1024.0 / 1024.0;
    figures.add("memory, gateway", Unit::Mib, mib);
    Ok(figures)
}

/// Keeps everybody until the last one is back.
async fn all_back(
    clients: &mut JoinSet<Result<Back>>,
    since: Instant,
    times: &mut Histogram<u64>,
    tries: &mut u64,
) -> Result<Vec<Back>> {
    let mut all = Vec::with_capacity(clients.len());
    while let Some(back) = clients.join_next().await {
        let back = back??;
        let took = u64::try_from(back.at.duration_since(since).as_micros())?;
        times.saturating_record(took);
        *tries += u64::from(back.tries);
        all.push(back);
    }
    Ok(all)
}

fn all_but_gateways(stack: &Stack) -> Servers {
    let mut servers = servers(stack);
    servers.0.retain(|server| server.name != "gateway");
    servers
}

impl Visitor {
    /// Opens a session and says something; every other client will tell up to where it has it.
    async fn begin(server: SocketAddr, number: usize) -> Result<Self> {
        let mut client = connect(server, number).await?;
        let session = init(&mut client, None).await?;
        let content = Name { sender: number, number: 0 }.content();
        let message = json!({"sessionId": session, "content": content});
        client.emit(1, "user_message", message).await?;
        let id = loop {
            let text = client.next().await?;
            if let Some(ack) = text.strip_prefix("431") {
                let ack: Value = serde_json::from_str(ack)?;
                break ack[0]["id"].as_str().with_context(|| format!("no id: {ack}"))?.to_owned();
            }
        };
        Ok(Self { number, client, session, after: number.is_multiple_of(2).then_some(id) })
    }

    /// Waits until the connection ends, then tries as a stock client does until it is in its session again.
    async fn come_back(mut self, server: SocketAddr) -> Result<Back> {
        while self.client.next().await.is_ok() {}
        let mut tries = 0;
        loop {
            sleep(pause(self.number, tries)).await;
            tries += 1;
            if let Ok(Ok((client, answer))) = timeout(ANSWERS_WITHIN, self.again(server)).await {
                if answer["error"].is_object() {
                    continue;
                }
                self.check(&answer)?;
                return Ok(Back { at: Instant::now(), tries, _client: client });
            }
        }
    }

    async fn again(&self, server: SocketAddr) -> Result<(SocketClient, Value)> {
        let mut client = connect(server, self.number).await?;
        let Self { session, after, .. } = self;
        let payload = match after {
            Some(after) => json!({"sessionId": session, "after": after}),
            None => json!({"sessionId": session}),
        };
        client.emit(0, "init_session", payload).await?;
        let text = client.next().await?;
        let ack = text.strip_prefix("430").with_context(|| format!("no answer: {text}"))?;
        let answer: [Value; 1] = serde_json::from_str(ack)?;
        let [answer] = answer;
        Ok((client, answer))
    }

    fn check(&self, answer: &Value) -> Result<()> {
        let is_whole = answer["sessionId"] == self.session.as_str()
            && answer["resumed"] == true
            && answer["messages"].as_array().is_none_or(Vec::is_empty)
            && answer["reset"] != true;
        if !is_whole {
            bail!("a client came back to something else: {answer}");
        }
        Ok(())
    }
}

async fn connect(server: SocketAddr, number: usize) -> Result<SocketClient> {
    SocketClient::connect_from(server, idle::address_of(server, number)).await
}

/// How long a client waits before a try: the same in every run, and spread evenly.
fn pause(number: usize, tries: u32) -> Duration {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let nth = float(number as u64) + 7_919.0 * f64::from(tries);
    let factor = 0.5 + (nth * GOLDEN).fract();
    let doubled = FIRST_PAUSE * 2_f64.powi(i32::try_from(tries.min(3)).unwrap_or_default());
    Duration::from_secs_f64((doubled * factor).min(LONGEST_PAUSE))
}
