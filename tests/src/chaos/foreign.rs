//! Records that are no requests, put into the log by somebody else: on subjects of all kinds, with bytes of
//! all kinds. None of them may hold anything up.

use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::jetstream;
use shared::ids::SessionId;
use shared::partition::PartitionCount;
use shared::subjects;
use tokio::time::timeout;

use super::fill::MARK;
use super::random::Random;
use super::world::World;

/// Longest wait for the log to take one.
const TAKEN_WITHIN: Duration = Duration::from_secs(5);
/// How many of them stand in a session in which people talk.
const IN_OURS_PERCENT: u64 = 25;
/// The longest token of a subject: with the rest of the line nats-server reads 4,096 bytes.
const TOKEN_MAX: u64 = 3_900;
/// The longest of those that are no text.
const BYTES_MAX: u64 = 20_000;

/// Puts so many into the log; one that it refuses is none.
pub(super) async fn put(world: &World, count: u64, salt: u64) -> Result<()> {
    let connected = timeout(TAKEN_WITHIN, world.stack.nats_client()).await;
    let log = jetstream::new(connected.context("no connection to NATS")?);
    let mut random = Random::new(salt);
    for _ in 0..count {
        let (subject, payload) = if random.chance(IN_OURS_PERCENT) {
            in_a_session_of_ours(world, &mut random)
        } else {
            let subject = subject(&mut random);
            world.add_foreign(&subject);
            (subject, payload(&mut random))
        };
        let taken = async { log.publish(subject, payload.into()).await?.await };
        timeout(TAKEN_WITHIN, taken).await.context("the log does not answer")?.ok();
    }
    Ok(())
}

/// On the subject of a session in which people talk: it says nothing about the session.
fn in_a_session_of_ours(world: &World, random: &mut Random) -> (String, Vec<u8>) {
    let rooms = world.rooms();
    let ours = rooms.get(random.index(rooms.len().max(1))).map(|room| room.session.clone());
    let session = ours.and_then(|id| SessionId::parse(&id).ok()).unwrap_or_else(SessionId::random);
    let subject = subjects::request(PartitionCount::DEFAULT.partition_of(session), session);
    (subject, [MARK, &bytes(random)].concat())
}

fn subject(random: &mut Random) -> String {
    let session = SessionId::random();
    let own = PartitionCount::DEFAULT.partition_of(session);
    let partition = random.below(16);
    match random.below(10) {
        0 => "chat.requests.x.y".to_owned(),
        1 => format!("chat.requests.{partition}"),
        2 => format!("chat.requests.{}.{session}", 16 + random.below(100_000)),
        3 => format!("chat.requests.{partition}.{}", "z".repeat(length(random, TOKEN_MAX))),
        4 => format!("chat.requests.{partition}.{session}{}", ".more".repeat(length(random, 20))),
        5 => format!("chat.requests.{partition}.{}", session.to_string().to_uppercase()),
        6 => format!("chat.requests.0{partition}.{session}"),
        7 => format!("chat.requests.-1.чат-{session}"),
        // A session in another partition than its own.
        8 => format!("chat.requests.{}.{session}", (partition + 1) % 16),
        _ => subjects::request(own, session),
    }
}

fn payload(random: &mut Random) -> Vec<u8> {
    match random.below(7) {
        0 => Vec::new(),
        1 => b"null".to_vec(),
        2 => b"{}".to_vec(),
        3 => br#"{"message":{"id":"cm4xyz789000000000000000a","sender":"nobody","content":"x"}}"#
            .to_vec(),
        4 => {
            br#"{"message":{"id":"cm4xyz789000000000000000a","sender":"user","content":"\u0000"}}"#
                .to_vec()
        }
        5 => "[".repeat(length(random, BYTES_MAX)).into_bytes(),
        _ => bytes(random),
    }
}

fn bytes(random: &mut Random) -> Vec<u8> {
    let length = length(random, BYTES_MAX);
    std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(length).collect()
}

/// From 1 to this many.
fn length(random: &mut Random, most: u64) -> usize {
    usize::try_from(1 + random.below(most)).unwrap_or(1)
}
