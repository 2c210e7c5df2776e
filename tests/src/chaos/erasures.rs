//! Sessions that are erased while both sides talk in them and everything breaks: nothing of them may be
//! left, and nobody may say anything in them any more. Some are deleted by SQL, of which the log knows
//! nothing: what it holds of them must not bring them back.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};
use shared::ids::SessionId;
use shared::log::{Log, StreamName};
use shared::partition::PartitionCount;
use shared::record::Record;
use shared::subjects;
use sqlx::PgPool;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::binaries::Binaries;
use crate::{Service, is_taken};

use super::broken::{Broken, Promise};
use super::client;
use super::random::Random;
use super::socket::{Packet, Socket, Way};
use super::world::{Phase, World, count};

/// Sessions of this kind at a time. The first is erased at the command line, the second deleted by SQL, the
/// others erased over HTTP.
const SLOTS: u64 = 4;
/// How long is talked before it is asked for the end, in milliseconds.
const TALKS_MS: (u64, u64) = (2_000, 12_000);
/// How long is talked on behind it.
const GOES_ON: Duration = Duration::from_secs(2);
/// Pause between two messages of one side.
const EVERY: Duration = Duration::from_millis(100);
/// Pause before another try of what failed.
const AGAIN: Duration = Duration::from_millis(300);
/// Longest wait for an answer; 5 s are promised.
const ANSWERS_WITHIN: Duration = Duration::from_secs(9);
/// The command waits for the persisters, and is asked again.
const COMMAND_WITHIN: Duration = Duration::from_secs(20);
/// What is said here and nowhere else.
const SECRET: &str = "a confession";

const DELETE_MESSAGES: &str = r#"
    DELETE FROM "Message" m USING "ChatSession" s
    WHERE s."id" = m."chatSessionId" AND s."sessionId" = ANY ($1)"#;
const DELETE_SESSIONS: &str = r#"DELETE FROM "ChatSession" WHERE "sessionId" = ANY ($1)"#;
const IS_REMEMBERED: &str = r#"SELECT EXISTS (SELECT FROM "ErasedSession" WHERE "digest" = sha256(convert_to($1, 'UTF8')))"#;
const FORGOTTEN: &str = r#"
    SELECT s FROM unnest($1::text[]) s WHERE NOT EXISTS (
        SELECT FROM "ErasedSession" WHERE "digest" = sha256(convert_to(s, 'UTF8'))
    )"#;

/// How a session is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Command,
    Sql,
    Http,
}

/// A session on its way to its end.
struct Doomed {
    world: Arc<World>,
    session: String,
    /// Whether its end was asked for, perhaps in vain.
    asked: AtomicBool,
    /// Whether nobody talks any more.
    over: AtomicBool,
}

/// Adds those who talk in such sessions.
pub(super) fn enter(world: &Arc<World>, slots: &mut JoinSet<()>) {
    // These runs are about acks, which an erasure takes away.
    if world.arguments.postgres_away.is_some() || world.arguments.restart.is_some() {
        return;
    }
    for number in 0..SLOTS {
        slots.spawn(slot(Arc::clone(world), number));
    }
}

async fn slot(world: Arc<World>, number: u64) {
    let mut random = Random::of(world.arguments.seed, &format!("erased{number}"));
    let mut turn = random.index(1_000);
    while *world.phase.borrow() == Phase::Talking {
        turn += 1;
        let Ok((session, _, socket)) = client::open(&world, turn).await else {
            sleep(AGAIN).await;
            continue;
        };
        let means = match number {
            0 => Means::Command,
            1 => Means::Sql,
            _ => Means::Http,
        };
        if means != Means::Sql {
            world.add_erased(&session);
        }
        let doomed = Doomed {
            world: Arc::clone(&world),
            session,
            asked: AtomicBool::default(),
            over: AtomicBool::default(),
        };
        let talks = random.between(TALKS_MS.0, TALKS_MS.1);
        tokio::join!(
            doomed.visitor(socket, turn),
            doomed.agent(turn),
            doomed.end(talks, means, turn)
        );
    }
}

impl Doomed {
    /// Says one thing after the other, on another connection where one is lost.
    async fn visitor(&self, mut socket: Socket, mut turn: usize) {
        while !self.over.load(Ordering::Relaxed) {
            sleep(EVERY).await;
            let said = timeout(ANSWERS_WITHIN, self.say(&mut socket)).await;
            if let Ok(Ok(answer)) = said {
                self.judge(answer["error"]["code"].as_str(), is_taken(&answer));
                continue;
            }
            turn += 1;
            match Way::Rust.connect(&self.world.stack, turn).await {
                Ok((_, another)) => socket = another,
                Err(_) => sleep(AGAIN).await,
            }
        }
    }

