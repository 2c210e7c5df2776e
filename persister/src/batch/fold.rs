//! The pure step behind [`crate::batch`]: what a batch makes of the sessions that it says something about, in the
//! order of the log. The first claim counts, a message of an AI behind where that was switched off is refused, a
//! visitor's message opens a closed session again.
//!
//! What is known of the sessions is read before the statement that commits. Nobody else changes it in between and has
//! the statement count: it counts where the offsets are still the expected ones.

use std::collections::{BTreeMap, HashMap, HashSet};

use shared::announcement::Fate;
use shared::change::{Change, SessionState, Status};
use shared::ids::SessionId;
use shared::message::Sender;
use shared::partition::Partition;
use time::OffsetDateTime;

use crate::batch::{Batch, ChangeRow, LogPlace, MessageRow};

/// What Postgres has of what a batch is about.
#[derive(Debug, Default)]
pub struct Known {
    /// What sessions are that are stored.
    pub states: HashMap<SessionId, SessionState>,
    /// Messages that are stored, by their ids.
    pub messages: HashSet<String>,
    /// Changes that were decided, by their ids: whether they count.
    pub changes: HashMap<String, bool>,
    /// Messages that were refused: id, and when the log took them in microseconds since 1970.
    pub refused: HashSet<(String, i64)>,
}

/// What is to be stored of it.
#[derive(Debug, Default)]
pub struct Folded {
    /// Changes that are decided now, in log order.
    pub changes: Vec<Decided>,
    /// Messages of an AI that are refused now, by their sequences.
    pub refused: HashSet<u64>,
    /// What sessions become that are changed.
    pub states: BTreeMap<SessionId, Becoming>,
    /// What became of records that were decided before, or that are about no session.
    pub decided_before: HashMap<u64, Fate>,
}

/// What a session becomes.
#[derive(Debug, PartialEq)]
pub struct Becoming {
    pub partition: Partition,
    pub state: SessionState,
}

/// A change that is decided.
#[derive(Debug)]
pub struct Decided {
    /// Where the record stands that makes it.
    pub place: LogPlace,
    pub session: SessionId,
    /// Of a message that opens a closed session: the message's.
    pub id: String,
    pub change: Change,
    pub is_applied: bool,
}

/// A record that may matter.
#[derive(Clone, Copy)]
enum Row<'a> {
    Opening(LogPlace),
    Message(&'a MessageRow),
    Change(&'a ChangeRow),
}

impl Row<'_> {
    fn place(&self) -> LogPlace {
        match self {
            Self::Opening(place) => *place,
            Self::Message(row) => row.place,
            Self::Change(row) => row.place,
        }
    }
}

impl Folded {
    /// Whether everything is stored as it says.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.refused.is_empty()
    }

    /// Whether a message is to be stored.
    pub fn stores(&self, row: &MessageRow) -> bool {
        let sequence = row.place.sequence;
        !self.refused.contains(&sequence) && !self.decided_before.contains_key(&sequence)
    }
}

/// Microseconds since 1970, which is as exact as Postgres keeps a time.
pub fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000)).unwrap_or_default()
}

/// Sessions of which the batch says something that depends on what they are.
pub fn concerned(batch: &Batch) -> HashSet<SessionId> {
    let messages = batch.messages.iter().filter(|row| matters(row)).map(|row| row.session);
    messages.chain(batch.changes.iter().map(|row| row.session)).collect()
}

/// Whether what becomes of a message, or of its session, may depend on what the session is.
fn matters(row: &MessageRow) -> bool {
    row.new.is_ai || row.new.sender == Sender::User
}

/// Folds a batch over what is known.
pub fn fold(batch: &Batch, known: &Known) -> Folded {
    let mut folded = Folded::default();
    if is_all_ordinary(batch, known) {
        return folded;
    }
    for (session, mut rows) in rows_by_session(batch) {
        rows.sort_unstable_by_key(|row| row.place().sequence);
        fold_session(session, &rows, known, &mut folded);
    }
    folded.changes.sort_unstable_by_key(|decided| decided.place.sequence);
    folded
}

