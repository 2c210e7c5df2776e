//! Which faults a run makes, and when: decided by the seed alone, before anything starts.
//!
//! Left out on purpose, because what was promised cannot hold in them:
//! - a log that loses what nobody stored yet, and with it the gateway that took it, or a sender who went from
//!   one gateway to another meanwhile: gateways publish it again, each by itself;
//! - a dump older than what the log still holds: what is between them cannot be replayed. So no dump
//!   is open while the log is filled, which makes the persisters trim it to half of its room.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::Link;

use super::arguments::{Arguments, Restart};
use super::random::Random;

/// Something that a fault is made of, and that only one fault at a time may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Gateway(usize),
    Persister(usize),
    Nats,
    Postgres,
    /// What the log holds, not the process.
    Log,
    /// Where the clients are.
    Clients,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// `kill -9`, and a new start.
    Kill(Target),
    /// SIGTERM, and a new start.
    Stop(Target),
    /// SIGSTOP and SIGCONT.
    Pause(Target),
    /// A closed proxy.
    Cut(Link, usize),
    /// A proxy that carries nothing.
    Freeze(Link, usize),
    /// The persisters are frozen or stopped and the log is filled to its brim.
    Fill { stopped: bool },
    /// A dump is taken, and put in the place of the database later.
    Restore,
    /// A copy of the log is taken, and put in its place later, once everything is stored. The gateways go
    /// on at once and give out its numbers a second time; the persisters come so much later.
    OlderLog { late_ms: u64 },
    /// The log is wiped, or loses what came after a copy of it, while everybody talks and the persisters are behind.
    LoseLog { all: bool },
    /// The clock of Postgres's machine steps back by an hour, so that all leases lie in the future, and one
    /// of their owners is killed.
    ClockStep(Target),
    /// So many records that are no requests, from somebody else, on subjects of all kinds.
    Foreign { count: u64, salt: u64 },
    /// Clients vanish without a word and come back.
    Leave { percent: u64, salt: u64 },
}

/// A fault at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// From the start of the run.
    pub(super) at: Duration,
    /// What happens.
    pub(super) what: What,
    /// From its beginning until it is mended; for [`What::Restore`] and [`What::OlderLog`] the age
    /// of what is put back.
    pub(super) lasts: Duration,
}

/// Kinds of faults as the deck has them, and how many of each it holds.
#[derive(Clone, Copy, Debug)]
enum Card {
    Kill(Kind),
    Stop(Kind),
    Pause(Kind),
    /// Longer than a lease: the worker wakes up fenced.
    Oversleep,
    Cut(Link),
    Freeze(Link),
    Fill,
    Restore,
    OlderLog,
    LoseLog,
    ClockStep,
    Foreign,
    Leave,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Gateway,
    Persister,
    Nats,
    Postgres,
}

const DECK: [(Card, usize); 29] = [
    (Card::Kill(Kind::Gateway), 3),
    (Card::Kill(Kind::Persister), 4),
    (Card::Kill(Kind::Nats), 2),
    (Card::Kill(Kind::Postgres), 2),
    (Card::Stop(Kind::Gateway), 2),
    (Card::Stop(Kind::Persister), 3),
    (Card::Stop(Kind::Nats), 1),
    (Card::Stop(Kind::Postgres), 1),
    (Card::Pause(Kind::Gateway), 2),
    (Card::Pause(Kind::Persister), 2),
    (Card::Pause(Kind::Nats), 2),
    (Card::Pause(Kind::Postgres), 2),
    (Card::Oversleep, 3),
    (Card::Cut(Link::GatewayNats), 1),
    (Card::Cut(Link::GatewayPostgres), 1),
    (Card::Cut(Link::PersisterNats), 2),
    (Card::Cut(Link::PersisterPostgres), 2),
    (Card::Freeze(Link::GatewayNats), 1),
    (Card::Freeze(Link::GatewayPostgres), 1),
    (Card::Freeze(Link::PersisterNats), 2),
    (Card::Freeze(Link::PersisterPostgres), 2),
    (Card::Fill, 1),
    (Card::Restore, 2),
    (Card::OlderLog, 2),
    (Card::LoseLog, 2),
    (Card::ClockStep, 2),
    (Card::Foreign, 2),
    (Card::Leave, 2),
    (Card::Leave, 1),
];

