//! Programs that read the feed of all sessions all along. Whenever its connection ends, each goes on behind the last `id`
//! on the next gateway. At the end each was told of everything that is stored, in each session in its order, and of
//! nothing else.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use reqwest::{Response, StatusCode};
use serde_json::Value;
use shared::ids::SessionId;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::broken::{Broken, Promise};
use super::events::{Event, Events};
use super::ledger::Shown;
use super::random::hash;
use super::world::{Leave, World};

/// With it a program that comes back says how far it was.
const LAST_EVENT_ID: &str = "last-event-id";
/// From here on all that is stored must be told: before anybody talks.
const BEGINS_WITHIN: Duration = Duration::from_secs(20);
const CONNECTS_WITHIN: Duration = Duration::from_secs(3);
/// Something comes every 15 s; a gateway may be frozen for 10 s.
const SILENT_AT_MOST: Duration = Duration::from_secs(30);
/// Pause before another try to connect.
const AGAIN: Duration = Duration::from_millis(300);
const LOOK: Duration = Duration::from_millis(20);
/// Sessions of a feed whose breakages are told one by one.
const TOLD: usize = 5;

const STORED: &str = r#"
    SELECT s."sessionId", m."id", m."sender", m."content"
    FROM "Message" m JOIN "ChatSession" s ON s."id" = m."chatSessionId"
    WHERE m."logEpoch" IS NOT NULL ORDER BY m."seq""#;

/// What one program was told.
#[derive(Debug)]
pub(super) struct Feed {
    name: String,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    sessions: HashMap<String, Telling>,
    /// Digests of sessions that ended.
    erased: HashSet<String>,
    has_begun: bool,
    messages: u64,
    repeats: u64,
    returns: u64,
    resets: u64,
}

/// What was told of a session.
#[derive(Debug, Default)]
struct Telling {
    is_opened: bool,
    /// Whether something that was said in it came before it.
    is_early: bool,
    /// Each message once, in the order in which they were told first.
    order: Vec<Line>,
    known: HashSet<u64>,
}

/// A message: its id, and a hash of all that must be told as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    id: String,
    hash: u64,
}

/// Reads for one feed.
struct Reader {
    world: Arc<World>,
    feed: Arc<Feed>,
    /// Which gateway, counted without end.
    turn: usize,
    /// The last `id`.
    last: Option<String>,
    leave: watch::Receiver<Leave>,
}

/// Lets programs read; they do until this is dropped.
pub(super) async fn enter(world: &Arc<World>) -> Result<JoinSet<()>> {
    let mut reading = JoinSet::new();
    for number in 0..usize::from(world.arguments.feeds) {
        let feed = Arc::new(Feed { name: format!("feed{number}"), told: Mutex::default() });
        world.add_feed(&feed);
        let (world, leave) = (Arc::clone(world), world.leave.subscribe());
        reading.spawn(Reader { world, feed, turn: number, last: None, leave }.read());
    }
    let begun = async {
        while !world.feeds().iter().all(|feed| feed.told().has_begun) {
            sleep(LOOK).await;
        }
    };
    timeout(BEGINS_WITHIN, begun).await.context("a feed does not begin")?;
    Ok(reading)
}

impl Reader {
    async fn read(mut self) {
        loop {
            let pause = match self.visit().await {
                Ok(away) => away,
                Err(error) => match error.downcast::<Broken>() {
                    Ok(broken) => return self.world.break_promise(broken),
                    Err(_) => AGAIN,
                },
            };
            sleep(pause).await;
            self.turn += 1;
        }
    }

