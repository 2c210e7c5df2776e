//! What clients were told and shown, against what is stored.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::Stack;
use crate::wait::must;

use super::account::{Account, MEMBERS, Name, SENDERS, Sent, Shown, Status};
use super::case::Case;
use super::client::Room;

/// Breakages that are told one by one, of each kind.
const TOLD: usize = 3;

const STORED: &str = r#"
    SELECT m."id", m."content"
    FROM "Message" m JOIN "ChatSession" s ON s."id" = m."chatSessionId"
    WHERE s."sessionId" = $1 ORDER BY m."seq""#;

/// What can be wrong after a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breakage {
    /// Acked `stored`, and missing.
    Stored,
    /// Acked `accepted`, and missing.
    Accepted,
    /// Shown to somebody, and missing.
    Shown,
    /// Stored twice, or shown twice to one client.
    Doubled,
    /// A sender's messages not in the order in which they were said, or shown in another order than stored.
    OutOfOrder,
    /// Stored, and not shown to a member of the session.
    Unseen,
    /// A session that was opened, and is missing.
    Session,
    /// Another id than in the ack, or an answer or a message that the contract does not allow.
    Contract,
    /// A client whose sends were not acked any more, or that was not shown everything in time.
    Stuck,
}

/// What a round found.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What was cut off.
    pub case: Case,
    /// Clients had talked for so long before the cut.
    pub load: Duration,
    /// From the start of the servers until every client's sends were acked again; nothing if one's were not.
    pub back: Option<Duration>,
    /// Messages sent before the cut, in all.
    pub sent: usize,
    /// Messages that were acked `stored` before the cut.
    pub stored: usize,
    /// Messages that were acked `accepted` before the cut.
    pub accepted: usize,
    /// Different messages that were shown to anybody before and after it.
    pub shown: usize,
    /// How long before the cut the oldest was acked of those that were acked `accepted` and are missing.
    pub oldest: Option<Duration>,
    /// How often each thing broke.
    pub broken: BTreeMap<Breakage, usize>,
    /// Sends that were answered with an error, and connections that ended, by the reason.
    pub refused: BTreeMap<String, usize>,
    /// Some of what broke.
    pub examples: Vec<String>,
}

/// From before the disk was cut off until nothing was left that could ack anything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blackout {
    pub(super) from: Instant,
    pub(super) until: Instant,
    /// Whether all machines were dead from then on: no client was told anything any more.
    pub(super) everything: bool,
}

impl Breakage {
    /// Every one, in the order of the table.
    pub(super) const ALL: [(Self, &str); 9] = [
        (Self::Stored, "stored gone"),
        (Self::Accepted, "accepted gone"),
        (Self::Shown, "shown gone"),
        (Self::Doubled, "doubled"),
        (Self::OutOfOrder, "out of order"),
        (Self::Unseen, "unseen"),
        (Self::Session, "sessions gone"),
        (Self::Contract, "odd"),
        (Self::Stuck, "stuck"),
    ];
}

impl Verdict {
    /// How often that broke.
    pub fn count(&self, breakage: Breakage) -> usize {
        self.broken.get(&breakage).copied().unwrap_or_default()
    }

    /// Whether everything that is promised held.
    pub fn held(&self) -> bool {
        self.back.is_some() && self.broken.is_empty()
    }

    fn new(case: Case) -> Self {
        Self {
            case,
            load: Duration::ZERO,
            back: None,
            sent: 0,
            stored: 0,
            accepted: 0,
            shown: 0,
            oldest: None,
            broken: BTreeMap::new(),
            refused: BTreeMap::new(),
            examples: Vec::new(),
        }
    }

    fn note(&mut self, breakage: Breakage, example: impl FnOnce() -> String) {
        let count = self.broken.entry(breakage).or_default();
        *count += 1;
        if *count <= TOLD {
            self.examples.push(format!("{breakage:?}: {}", example()));
        }
    }

    /// What one client sent: acked, and stored once under that id.
    fn sends(&mut self, sent: &[Sent], (stored, member): (&Stored, usize), blackout: &Blackout) {
        for (number, sent) in sent.iter().enumerate() {
            let name = Name { member, number };
            self.sent += usize::from(sent.first < blackout.from);
            let Some(ack) = &sent.ack else { continue };
            if ack.at < blackout.from {
                match ack.status {
                    Status::Stored => self.stored += 1,
                    Status::Accepted => self.accepted += 1,
                }
            }
            match stored.ids.get(&name) {
                Some(id) if *id == ack.id => {}
                Some(id) => self.note(Breakage::Contract, || {
                    format!("{name:?} was acked as {} and is stored as {id}", ack.id)
                }),
                None if ack.status == Status::Stored => {
                    self.note(Breakage::Stored, || format!("{name:?} {}", ack.id));
                }
                None if blackout.everything && blackout.covers(ack.at) => {}
                None => {
                    let age = blackout.from.saturating_duration_since(ack.at);
                    self.oldest = self.oldest.max(Some(age));
                    self.note(Breakage::Accepted, || {
                        format!("{name:?}, acked {age:.1?} before the cut")
                    });
                }
            }
        }
    }