/// The stack is left alone until the clients talk.
const FIRST_AFTER: Duration = Duration::from_secs(4);
/// Longer before a single outage: its figures are to be those of a stack that runs.
const OUTAGE_AFTER: Duration = Duration::from_secs(10);
/// From one restart to the next, and how often each process has its turn in a rolling one.
const ROLLING_STEP: Duration = Duration::from_secs(4);
const ROLLING_ROUNDS: usize = 3;
/// When everything is restarted: from one order to the next, from one kind of process to the next, and
/// from the first stop until all are started.
const ORDER_STEP: Duration = Duration::from_secs(6);
const KIND_STEP: Duration = Duration::from_millis(400);
const ALL_DOWN: Duration = Duration::from_secs(2);
/// Pause between two faults in milliseconds: about twelve a minute.
const PAUSE_MS: (u64, u64) = (3_500, 6_300);
/// How often two faults come at the same time.
const PAIRS_PERCENT: u64 = 15;
/// How long a process is given after its fault before it gets the next.
const SETTLE: Duration = Duration::from_millis(1_500);
/// The share of the time in which NATS may be away or the log full.
const LOG_AWAY_PERCENT: u32 = 10;
/// What a fault takes longer than it lasts: a start of NATS, and the trimming of a full log.
const NATS_STARTS: Duration = Duration::from_millis(500);
const LOG_TRIMMED: Duration = Duration::from_secs(8);
/// Taking a dump, and putting it in place, with Postgres undisturbed.
const DUMP_TAKES: Duration = Duration::from_secs(6);
/// Copying the log, with NATS undisturbed.
const COPY_TAKES: Duration = Duration::from_secs(2);
/// Waiting until everything is stored, and putting the copy in place: sends are refused so long.
const SWAP_TAKES: Duration = Duration::from_secs(3);
/// How long what lies between a dump and now may take to be replayed, and an older log to be read anew.
const REPLAY_TAKES: Duration = Duration::from_secs(15);
/// After a full log no dump is taken until what filled it is trimmed.
const FILL_LINGERS: Duration = Duration::from_secs(30);

/// The faults of a run, by their times.
pub(super) fn plan(arguments: &Arguments) -> Vec<Fault> {
    if let Some(seconds) = arguments.postgres_away {
        let what = What::Stop(Target::Postgres);
        return vec![Fault { at: OUTAGE_AFTER, what, lasts: Duration::from_secs(seconds) }];
    }
    if let Some(restart) = arguments.restart {
        return restarts(arguments, restart);
    }
    let mut plan = Plan::new(arguments);
    let mut at = FIRST_AFTER;
    while at < arguments.time() {
        let count = if plan.random.chance(PAIRS_PERCENT) { 2 } else { 1 };
        for _ in 0..count {
            plan.draw(at);
        }
        at += plan.random.between(PAUSE_MS.0, PAUSE_MS.1);
    }
    plan.faults
}

/// Stops and starts, in place of a schedule.
fn restarts(arguments: &Arguments, restart: Restart) -> Vec<Fault> {
    let gateways = || (0..arguments.gateways.into()).map(Target::Gateway);
    let persisters = || (0..arguments.persisters.into()).map(Target::Persister);
    let stop = |at, target, lasts| Fault { at, what: What::Stop(target), lasts };
    match restart {
        Restart::Rolling => {
            // In the order of an upgrade.
            let services: Vec<_> = persisters().chain(gateways()).collect();
            let turns = services.repeat(ROLLING_ROUNDS).into_iter().zip(0..);
            let fault =
                |(target, turn)| stop(OUTAGE_AFTER + ROLLING_STEP * turn, target, Duration::ZERO);
            turns.map(fault).collect()
        }
        Restart::Everything => {
            let kinds = [
                gateways().collect(),
                persisters().collect(),
                vec![Target::Nats],
                vec![Target::Postgres],
            ];
            let mut faults = Vec::new();
            for (order, begins) in orders().into_iter().zip(0..) {
                for (kind, later) in order.into_iter().zip(0..) {
                    let later = KIND_STEP * later;
                    let at = OUTAGE_AFTER + ORDER_STEP * begins + later;
                    faults.extend(
                        kinds[kind].iter().map(|it| stop(at, *it, ALL_DOWN.saturating_sub(later))),
                    );
                }
            }
            faults
        }
    }
}

/// Every order of four.
fn orders() -> Vec<[usize; 4]> {
    let all = (0..256).map(|number| [number / 64, number / 16 % 4, number / 4 % 4, number % 4]);
    all.filter(|order| BTreeSet::from(*order).len() == order.len()).collect()
}

/// When the last of them begins.
pub(super) fn restarts_end(arguments: &Arguments, restart: Restart) -> Duration {
    restarts(arguments, restart).last().map_or(OUTAGE_AFTER, |fault| fault.at)
}