    /// Reads until the connection ends, or until it is to be away for so long.
    async fn visit(&mut self) -> Result<Duration> {
        self.leave.mark_unchanged();
        let mut answer = self.connect().await?;
        let mut events = Events::default();
        loop {
            tokio::select! {
                part = answer.chunk() => {
                    let part = part?.context("the end")?;
                    for event in events.read(&part) {
                        self.feed.hear(&event?)?;
                    }
                    self.last = events.last_id().or(self.last.take());
                }
                _ = self.leave.changed() => {
                    let leave = *self.leave.borrow_and_update();
                    if let Some(away) = leave.concerns(&self.feed.name) {
                        return Ok(away);
                    }
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<Response> {
        let gateways = self.world.stack.gateways();
        let url = gateways[self.turn % gateways.len()].url("/api/events");
        let client = reqwest::Client::builder().connect_timeout(CONNECTS_WITHIN);
        let mut request = client.read_timeout(SILENT_AT_MOST).build()?.get(url);
        if let Some(last) = &self.last {
            request = request.header(LAST_EVENT_ID, last);
        }
        let answer = request.send().await?;
        match answer.status() {
            StatusCode::OK if self.last.is_some() => self.feed.told().returns += 1,
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                self.world.tally.refused(&format!("feed {}", answer.status().as_u16()));
                bail!("not now")
            }
            status => {
                let text = format!("{} is answered with {status}", self.feed.name);
                bail!(Broken::new(Promise::Contract, text))
            }
        }
        Ok(answer)
    }
}

impl Feed {
    fn hear(&self, Event { name, data }: &Event) -> Result<(), Broken> {
        let session = data["sessionId"].as_str();
        let mut told = self.told();
        match (name.as_str(), session, Shown::read(&data["message"])) {
            ("message", Some(session), Some(shown)) => told.hear_message(session, &shown),
            ("session", Some(session), _) => told.session(session).is_opened = true,
            ("erased", ..) => told.hear_end(&data["digest"]),
            ("reset", ..) => told.resets += 1,
            ("ready", ..) => told.has_begun = true,
            ("session-updated", ..) => {}
            _ => {
                let text = format!("{} was told {name}: {data}", self.name);
                return Err(Broken::new(Promise::Contract, text));
            }
        }
        Ok(())
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong with what it was told of a session.
    fn judge(&self, session: &str, stored: &[Line]) -> Option<Broken> {
        let told = self.told();
        let telling = told.sessions.get(session);
        let order = telling.map_or(&[][..], |telling| &telling.order);
        let wrong = if order != stored {
            difference(order, stored)
        } else if telling.is_some_and(|it| it.is_early || !it.is_opened) {
            "what was said in it came before it".to_owned()
        } else {
            return None;
        };
        Some(self.broken(session, &wrong))
    }

    fn broken(&self, session: &str, wrong: &str) -> Broken {
        Broken::new(Promise::Fed, format!("{}, session {session}: {wrong}", self.name))
    }
}

impl Told {
    fn session(&mut self, session: &str) -> &mut Telling {
        self.sessions.entry(session.to_owned()).or_default()
    }

    fn hear_message(&mut self, session: &str, shown: &Shown) {
        let line = Line::of(shown.id, shown.sender, shown.content);
        let telling = self.session(session);
        telling.is_early |= !telling.is_opened;
        let is_new = telling.known.insert(line.hash);
        if is_new {
            telling.order.push(line);
        }
        self.messages += u64::from(is_new);
        self.repeats += u64::from(!is_new);
    }

    fn hear_end(&mut self, digest: &Value) {
        self.erased.extend(digest.as_str().map(str::to_owned));
    }
}

impl Line {
    fn of(id: &str, sender: &str, content: &str) -> Self {
        Self { id: id.to_owned(), hash: hash(&format!("{id} {sender} {content}")) }
    }
}

impl fmt::Display for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told { messages, repeats, returns, resets, .. } = &*self.told();
        write!(
            f,
            "{messages} messages, {repeats} again; came back {returns} times, was reset {resets} times"
        )
    }
}

/// Of two lists that are not the same.
fn difference(told: &[Line], stored: &[Line]) -> String {
    let hashes = |lines: &[Line]| lines.iter().map(|line| line.hash).collect::<HashSet<_>>();
    let (is_told, is_stored) = (hashes(told), hashes(stored));
    let lacks: Vec<_> = stored.iter().filter(|line| !is_told.contains(&line.hash)).collect();
    let others: Vec<_> = told.iter().filter(|line| !is_stored.contains(&line.hash)).collect();
    if let Some(first) = lacks.first() {
        let (lacks, all) = (lacks.len(), stored.len());
        return format!("{lacks} of {all} were not told, {} the first", first.id);
    }
    if let Some(first) = others.first() {
        return format!("{} were told that are not stored, {} the first", others.len(), first.id);
    }
    let early = told.iter().zip(stored).find(|(told, stored)| told != stored);
    let (told, stored) = early.map_or(("", ""), |(told, stored)| (&told.id, &stored.id));
    format!("{told} was told before {stored}, which is stored before it")
}

/// What programs were told against what is stored, once all is quiet.
pub(super) async fn judge(world: &World, pool: &PgPool) -> Result<Vec<Broken>> {
    let stored = stored(pool).await?;
    let erased = world.erased();
    let gone: HashSet<_> = erased.iter().cloned().chain(world.deleted()).collect();
    let mut broken = Vec::new();
    for feed in world.feeds() {
        let told: Vec<_> = feed.told().sessions.keys().cloned().collect();
        let sessions: HashSet<_> = told.iter().chain(stored.keys()).collect();
        let here = sessions.into_iter().filter(|session| !gone.contains(*session));
        let lines = |session: &String| stored.get(session).map_or(&[][..], Vec::as_slice);
        let wrong = here.filter_map(|session| feed.judge(session, lines(session)));
        broken.extend(wrong.take(TOLD));
        broken.extend(unended(&feed, &erased)?.into_iter().take(TOLD));
    }
    Ok(broken)
}

/// Sessions of whose end a feed was not told.
fn unended(feed: &Feed, erased: &[String]) -> Result<Vec<Broken>> {
    let told = feed.told();
    let mut broken = Vec::new();
    for session in erased {
        let digest = SessionId::parse(session).ok().context("a session's id")?.digest();
        if !told.erased.contains(&digest.to_string()) {
            broken.push(feed.broken(session, "its end was not told"));
        }
    }
    Ok(broken)
}

/// What came through the log, by session, in its order.
async fn stored(pool: &PgPool) -> sqlx::Result<HashMap<String, Vec<Line>>> {
    let mut rows = sqlx::query_as::<_, (String, String, String, String)>(STORED).fetch(pool);
    let mut stored: HashMap<String, Vec<Line>> = HashMap::new();
    while let Some((session, id, sender, content)) = rows.try_next().await? {
        stored.entry(session).or_default().push(Line::of(&id, &sender, &content));
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(id: &str) -> Event {
        let message = json!({ "id": id, "sender": "user", "content": "x" });
        Event { name: "message".to_owned(), data: json!({ "sessionId": "s", "message": message }) }
    }

    fn opened() -> Event {
        Event { name: "session".to_owned(), data: json!({ "sessionId": "s" }) }
    }

    fn told(events: &[Event]) -> Feed {
        let feed = Feed { name: "feed".to_owned(), told: Mutex::default() };
        for event in events {
            feed.hear(event).unwrap();
        }
        feed
    }

    fn wrong(events: &[Event], stored: &[&str]) -> Option<String> {
        let stored: Vec<_> = stored.iter().map(|id| Line::of(id, "user", "x")).collect();
        told(events).judge("s", &stored).map(|broken| broken.text)
    }

    #[test]
    fn what_is_told_again_is_no_fault_and_all_else_is() {
        let [one, two] = ["1", "2"].map(said);
        let again = [opened(), one.clone(), two.clone(), one.clone(), opened(), two.clone()];
        assert_eq!(wrong(&again, &["1", "2"]), None);
        let text = |events: &[Event], stored| wrong(events, stored).unwrap();
        assert!(text(&again, &["1", "2", "3"]).contains("1 of 3 were not told, 3 the first"));
        assert!(text(&again, &["1"]).contains("1 were told that are not stored, 2 the first"));
        assert!(text(&again, &["2", "1"]).contains("1 was told before 2"));
        assert!(text(&[one.clone(), opened()], &["1"]).contains("came before it"));
        assert!(text(&[], &["1"]).contains("1 of 1"));
        assert!(told(&[]).hear(&Event { name: "x".to_owned(), data: Value::Null }).is_err());
    }
}