    async fn say(&self, socket: &mut Socket) -> Result<Value> {
        let message = json!({ "sessionId": self.session, "content": SECRET });
        let asked = socket.emit("user_message", message).await?;
        loop {
            match socket.next().await? {
                Packet::Ack(number, answer) if number == asked => return Ok(answer),
                _ => {}
            }
        }
    }

    /// Answers as a program does.
    async fn agent(&self, mut turn: usize) {
        while !self.over.load(Ordering::Relaxed) {
            sleep(EVERY).await;
            turn += 1;
            let Ok((status, code)) = answer(self.gateway(turn), &self.session).await else {
                continue;
            };
            self.judge(code.as_deref(), status == StatusCode::ACCEPTED);
        }
    }

    /// Whether a send may be answered so.
    fn judge(&self, code: Option<&str>, accepted: bool) {
        let asked = self.asked.load(Ordering::Relaxed);
        if accepted && asked {
            count(&self.world.tally.behind_an_end);
        }
        if code == Some("session_not_found") && !asked {
            let text = format!("session {} is unknown, and nobody erased it", self.session);
            self.world.break_promise(Broken::new(Promise::Contract, text));
        }
    }

    /// Asks for the end until it is taken; both sides talk on for a while.
    async fn end(&self, talks: Duration, means: Means, mut turn: usize) {
        let until = Instant::now() + talks;
        while Instant::now() < until && *self.world.phase.borrow() == Phase::Talking {
            sleep(AGAIN).await;
        }
        loop {
            turn += 1;
            let before = self.asked.swap(true, Ordering::Relaxed);
            let ended = match means {
                Means::Command => self.command().await,
                Means::Sql => Ok(self.delete_by_sql().await.unwrap_or(false)),
                Means::Http => self.delete(turn, before).await,
            };
            match ended {
                Ok(true) => break,
                Ok(false) => sleep(AGAIN).await,
                Err(broken) => {
                    self.world.break_promise(broken);
                    break;
                }
            }
        }
        sleep(GOES_ON).await;
        self.over.store(true, Ordering::Relaxed);
    }

    /// Whether the end is in the log; where it was asked for before, it may have been since then.
    async fn delete(&self, turn: usize, before: bool) -> Result<bool, Broken> {
        let url = self.gateway(turn).url(&format!("/api/chats/{}", self.session));
        let asked = reqwest::Client::new().delete(url).timeout(ANSWERS_WITHIN).send().await;
        match asked.map(|answer| answer.status()) {
            Ok(StatusCode::ACCEPTED) => Ok(true),
            Ok(StatusCode::NOT_FOUND) if before => Ok(true),
            Ok(StatusCode::NOT_FOUND) => {
                let text = format!("session {} is unknown and cannot be erased", self.session);
                Err(Broken::new(Promise::Contract, text))
            }
            _ => Ok(false),
        }
    }

    /// Whether it is deleted; not while it is not stored yet, nor where a message came between the two.
    async fn delete_by_sql(&self) -> Result<bool> {
        self.world.add_deleted(&self.session);
        let pool = self.world.stack.pool();
        if delete(&pool, std::slice::from_ref(&self.session)).await? > 0 {
            return Ok(true);
        }
        // Deleted already, after a restore.
        Ok(sqlx::query_scalar(IS_REMEMBERED).bind(&self.session).fetch_one(&pool).await?)
    }

    async fn command(&self) -> Result<bool, Broken> {
        let stack = &self.world.stack;
        let mut command = Command::new(Binaries::get().path("persister"));
        command.args(["sessions", "erase", &self.session]).env_clear().kill_on_drop(true);
        command.current_dir(std::env::temp_dir());
        command.env("DATABASE_URL", stack.database_url()).env("NATS_URL", stack.nats().url());
        let Ok(Ok(Output { status, stderr, .. })) = timeout(COMMAND_WITHIN, command.output()).await
        else {
            return Ok(false);
        };
        let gone = format!("there is no session {}", self.session);
        Ok(status.success() || String::from_utf8_lossy(&stderr).contains(&gone))
    }