    /// What one client was shown: what is stored, each once, in that order.
    fn views(&mut self, shown: &[Shown], stored: &Stored) {
        let mut seen = HashSet::new();
        let mut last = 0;
        for shown in shown {
            if !seen.insert(shown.id.as_str()) {
                self.note(Breakage::Doubled, || format!("{:?} was shown twice", shown.name));
                continue;
            }
            let Some(place) = stored.places.get(&shown.id).copied() else {
                self.note(Breakage::Shown, || format!("{:?} {}", shown.name, shown.id));
                continue;
            };
            if place < last {
                self.note(Breakage::OutOfOrder, || {
                    format!("{:?} was shown behind a later one", shown.name)
                });
            }
            last = last.max(place);
        }
        for (name, id) in stored.ids.iter().filter(|(_, id)| !seen.contains(id.as_str())) {
            self.note(Breakage::Unseen, || format!("{name:?} {id}"));
        }
    }

    /// A message that was said once the one before was acked stands behind it, and so do those that were emitted
    /// but once.
    fn order(&mut self, sent: &[Sent], (stored, member): (&Stored, usize)) {
        let mut said = None;
        let mut once = 0;
        let ours = stored.order.iter().filter(|name| name.member == member);
        for name in ours {
            let Some(message) = sent.get(name.number) else { continue };
            let acked = message.ack.as_ref().map(|ack| ack.at);
            let overtaken = said.is_some_and(|said| acked.is_some_and(|acked| acked < said));
            let is_once = message.emits == 1;
            if overtaken || is_once && name.number < once {
                self.note(Breakage::OutOfOrder, || {
                    format!("{name:?} is stored behind a later one")
                });
            }
            said = said.max(Some(message.first));
            once = once.max(if is_once { name.number } else { 0 });
        }
    }
}

impl Blackout {
    fn covers(&self, at: Instant) -> bool {
        (self.from..=self.until).contains(&at)
    }
}

/// A session's messages as they are stored.
struct Stored {
    ids: HashMap<Name, String>,
    places: HashMap<String, usize>,
    order: Vec<Name>,
}

/// Looks at every session.
pub(super) async fn judge(
    case: Case,
    stack: &Stack,
    rooms: &[Arc<Room>],
    blackout: &Blackout,
) -> Verdict {
    let mut verdict = Verdict::new(case);
    let pool = stack.pool();
    let mut shown = HashSet::new();
    for room in rooms {
        let stored = must(read(&pool, &room.session, &mut verdict).await, "reading what is stored");
        for member in 0..MEMBERS {
            let account = room.account(member);
            verdict.sends(&account.sent, (&stored, member), blackout);
            verdict.order(&account.sent, (&stored, member));
            verdict.views(&account.shown, &stored);
            verdict.rest(&account, &room.session, member);
            shown.extend(account.shown.iter().map(|shown| shown.id.clone()));
        }
    }
    verdict.shown = shown.len();
    verdict
}

impl Verdict {
    fn rest(&mut self, account: &Account, session: &str, member: usize) {
        for odd in &account.odd {
            self.note(Breakage::Contract, || odd.clone());
        }
        if !account.complete {
            let open = account.sent.iter().filter(|sent| sent.ack.is_none()).count();
            self.note(Breakage::Stuck, || {
                format!("{} of {session}: {open} sends without an ack", SENDERS[member])
            });
        }
        for reason in &account.refused {
            *self.refused.entry(reason.clone()).or_default() += 1;
        }
    }
}

async fn read(pool: &PgPool, session: &str, verdict: &mut Verdict) -> sqlx::Result<Stored> {
    let known = r#"SELECT EXISTS (SELECT FROM "ChatSession" WHERE "sessionId" = $1)"#;
    if !sqlx::query_scalar::<_, bool>(known).bind(session).fetch_one(pool).await? {
        verdict.note(Breakage::Session, || session.to_owned());
    }
    let rows: Vec<(String, String)> = sqlx::query_as(STORED).bind(session).fetch_all(pool).await?;
    let mut stored = Stored { ids: HashMap::new(), places: HashMap::new(), order: Vec::new() };
    for (place, (id, content)) in rows.into_iter().enumerate() {
        let Some(name) = Name::of(&content) else {
            verdict.note(Breakage::Contract, || format!("{id} is stored and nobody sent it"));
            continue;
        };
        if stored.ids.insert(name, id.clone()).is_some() {
            verdict.note(Breakage::Doubled, || format!("{name:?} is stored twice"));
        }
        stored.places.insert(id, place);
        stored.order.push(name);
    }
    Ok(stored)
}