struct Plan {
    random: Random,
    gateways: usize,
    persisters: usize,
    arguments: Arguments,
    deck: Vec<Card>,
    /// Cards of a whole deck.
    full: usize,
    faults: Vec<Fault>,
    busy: Vec<(Target, Duration, Duration)>,
    log_may_be_away: Duration,
}

impl Plan {
    fn new(arguments: &Arguments) -> Self {
        Self {
            random: Random::new(arguments.seed),
            gateways: arguments.gateways.into(),
            persisters: arguments.persisters.into(),
            arguments: arguments.clone(),
            deck: Vec::new(),
            full: 0,
            faults: Vec::new(),
            busy: Vec::new(),
            log_may_be_away: arguments.time() * LOG_AWAY_PERCENT / 100,
        }
    }

    /// Adds the first fault of the deck that fits; the others stay for later.
    fn draw(&mut self, at: Duration) {
        if self.deck.len() <= self.full {
            self.refill();
        }
        for place in 0..self.deck.len() {
            let (what, lasts) = self.fault_of(self.deck[place]);
            let fault = Fault { at, what, lasts };
            if self.fits(&fault) {
                self.deck.remove(place);
                self.add(fault);
                return;
            }
        }
    }

    /// Every kind of fault comes again before any comes much more often.
    fn refill(&mut self) {
        let mut cards = Vec::new();
        for (card, count) in DECK {
            if self.wants(card) {
                cards.extend(vec![card; count]);
            }
        }
        self.full = cards.len();
        self.random.shuffle(&mut cards);
        self.deck.extend(cards);
    }

    fn wants(&mut self, card: Card) -> bool {
        let random = self.random.clone();
        let name = self.fault_of(card).0.to_string();
        self.random = random;
        self.arguments.wants(&name)
    }

    fn fault_of(&mut self, card: Card) -> (What, Duration) {
        let (gateways, persisters) = (self.gateways, self.persisters);
        let random = &mut self.random;
        match card {
            Card::Kill(kind) => (What::Kill(self.target(kind)), self.down(kind)),
            Card::Stop(kind) => (What::Stop(self.target(kind)), self.down(kind)),
            Card::Pause(kind) => (What::Pause(self.target(kind)), self.asleep(kind)),
            Card::Oversleep => (
                What::Pause(Target::Persister(random.index(persisters))),
                random.between(3_500, 9_000),
            ),
            Card::Cut(link) => {
                (What::Cut(link, random.index(count(link, gateways, persisters))), self.apart())
            }
            Card::Freeze(link) => {
                (What::Freeze(link, random.index(count(link, gateways, persisters))), self.apart())
            }
            Card::Fill => (What::Fill { stopped: random.chance(50) }, random.between(2_000, 4_000)),
            Card::Restore => (What::Restore, random.between(8_000, 35_000)),
            // Young enough that the gateways may give out all of its lost numbers before a persister looks.
            Card::OlderLog => {
                let late = if random.chance(50) { 0 } else { 500 + random.below(3_500) };
                (What::OlderLog { late_ms: late }, random.between(300, 5_000))
            }
            // Most of it longer than senders wait for Postgres: they are told that it is accepted.
            Card::LoseLog => (What::LoseLog { all: random.chance(50) }, random.between(500, 4_000)),
            // Longer than a takeover may take: it must come while the owner is gone.
            Card::ClockStep => (
                What::ClockStep(Target::Persister(random.index(persisters))),
                random.between(6_000, 10_000),
            ),
            Card::Foreign => {
                let (count, salt) = (50 + random.below(150), random.next());
                (What::Foreign { count, salt }, Duration::ZERO)
            }
            Card::Leave => {
                let (percent, salt) = (10 + random.below(50), random.next());
                (What::Leave { percent, salt }, random.between(100, 15_000))
            }
        }
    }

    fn target(&mut self, kind: Kind) -> Target {
        match kind {
            Kind::Gateway => Target::Gateway(self.random.index(self.gateways)),
            Kind::Persister => Target::Persister(self.random.index(self.persisters)),
            Kind::Nats => Target::Nats,
            Kind::Postgres => Target::Postgres,
        }
    }

    fn down(&mut self, kind: Kind) -> Duration {
        match kind {
            Kind::Gateway | Kind::Persister => self.random.between(100, 4_000),
            Kind::Nats => self.random.between(200, 2_500),
            Kind::Postgres => self.random.between(200, 6_000),
        }
    }