/// Whether nothing in it can become anything else than it says.
fn is_all_ordinary(batch: &Batch, known: &Known) -> bool {
    batch.changes.is_empty()
        && known.refused.is_empty()
        && known.states.values().all(|state| *state == SessionState::default())
}

fn rows_by_session(batch: &Batch) -> HashMap<SessionId, Vec<Row<'_>>> {
    let mut sessions: HashMap<SessionId, Vec<_>> =
        concerned(batch).into_iter().map(|session| (session, Vec::new())).collect();
    let openings = batch.sessions.iter().map(|row| (row.session, Row::Opening(row.place)));
    let messages = batch.messages.iter().map(|row| (row.session, Row::Message(row)));
    let changes = batch.changes.iter().map(|row| (row.session, Row::Change(row)));
    for (session, row) in openings.chain(messages).chain(changes) {
        if let Some(rows) = sessions.get_mut(&session) {
            rows.push(row);
        }
    }
    sessions
}

fn fold_session(session: SessionId, rows: &[Row<'_>], known: &Known, folded: &mut Folded) {
    let before = known.states.get(&session);
    // What opens a session, or a message that has to, makes it what it is at first.
    let mut state = before.cloned();
    let mut stored = HashSet::new();
    for row in rows {
        match *row {
            Row::Opening(_) => {
                state.get_or_insert_default();
            }
            Row::Message(row) => {
                let state = state.get_or_insert_default();
                let id = row.new.id.as_str();
                // What is refused here is not stored, and may be sent again behind it.
                if !known.messages.contains(id) && !stored.contains(id) {
                    fold_message(row, state, known, folded);
                    if folded.stores(row) {
                        stored.insert(id);
                    }
                }
            }
            Row::Change(row) => fold_change(row, state.as_mut(), known, folded),
        }
    }
    if let (Some(state), Some(row)) = (state, rows.first())
        && before.cloned().unwrap_or_default() != state
    {
        let partition = row.place().partition;
        folded.states.insert(session, Becoming { partition, state });
    }
}

fn fold_message(row: &MessageRow, state: &mut SessionState, known: &Known, folded: &mut Folded) {
    let MessageRow { place, session, new } = row;
    if new.is_ai {
        let id = new.id.as_str().to_owned();
        if known.refused.contains(&(id, micros(place.recorded_at))) {
            folded.decided_before.insert(place.sequence, Fate::AiOff);
        } else if !state.ai_enabled {
            folded.refused.insert(place.sequence);
        }
    } else if new.sender == Sender::User && state.status == Status::Closed {
        let change = Change { status: Some(Status::Open), ..Change::default() };
        let is_applied = state.apply(&change);
        let id = new.id.as_str().to_owned();
        folded.changes.push(Decided { place: *place, session: *session, id, change, is_applied });
    }
}

fn fold_change(
    row: &ChangeRow,
    state: Option<&mut SessionState>,
    known: &Known,
    folded: &mut Folded,
) {
    let ChangeRow { place, session, new } = row;
    let id = new.id.as_str();
    let decided = folded.changes.iter().find(|decided| decided.id == id);
    let decided =
        decided.map(|decided| decided.is_applied).or_else(|| known.changes.get(id).copied());
    if let Some(is_applied) = decided {
        let fate = if is_applied { Fate::Changed } else { Fate::Claimed };
        folded.decided_before.insert(place.sequence, fate);
        return;
    }
    // A change opens no session. Where the log is read again, and there is one then, it counts.
    let Some(state) = state else {
        folded.decided_before.insert(place.sequence, Fate::Missing);
        return;
    };
    let is_applied = state.apply(&new.change);
    folded.changes.push(Decided {
        place: *place,
        session: *session,
        id: id.to_owned(),
        change: new.change.clone(),
        is_applied,
    });
}

#[cfg(test)]
mod tests {
    use shared::change::{Agent, Assignment};
    use shared::content::Content;
    use shared::ids::{ChatSessionId, MessageId};
    use shared::partition::Partition;
    use shared::record::{NewChange, NewMessage, NewSession};

    use super::*;

    struct Bench {
        session: SessionId,
        batch: Batch,
        known: Known,
        sequence: u64,
    }

    impl Bench {
        /// Of a stored session.
        fn new(state: SessionState) -> Self {
            let session = SessionId::random();
            let known = Known { states: HashMap::from([(session, state)]), ..Known::default() };
            Self { session, batch: Batch::default(), known, sequence: 0 }
        }

        fn place(&mut self) -> LogPlace {
            self.sequence += 1;
            let recorded_at =
                OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(self.sequence.cast_signed());
            LogPlace { partition: Partition::FIRST, sequence: self.sequence, recorded_at }
        }

        fn say(&mut self, id: &MessageId, sender: Sender, is_ai: bool) -> u64 {
            let (place, content) = (self.place(), Content::parse("x".into(), 1).unwrap());
            let new = NewMessage { id: id.clone(), sender, content, is_ai };
            self.batch.messages.push(MessageRow { place, session: self.session, new });
            place.sequence
        }

        fn visitor(&mut self) -> u64 {
            self.say(&MessageId::random(), Sender::User, false)
        }

        fn ai(&mut self) -> u64 {
            self.say(&MessageId::random(), Sender::Admin, true)
        }

        fn change(&mut self, change: Change) -> MessageId {
            let id = MessageId::random();
            self.change_by(&id, change);
            id
        }

        fn change_by(&mut self, id: &MessageId, change: Change) -> u64 {
            let place = self.place();
            let new = NewChange { id: id.clone(), change };
            self.batch.changes.push(ChangeRow { place, session: self.session, new });
            place.sequence
        }

        fn open(&mut self) {
            let place = self.place();
            let new = NewSession { id: ChatSessionId::random(), ip: None, user_agent: None };
            self.batch.sessions.push(crate::batch::SessionRow {
                place,
                session: self.session,
                new,
            });
        }

        fn fold(&self) -> Folded {
            fold(&self.batch, &self.known)
        }
    }

    fn ai(enabled: bool) -> Change {
        Change { ai_enabled: Some(enabled), ..Change::default() }
    }

    fn claim(agent: &str) -> Change {
        let agent = Agent::try_from(agent.to_owned()).unwrap();
        Change { assignment: Some(Assignment::Claim(agent)), ..Change::default() }
    }

    fn status(status: Status) -> Change {
        Change { status: Some(status), ..Change::default() }
    }

    #[test]
    fn an_ai_is_heard_before_it_is_switched_off_and_not_behind_it() {
        let mut bench = Bench::new(SessionState::default());
        bench.ai();
        bench.change(ai(false));
        let refused = bench.ai();
        bench.change(ai(true));
        bench.ai();
        let folded = bench.fold();
        assert_eq!(folded.refused, HashSet::from([refused]));
        assert!(folded.states.is_empty(), "it is as it was");
        assert_eq!(folded.changes.len(), 2);
    }

    #[test]
    fn a_log_that_is_read_again_decides_nothing_anew() {
        let mut bench = Bench::new(SessionState::default());
        let (told, answer) = (MessageId::random(), MessageId::random());
        bench.say(&told, Sender::User, false);
        let off = bench.change(ai(false));
        let refused = bench.say(&answer, Sender::Admin, true);
        let close = bench.change(status(Status::Closed));
        let lost = bench.change(claim("ben"));
        let at = micros(bench.batch.messages[1].place.recorded_at);
        bench.known.states.insert(
            bench.session,
            SessionState { status: Status::Closed, ..SessionState::default() },
        );
        bench.known.messages.insert(told.as_str().to_owned());
        bench.known.refused.insert((answer.as_str().to_owned(), at));
        for (id, counts) in [(&off, true), (&close, true), (&lost, false)] {
            bench.known.changes.insert(id.as_str().to_owned(), counts);
        }
        let folded = bench.fold();
        assert!(folded.changes.is_empty() && folded.states.is_empty() && folded.refused.is_empty());
        let wanted =
            [(2, Fate::Changed), (refused, Fate::AiOff), (4, Fate::Changed), (5, Fate::Claimed)];
        assert_eq!(folded.decided_before, HashMap::from(wanted));
    }

    #[test]
    fn what_was_refused_may_be_said_again_once_the_ai_is_on() {
        let mut bench = Bench::new(SessionState { ai_enabled: false, ..SessionState::default() });
        let id = MessageId::random();
        let refused = bench.say(&id, Sender::Admin, true);
        bench.change(ai(true));
        let mut later = Bench::new(SessionState::default());
        later.known.refused.insert((id.as_str().to_owned(), 0));
        let again = later.say(&id, Sender::Admin, true);
        assert_eq!(bench.fold().refused, HashSet::from([refused]));
        let folded = later.fold();
        assert!(folded.stores(&later.batch.messages[0]), "{again}");
    }

    #[test]
    fn what_is_refused_is_refused_however_often_it_is_sent() {
        let mut bench = Bench::new(SessionState { ai_enabled: false, ..SessionState::default() });
        let id = MessageId::random();
        let twice = [(); 2].map(|()| bench.say(&id, Sender::Admin, true));
        assert_eq!(bench.fold().refused, HashSet::from(twice));
        bench.change(ai(true));
        bench.say(&id, Sender::Admin, true);
        let folded = bench.fold();
        let stored = bench.batch.messages.iter().filter(|row| folded.stores(row));
        assert_eq!(stored.map(|row| row.place.sequence).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn only_a_visitors_new_message_opens_a_closed_session() {
        let closed = SessionState { status: Status::Closed, ..SessionState::default() };
        let mut bench = Bench::new(closed.clone());
        bench.say(&MessageId::random(), Sender::Admin, false);
        bench.ai();
        let old = MessageId::random();
        bench.known.messages.insert(old.as_str().to_owned());
        bench.say(&old, Sender::User, false);
        assert!(bench.fold().changes.is_empty());
        let opens = bench.visitor();
        bench.visitor();
        let folded = bench.fold();
        let opened: Vec<_> = folded.changes.iter().map(|it| it.place.sequence).collect();
        assert_eq!(opened, [opens]);
        assert_eq!(folded.states[&bench.session].state, SessionState::default());
    }

    #[test]
    fn of_two_who_claim_a_new_session_the_first_has_it() {
        let mut bench = Bench::new(SessionState::default());
        bench.known.states.clear();
        let nobodys = bench.change(claim("too early"));
        bench.open();
        bench.change(claim("anna"));
        bench.change(claim("ben"));
        let folded = bench.fold();
        let applied: Vec<_> = folded.changes.iter().map(|it| it.is_applied).collect();
        assert_eq!(applied, [true, false], "{nobodys:?}");
        assert_eq!(folded.decided_before, HashMap::from([(1, Fate::Missing)]));
        assert_eq!(folded.states[&bench.session].state.assignee.as_deref(), Some("anna"));
    }

    #[test]
    fn a_change_that_stands_in_the_log_twice_counts_once() {
        let mut bench = Bench::new(SessionState::default());
        let id = bench.change(ai(false));
        bench.change(ai(true));
        let again = bench.change_by(&id, ai(false));
        let folded = bench.fold();
        assert_eq!(folded.decided_before, HashMap::from([(again, Fate::Changed)]));
        assert!(folded.states.is_empty());
    }
}
