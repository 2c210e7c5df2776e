//! Who talks: a room with many at once, rooms of a visitor and an admin that come and go, and quiet
//! ones, whose partitions may have nothing to do when a fault comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::broken::{Broken, Promise};
use super::client::{self, Client};
use super::erasures;
use super::javascript::Javascript;
use super::ledger::{Role, Room};
use super::outbox::Pace;
use super::random::Random;
use super::socket::{Socket, Way};
use super::world::{Phase, World};

/// The share of the rate that the busy room has.
const BUSY_PERCENT: u64 = 15;
const BUSY_VISITORS: u64 = 3;
const BUSY_ADMINS: u64 = 2;
/// Messages that a client of the busy room sends in one go.
const BUSY_BURST: u64 = 3;
/// Messages a second in an ordinary room.
const ROOM_RATE: u64 = 10;
const ROOMS_MAX: u64 = 80;
/// How long an ordinary room lives, in milliseconds.
const LIFE_MS: (u64, u64) = (40_000, 150_000);
const JAVASCRIPT_PAUSE: Duration = Duration::from_secs(1);
const QUIET_ROOMS: u64 = 6;
const QUIET_PAUSE: Duration = Duration::from_secs(15);
/// Pause before another try to open a session.
const OPENS_AGAIN: Duration = Duration::from_millis(400);
/// Rooms are opened one after the other, not all at once.
const ENTRANCE: Duration = Duration::from_secs(2);

/// A kind of room.
#[derive(Clone, Debug)]
struct Plan {
    name: &'static str,
    visitors: u64,
    admins: u64,
    /// Visitors and admins in turn that connect in a way of their own.
    others: Vec<Way>,
    pace: Pace,
    /// Whether it ends, and another one takes its place.
    passes: bool,
}

/// Fills the stack with clients, who talk until the phase says otherwise.
pub(super) fn enter(world: &Arc<World>, javascript: Option<&Javascript>) -> JoinSet<()> {
    let mut slots = JoinSet::new();
    if let Some(javascript) = javascript {
        let members = javascript.clients.iter().cloned().map(Way::Javascript).collect();
        slots.spawn(slot(Arc::clone(world), 0, javascript_room(members)));
    }
    let rate = world.arguments.rate;
    let busy = (rate * BUSY_PERCENT / 100).max(1);
    slots.spawn(slot(Arc::clone(world), 0, busy_room(busy)));
    let rooms = ((rate - busy) / ROOM_RATE).clamp(1, ROOMS_MAX);
    let pace = pace((rate - busy).max(1), rooms * 2, 1);
    for number in 0..rooms {
        let plan =
            Plan { name: "room", visitors: 1, admins: 1, others: Vec::new(), pace, passes: true };
        slots.spawn(slot(Arc::clone(world), number, plan));
    }
    for number in 0..QUIET_ROOMS {
        let pace = Pace { every: QUIET_PAUSE, burst: 1 };
        let plan =
            Plan { name: "quiet", visitors: 1, admins: 1, others: Vec::new(), pace, passes: false };
        slots.spawn(slot(Arc::clone(world), number, plan));
    }
    erasures::enter(world, &mut slots);
    slots
}

fn busy_room(rate: u64) -> Plan {
    let pace = pace(rate, BUSY_VISITORS + BUSY_ADMINS, BUSY_BURST);
    let (visitors, admins) = (BUSY_VISITORS, BUSY_ADMINS);
    Plan { name: "busy", visitors, admins, others: Vec::new(), pace, passes: false }
}

/// One of ours, and all of theirs.
fn javascript_room(others: Vec<Way>) -> Plan {
    let pace = Pace { every: JAVASCRIPT_PAUSE, burst: 2 };
    Plan { name: "javascript", visitors: 1, admins: 0, others, pace, passes: false }
}

/// What each of so many clients says for this rate of all.
fn pace(rate: u64, clients: u64, burst: u64) -> Pace {
    let every = Duration::from_millis(1_000 * clients * burst / rate.max(1));
    Pace { every, burst }
}

/// Keeps one room going.
async fn slot(world: Arc<World>, number: u64, plan: Plan) {
    let slot = format!("{}{number}", plan.name);
    let mut random = Random::of(world.arguments.seed, &slot);
    sleep(random.between(0, u64::try_from(ENTRANCE.as_millis()).unwrap_or_default())).await;
    let mut turn = random.index(1_000);
    let mut life = 0;
    while *world.phase.borrow() == Phase::Talking {
        turn += 1;
        let Ok((session, gateway, socket)) = client::open(&world, turn).await else {
            sleep(OPENS_AGAIN).await;
            continue;
        };
        let room = Arc::new(Room::new(session));
        world.add_room(&room);
        let lives = if plan.passes {
            random.between(LIFE_MS.0, LIFE_MS.1)
        } else {
            world.arguments.time() * 2
        };
        let members = members(&world, &room, &format!("{slot}.{life}"), &plan, lives);
        live(&world, members, (gateway, socket)).await;
        life += 1;
    }
}

fn members(
    world: &Arc<World>,
    room: &Arc<Room>,
    name: &str,
    plan: &Plan,
    lives: Duration,
) -> Vec<Client> {
    let until = Instant::now() + lives;
    let visitor = |number| (Role::Visitor, format!("{name}.v{number}"), Way::Rust);
    let admin = |number| (Role::Admin, format!("{name}.a{number}"), Way::Rust);
    let other = |(number, way): (usize, &Way)| {
        let role = if number / 2 % 2 == 0 { Role::Visitor } else { Role::Admin };
        (role, format!("{name}.o{number}"), way.clone())
    };
    let ours = (0..plan.visitors).map(visitor).chain((0..plan.admins).map(admin));
    let all = ours.chain(plan.others.iter().enumerate().map(other));
    let client = |(role, name, way): (Role, String, Way)| {
        Client::new(world, room, &name, (role, plan.pace, way), until)
    };
    all.map(client).collect()
}

/// The first member is the one who opened the session.
async fn live(world: &World, members: Vec<Client>, opened: (usize, Socket)) {
    let mut opened = Some(opened);
    let mut running = JoinSet::new();
    for member in members {
        running.spawn(member.run(opened.take()));
    }
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended {
            world.break_promise(Broken::new(Promise::Alive, format!("a client: {error}")));
        }
    }
}
