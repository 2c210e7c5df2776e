//! A disk that is really full, under NATS and under Postgres: what was accepted stays, readiness says what is
//! wrong, and `docs/operating/full-disk.md` mends it.

use std::time::Duration;

use tests::runbooks::{Shell, blocks};
use tests::{Conversation, Disk, JsClients, Service, Stack, eventually};

const SOON: Duration = Duration::from_secs(20);
/// Mebibytes of a disk with what is needed at first, and some.
const NATS_DISK: u32 = 64;
const POSTGRES_DISK: u32 = 160;

/// What operators are told.
async fn readiness(stack: &Stack, service: &Service) -> String {
    let answer = stack.http().get(service.ops_url("/ready")).send().await.expect("an answer");
    answer.text().await.expect("a report")
}

async fn says(stack: &Stack, service: &Service, line: &str) {
    let what = format!("{} says {line}", service.name());
    eventually(SOON, &what, async || readiness(stack, service).await.contains(line)).await;
}

async fn prints(service: &Service, text: &str) {
    eventually(SOON, text, async || service.logs().contains(text)).await;
}

/// It ends with everything that was accepted stored once and in order, and seen so. The codes of all
/// refusals.
async fn end(conversation: Conversation, stack: &Stack) -> Vec<String> {
    let talks = conversation.end(stack).await;
    for service in stack.gateways().iter().chain(stack.persisters()) {
        assert!(service.is_running(), "{}", service.logs());
    }
    talks.into_iter().flat_map(|talk| talk.refused).collect()
}

#[tokio::test]
async fn a_full_disk_under_nats_refuses_sends_until_there_is_room_and_nats_is_restarted() {
    let Some(disk) = Disk::make(NATS_DISK).await else { return };
    let stack = Stack::builder().nats_on(&disk).start().await;
    let conversation = Conversation::begin(&stack, &JsClients::start().await).await;
    conversation.is_delivered(10).await;
    disk.fill();
    says(&stack, stack.gateway(0), "nats: unavailable").await;
    prints(stack.gateway(0), "the log takes nothing").await;
    eventually(SOON, "NATS says why", async || stack.log_of("nats").contains("no space left"))
        .await;
    disk.make_room();
    stack.nats().stop().await;
    stack.nats().start().await;
    conversation.is_delivered(10).await;
    says(&stack, stack.gateway(0), "nats: ok").await;
    let refused = end(conversation, &stack).await;
    let is_told = |code: &String| ["unavailable", "overloaded"].contains(&code.as_str());
    assert!(!refused.is_empty() && refused.iter().all(is_told), "{refused:?}");
}

#[tokio::test]
async fn a_full_disk_under_postgres_refuses_nothing_and_what_waits_is_stored_once_there_is_room() {
    let (Some(shell), Some(disk)) = (Shell::open().await, Disk::make(POSTGRES_DISK).await) else {
        return;
    };
    let stack = Stack::builder().postgres_on(&disk).start().await;
    let conversation = Conversation::begin(&stack, &JsClients::start().await).await;
    conversation.is_delivered(10).await;
    disk.fill();
    says(&stack, stack.persister(0), "postgres: unavailable").await;
    prints(stack.persister(0), "No space left on device").await;
    conversation.is_accepted(10).await;
    let [where_it_went, _] = blocks("full-disk.md").try_into().expect("two blocks");
    shell.run(&stack, &where_it_went).await;
    disk.make_room();
    conversation.is_delivered(10).await;
    says(&stack, stack.persister(0), "postgres: ok").await;
    assert_eq!(end(conversation, &stack).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_postgres_that_ends_for_want_of_room_is_started_again_and_goes_on() {
    let Some(disk) = Disk::make(POSTGRES_DISK).await else { return };
    let stack = Stack::builder().postgres_on(&disk).start().await;
    let conversation = Conversation::begin(&stack, &JsClients::start().await).await;
    conversation.is_delivered(10).await;
    disk.fill();
    // What hours of writing do: a new file of the write-ahead log is needed.
    let pool = stack.pool();
    eventually(SOON, "Postgres ends", async || {
        sqlx::query("SELECT pg_switch_wal()").execute(&pool).await.ok();
        stack.postgres().ended().await
    })
    .await;
    conversation.is_accepted(10).await;
    for service in [stack.gateway(0), stack.persister(0)] {
        says(&stack, service, "postgres: unavailable").await;
    }
    disk.make_room();
    stack.postgres().start().await;
    conversation.is_delivered(10).await;
    assert_eq!(end(conversation, &stack).await, Vec::<String>::new());
}