    fn asleep(&mut self, kind: Kind) -> Duration {
        match kind {
            Kind::Gateway => self.random.between(500, 10_000),
            Kind::Persister => self.random.between(300, 2_000),
            Kind::Nats => self.random.between(500, 4_000),
            Kind::Postgres => self.random.between(500, 8_000),
        }
    }

    fn apart(&mut self) -> Duration {
        self.random.between(500, 9_000)
    }

    fn fits(&self, fault: &Fault) -> bool {
        let overlaps = |(target, from, until): &(Target, Duration, Duration)| {
            self.busy
                .iter()
                .any(|(other, begin, end)| target == other && from < end && begin < until)
        };
        self.log_may_be_away >= log_away(fault) && !self.needs(fault).iter().any(overlaps)
    }

    fn add(&mut self, fault: Fault) {
        self.log_may_be_away -= log_away(&fault);
        let needs = self.needs(&fault);
        self.busy.extend(needs);
        self.faults.push(fault);
    }

    fn processes(&self) -> impl Iterator<Item = Target> {
        let gateways = (0..self.gateways).map(Target::Gateway);
        let persisters = (0..self.persisters).map(Target::Persister);
        gateways.chain(persisters).chain([Target::Nats, Target::Postgres])
    }

    /// What the fault needs for itself, and when.
    fn needs(&self, fault: &Fault) -> Vec<(Target, Duration, Duration)> {
        let Fault { at, what, lasts } = *fault;
        let end = at + lasts;
        match what {
            What::Fill { .. } => {
                let persisters = (0..self.persisters).map(Target::Persister);
                let rest = [(Target::Log, at, end + LOG_TRIMMED + FILL_LINGERS)];
                let busy = persisters.chain([Target::Nats, Target::Postgres]);
                busy.map(|target| (target, at, end + LOG_TRIMMED)).chain(rest).collect()
            }
            What::Restore => vec![
                (Target::Postgres, at, at + DUMP_TAKES),
                (Target::Postgres, end, end + DUMP_TAKES),
                (Target::Log, at, end + REPLAY_TAKES),
            ],
            What::OlderLog { late_ms } => {
                let back = end + SWAP_TAKES + Duration::from_millis(late_ms) + SETTLE;
                let busy = self.processes().map(|target| (target, end, back));
                let copied = [(Target::Nats, at, at + COPY_TAKES)];
                let log = [(Target::Log, at, end + REPLAY_TAKES)];
                busy.chain(copied).chain(log).collect()
            }
            What::LoseLog { .. } => {
                let back = end + SWAP_TAKES + SETTLE;
                let busy = self.processes().chain([Target::Clients]);
                let log = [(Target::Log, at, end + REPLAY_TAKES)];
                busy.map(|target| (target, at, back)).chain(log).collect()
            }
            What::Leave { .. } => vec![(Target::Clients, at, end + SETTLE)],
            _ => what.targets().into_iter().map(|target| (target, at, end + SETTLE)).collect(),
        }
    }
}

/// How long a fault keeps sends out of the log.
fn log_away(fault: &Fault) -> Duration {
    match fault.what {
        What::Kill(Target::Nats) | What::Stop(Target::Nats) | What::Pause(Target::Nats) => {
            fault.lasts + NATS_STARTS
        }
        What::Fill { .. } => fault.lasts + LOG_TRIMMED,
        What::OlderLog { .. } => SWAP_TAKES + NATS_STARTS,
        What::LoseLog { .. } => NATS_STARTS,
        _ => Duration::ZERO,
    }
}

fn count(link: Link, gateways: usize, persisters: usize) -> usize {
    match link {
        Link::GatewayNats | Link::GatewayPostgres => gateways,
        Link::PersisterNats | Link::PersisterPostgres => persisters,
    }
}

impl What {
    /// The processes that the fault acts on, one after the other; in the order of their locks.
    pub(super) fn targets(self) -> BTreeSet<Target> {
        let target = match self {
            Self::Kill(target) | Self::Stop(target) | Self::Pause(target) => target,
            Self::Cut(link, index) | Self::Freeze(link, index) => match link {
                Link::GatewayNats | Link::GatewayPostgres => Target::Gateway(index),
                Link::PersisterNats | Link::PersisterPostgres => Target::Persister(index),
            },
            // The clock is that of Postgres's machine, and its leases are moved there.
            Self::ClockStep(target) => return [target, Target::Postgres].into(),
            Self::Foreign { .. } => Target::Nats,
            Self::Fill { .. }
            | Self::Restore
            | Self::OlderLog { .. }
            | Self::LoseLog { .. }
            | Self::Leave { .. } => return BTreeSet::new(),
        };
        [target].into()
    }