    fn gateway(&self, turn: usize) -> &Service {
        let gateways = self.world.stack.gateways();
        &gateways[turn % gateways.len()]
    }
}

/// Deletes sessions as somebody would who knows only Prisma's tables; how many there were.
async fn delete(pool: &PgPool, sessions: &[String]) -> sqlx::Result<u64> {
    let mut transaction = pool.begin().await?;
    sqlx::query(DELETE_MESSAGES).bind(sessions).execute(&mut *transaction).await?;
    let deleted = sqlx::query(DELETE_SESSIONS).bind(sessions).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(deleted.rows_affected())
}

/// A dump from before a session was deleted by SQL has it still, or has it opened again by what the log holds, which
/// knows nothing of it: an operator who restores the dump deletes it again. What the database remembers stays gone
/// by itself.
pub(super) async fn delete_again(world: &World) {
    // Not through the pool's connections, which ended with the database that they were of.
    while delete_forgotten(&world.stack.pool(), &world.deleted()).await.is_err() {
        sleep(AGAIN).await;
    }
}

async fn delete_forgotten(pool: &PgPool, sessions: &[String]) -> sqlx::Result<u64> {
    let forgotten: Vec<String> =
        sqlx::query_scalar(FORGOTTEN).bind(sessions).fetch_all(pool).await?;
    delete(pool, &forgotten).await
}

/// Says something over HTTP; the status, and the code of the error.
async fn answer(gateway: &Service, session: &str) -> Result<(StatusCode, Option<String>)> {
    let url = gateway.url(&format!("/api/chats/{session}/messages"));
    let said = reqwest::Client::new().post(url).json(&json!({ "content": SECRET }));
    let answer = said.timeout(ANSWERS_WITHIN).send().await?;
    let status = answer.status();
    let problem: Value = answer.json().await?;
    Ok((status, problem["code"].as_str().map(str::to_owned)))
}

/// What is left of erased sessions, once all is quiet.
pub(super) async fn judge(world: &World) -> Result<Vec<Broken>> {
    let (erased, deleted) = (world.erased(), world.deleted());
    let sessions = [erased.clone(), deleted.clone()].concat();
    let mut broken = Vec::new();
    let left = r#"
        SELECT (SELECT count(*) FROM "ChatSession" WHERE "sessionId" = ANY ($1)),
               (SELECT count(*) FROM "Message" WHERE starts_with("content", $2)),
               (SELECT count(*) FROM "DeadLetter" WHERE split_part("subject", '.', 4) = ANY ($1))"#;
    let left: (i64, i64, i64) =
        sqlx::query_as(left).bind(&sessions).bind(SECRET).fetch_one(&world.stack.pool()).await?;
    if left != (0, 0, 0) {
        let text = format!("sessions, messages and dead letters in the database: {left:?}");
        broken.push(Broken::new(Promise::Erased, text));
    }
    let jetstream = async_nats::jetstream::new(world.stack.nats_client().await);
    let (log, partitions) = shared::log::find(&jetstream, &StreamName::default()).await?;
    for (number, session) in sessions.iter().enumerate() {
        // What is deleted by SQL stays in the log until it is trimmed.
        if erased.contains(session)
            && let Some(text) = left_in_log(&log, partitions, session).await?
        {
            broken.push(Broken::new(Promise::Erased, format!("session {session}: {text}")));
        }
        let gateways = world.stack.gateways();
        let (status, code) = answer(&gateways[number % gateways.len()], session).await?;
        if code.as_deref() != Some("session_not_found") {
            let text = format!("session {session}: a send is answered with {status} {code:?}");
            broken.push(Broken::new(Promise::Erased, text));
        }
    }
    Ok(broken)
}

/// What the log holds of a session beside the record that erased it.
async fn left_in_log(
    log: &Log,
    partitions: PartitionCount,
    session: &str,
) -> Result<Option<String>> {
    let id = SessionId::parse(session).ok().context("a session's id")?;
    let subject = subjects::request(partitions.partition_of(id), id);
    let Some(first) = log.first_record(&subject, 1).await? else { return Ok(None) };
    let last = log.last_record(&subject).await?;
    let is_alone = last.is_some_and(|last| last.sequence == first.sequence);
    let erases = matches!(Record::decode(&first.payload), Ok(Record::Erase(_)));
    let text = format!("the log holds more of it than its end, from {} on", first.sequence);
    ensure!(first.subject.as_str() == subject, "another subject");
    Ok((!is_alone || !erases).then_some(text))
}
