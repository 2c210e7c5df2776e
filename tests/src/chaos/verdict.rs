//! Whether every promise held: what is stored against what was acked and shown, once all is quiet.

use std::collections::HashMap;
use std::fs;

use anyhow::Result;
use serde_json::Value;
use sqlx::PgPool;

use crate::Service;

use super::broken::{Broken, Promise};
use super::erasures;
use super::feeds;
use super::fill;
use super::ledger::{Room, Sent, content};
use super::world::World;

/// Breakages of one room that are told one by one.
const TOLD: usize = 5;

const STORED: &str = r#"
    SELECT m."id", m."sender", m."content", m."isAI"
    FROM "Message" m JOIN "ChatSession" s ON s."id" = m."chatSessionId"
    WHERE s."sessionId" = $1 ORDER BY m."seq""#;

/// A stored message.
#[derive(Debug, sqlx::FromRow)]
struct Row {
    id: String,
    sender: String,
    content: String,
    #[sqlx(rename = "isAI")]
    is_ai: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Messages in the database.
    pub(super) stored: u64,
    /// Dead letters that we did not put into the log ourselves.
    pub(super) dead: i64,
    pub(super) broken: Vec<Broken>,
}

/// Looks at every room.
pub(super) async fn judge(world: &World) -> Result<Verdict> {
    let pool = world.stack.pool();
    let mut verdict = Verdict::default();
    for (number, room) in world.rooms().into_iter().enumerate() {
        let rows: Vec<Row> = sqlx::query_as(STORED).bind(&room.session).fetch_all(&pool).await?;
        verdict.stored += rows.len() as u64;
        verdict.broken.extend(judge_room(&room, &rows).into_iter().take(TOLD));
        let gateway = &world.stack.gateways()[number % world.stack.gateways().len()];
        verdict.broken.extend(judge_history(gateway, &room, &rows).await?);
    }
    verdict.foreign(world, &pool).await?;
    verdict.broken.extend(erasures::judge(world).await?.into_iter().take(TOLD));
    verdict.broken.extend(feeds::judge(world, &pool).await?);
    verdict.panics(world)?;
    Ok(verdict)
}

impl Verdict {
    /// Nothing else is stored, and nothing of ours was set aside.
    async fn foreign(&mut self, world: &World, pool: &PgPool) -> Result<()> {
        let all: i64 =
            sqlx::query_scalar(r#"SELECT count(*) FROM "Message""#).fetch_one(pool).await?;
        if all.unsigned_abs() != self.stored {
            let text = format!("{all} messages are stored, and {} in our sessions", self.stored);
            self.broken.push(Broken::new(Promise::NothingTwice, text));
        }
        let dead = r#"
            SELECT count(*) FROM "DeadLetter"
            WHERE NOT starts_with(encode("payload", 'escape'), $1) AND "subject" <> ALL ($2)"#;
        let mark = String::from_utf8_lossy(fill::MARK).into_owned();
        let foreign = world.foreign();
        self.dead = sqlx::query_scalar(dead).bind(mark).bind(foreign).fetch_one(pool).await?;
        if self.dead > 0 {
            let text = format!("{} requests were set aside as dead letters", self.dead);
            self.broken.push(Broken::new(Promise::Stored, text));
        }
        Ok(())
    }

    /// A panic that was survived is a bug all the same.
    fn panics(&mut self, world: &World) -> Result<()> {
        for file in fs::read_dir(world.stack.home.path())?.flatten() {
            let is_log = file.path().extension() == Some("log".as_ref());
            let log = if is_log { fs::read_to_string(file.path())? } else { String::new() };
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                let text = format!("{}: {line}", file.file_name().to_string_lossy());
                self.broken.push(Broken::new(Promise::Alive, text));
            }
        }
        Ok(())
    }
}

/// Whether REST answers what is stored.
async fn judge_history(gateway: &Service, room: &Room, rows: &[Row]) -> Result<Option<Broken>> {
    let url = gateway.url(&format!("/api/chats/{}", room.session));
    let answer = reqwest::get(url).await?.error_for_status()?.bytes().await?;
    let history: Vec<Value> = serde_json::from_slice(&answer)?;
    let told = history.iter().map(|message| (message["id"].as_str(), message["content"].as_str()));
    if told.eq(rows.iter().map(|row| (Some(row.id.as_str()), Some(row.content.as_str())))) {
        return Ok(None);
    }
    let text = format!("session {}: its history over REST is another one", room.session);
    Ok(Some(Broken::new(Promise::Content, text)))
}

fn judge_room(room: &Room, rows: &[Row]) -> Vec<Broken> {
    let (sent, order) = room.result();
    let by_offset: HashMap<&str, &Sent> =
        sent.iter().map(|sent| (sent.offset.as_str(), sent)).collect();
    let mut judge = Judge { room, broken: Vec::new() };
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (place, row) in rows.iter().enumerate() {
        let offset = row.content.split(' ').next().unwrap_or_default();
        let Some(sent) = by_offset.get(offset) else {
            judge.note(Promise::Content, &format!("{} is stored and nobody sent it", row.id));
            continue;
        };
        judge.row(row, sent);
        if places.insert(&sent.offset, place).is_some() {
            judge.note(Promise::NothingTwice, &format!("{offset} is stored twice"));
        }
    }
    for message in sent.iter().filter(|sent| sent.acked.is_some()) {
        if !places.contains_key(message.offset.as_str()) {
            judge.note(Promise::Stored, &format!("{} ({:?})", message.offset, message.id));
        }
    }
    judge.order(&sent, &places);
    let shown = order.iter().map(|index| sent[*index].id.as_deref());
    if !shown.eq(rows.iter().map(|row| Some(row.id.as_str()))) {
        let text = format!(
            "{} were shown and {} are stored, or in another order",
            order.len(),
            rows.len()
        );
        judge.note(Promise::SameForAll, &text);
    }
    judge.broken
}

struct Judge<'a> {
    room: &'a Room,
    broken: Vec<Broken>,
}

impl Judge<'_> {
    fn note(&mut self, promise: Promise, text: &str) {
        let text = format!("session {}: {text}", self.room.session);
        self.broken.push(Broken::new(promise, text));
    }

    fn row(&mut self, row: &Row, sent: &Sent) {
        if row.content != content(&sent.offset) || row.sender != sent.role.sender() || row.is_ai {
            self.note(Promise::Content, &format!("{} is stored as {row:?}", sent.offset));
        }
        if sent.id.as_ref() != Some(&row.id) {
            let text =
                format!("{} is stored as {} and was acked as {:?}", sent.offset, row.id, sent.id);
            self.note(Promise::OneId, &text);
        }
    }

    /// A group comes behind the groups before it; in a group those that were sent once keep their order.
    fn order(&mut self, sent: &[Sent], places: &HashMap<&str, usize>) {
        let mut last: HashMap<&str, (u64, usize, usize)> = HashMap::new();
        for message in sent {
            let Some(place) = places.get(message.offset.as_str()).copied() else { continue };
            let Some((group, highest, once)) = last.get(message.client.as_str()).copied() else {
                last.insert(&message.client, (message.group, place, place));
                continue;
            };
            let behind = if message.group > group { highest } else { once };
            let sent_once = message.attempts == 1;
            if place < behind && (message.group > group || sent_once) {
                self.note(
                    Promise::OrderOfSender,
                    &format!("{} stands before an earlier one", message.offset),
                );
            }
            let fresh = message.group > group;
            let once = if sent_once {
                place
            } else if fresh {
                0
            } else {
                once
            };
            last.insert(&message.client, (message.group, place.max(highest), once));
        }
    }
}