    /// The gateway whose clients alone feel it.
    pub(super) fn gateway(self) -> Option<usize> {
        self.targets().into_iter().find_map(|target| match target {
            Target::Gateway(index) => Some(index),
            _ => None,
        })
    }

    /// Its line in the table: the kind without the number of the process.
    pub(super) fn kind(self) -> String {
        let name = self.to_string();
        name.trim_end_matches(|last: char| last.is_ascii_digit() || " -%".contains(last)).to_owned()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(index) => write!(f, "gateway-{index}"),
            Self::Persister(index) => write!(f, "persister-{index}"),
            Self::Nats => f.write_str("nats"),
            Self::Postgres => f.write_str("postgres"),
            Self::Log => f.write_str("log"),
            Self::Clients => f.write_str("clients"),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let link = |link: &Link| match link {
            Link::GatewayNats => "nats of gateway",
            Link::GatewayPostgres => "postgres of gateway",
            Link::PersisterNats => "nats of persister",
            Link::PersisterPostgres => "postgres of persister",
        };
        match self {
            Self::Kill(target) => write!(f, "kill {target}"),
            Self::Stop(target) => write!(f, "stop {target}"),
            Self::Pause(target) => write!(f, "pause {target}"),
            Self::Cut(proxy, index) => write!(f, "cut {}-{index}", link(proxy)),
            Self::Freeze(proxy, index) => write!(f, "freeze {}-{index}", link(proxy)),
            Self::Fill { stopped: true } => f.write_str("fill log, persisters stopped"),
            Self::Fill { stopped: false } => f.write_str("fill log, persisters paused"),
            Self::Restore => f.write_str("restore dump"),
            Self::OlderLog { late_ms: 0 } => f.write_str("put older log back"),
            Self::OlderLog { late_ms } => {
                write!(f, "put older log back, persisters late by ms {late_ms}")
            }
            Self::LoseLog { all: true } => f.write_str("wipe log under load"),
            Self::LoseLog { all: false } => f.write_str("tear off tail of log under load"),
            Self::ClockStep(target) => write!(f, "step clock back, kill {target}"),
            Self::Foreign { count, .. } => write!(f, "foreign records {count}"),
            Self::Leave { percent, .. } => write!(f, "leave of clients {percent}%"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:7.1} s {:5.1} s  {}",
            self.at.as_secs_f64(),
            self.lasts.as_secs_f64(),
            self.what
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn arguments(seed: u64) -> Arguments {
        let seed = seed.to_string();
        Arguments::parse_from(["chaos", "--minutes", "10", "--seed", seed.as_str()])
    }

    #[test]
    fn a_rolling_restart_has_every_service_in_turn() {
        let arguments = Arguments::parse_from(["chaos", "--restart", "rolling"]);
        let plan = plan(&arguments);
        assert_eq!(plan.len(), 15);
        assert_eq!(plan[3].what, What::Stop(Target::Gateway(0)));
        assert!(plan.windows(2).all(|pair| pair[0].at + ROLLING_STEP == pair[1].at));
    }

    #[test]
    fn everything_is_stopped_in_every_order() {
        let arguments = Arguments::parse_from(["chaos", "--restart", "everything"]);
        let kinds: BTreeSet<Vec<String>> = plan(&arguments)
            .chunks(7)
            .map(|order| order.iter().map(|fault| fault.what.to_string()).collect())
            .collect();
        assert_eq!(kinds.len(), 24);
    }

    #[test]
    fn the_seed_alone_decides() {
        assert_eq!(plan(&arguments(3)), plan(&arguments(3)));
        assert_ne!(plan(&arguments(3)), plan(&arguments(4)));
    }

    #[test]
    fn ten_minutes_hold_a_hundred_faults_of_every_kind() {
        for seed in 0..50 {
            let plan = plan(&arguments(seed));
            assert!(plan.len() >= 100, "seed {seed}: {}", plan.len());
            let kinds: BTreeSet<_> = plan.iter().map(|fault| fault.what.kind()).collect();
            assert!(kinds.len() >= 25, "seed {seed}: {kinds:?}");
        }
    }

    #[test]
    fn the_log_is_away_for_a_tenth_of_the_time_at_most() {
        for seed in 0..50 {
            let away: Duration = plan(&arguments(seed)).iter().map(log_away).sum();
            assert!(away <= Duration::from_mins(1), "seed {seed}: {away:?}");
        }
    }
}
