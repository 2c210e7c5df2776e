//! Any number of persisters share the partitions; what one leaves, another takes over.

#![expect(clippy::unwrap_used, reason = "clippy does not see that helpers of tests are tests")]

use std::time::Duration;

use sqlx::PgPool;
use tests::{Conversation, Link, Puppet, Stack, eventually};

const SHARE_WITHIN: Duration = Duration::from_secs(10);
const TAKEOVER_WITHIN: Duration = Duration::from_secs(5);
/// "At once" for a hand-over: one message over NATS and one statement.
const HANDOVER_WITHIN: Duration = Duration::from_secs(1);

/// How many partitions each worker holds by a lease that is good, fewest first.
async fn shares(pool: &PgPool) -> Vec<i64> {
    let held = r#"SELECT count(*) FROM "LogPartition" WHERE "leaseUntil" > now() GROUP BY "owner" ORDER BY 1"#;
    sqlx::query_scalar(held).fetch_all(pool).await.unwrap()
}

async fn share_as(pool: &PgPool, within: Duration, wanted: &[i64]) {
    eventually(within, &format!("shares of {wanted:?}"), async || shares(pool).await == wanted)
        .await;
}

#[tokio::test]
async fn a_worker_that_joins_takes_its_fair_share_within_10_seconds() {
    let stack = Stack::builder().persisters(3).services_stopped().start().await;
    let pool = stack.pool();
    for (persister, shares) in stack.persisters().iter().zip([vec![16], vec![8, 8], vec![4, 6, 6]])
    {
        persister.start().await;
        share_as(&pool, SHARE_WITHIN, &shares).await;
    }
}

#[tokio::test]
async fn a_persister_that_is_killed_is_replaced_within_5_seconds() {
    let (stack, conversation) = talk_with_two_persisters().await;
    stack.persister(0).kill();
    share_as(&stack.pool(), TAKEOVER_WITHIN, &[16]).await;
    conversation.is_delivered(20).await;
    conversation.end(&stack).await;
}

#[tokio::test]
async fn a_persister_that_is_frozen_is_replaced_within_5_seconds_and_fenced_when_it_wakes() {
    let (stack, conversation) = talk_with_two_persisters().await;
    for persister in [0, 1] {
        stack.persister(persister).pause();
        share_as(&stack.pool(), TAKEOVER_WITHIN, &[16]).await;
        conversation.is_delivered(20).await;
        stack.persister(persister).resume();
        share_as(&stack.pool(), SHARE_WITHIN, &[8, 8]).await;
        conversation.is_delivered(20).await;
    }
    conversation.end(&stack).await;
}

#[tokio::test]
async fn a_persister_that_is_cut_off_from_postgres_or_nats_is_replaced_within_5_seconds() {
    let (stack, conversation) = talk_with_two_persisters().await;
    for (link, persister) in [(Link::PersisterPostgres, 0), (Link::PersisterNats, 1)] {
        let wire = stack.wire(link, persister);
        wire.freeze();
        share_as(&stack.pool(), TAKEOVER_WITHIN, &[16]).await;
        conversation.is_delivered(20).await;
        wire.mend();
        share_as(&stack.pool(), SHARE_WITHIN, &[8, 8]).await;
    }
    conversation.end(&stack).await;
}

#[tokio::test]
async fn a_graceful_stop_hands_over_at_once() {
    let (stack, conversation) = talk_with_two_persisters().await;
    stack.persister(0).ask_to_stop();
    share_as(&stack.pool(), HANDOVER_WITHIN, &[16]).await;
    assert!(stack.persister(0).exit_status(TAKEOVER_WITHIN).await.success());
    conversation.is_delivered(20).await;
    conversation.end(&stack).await;
}

async fn talk_with_two_persisters() -> (Stack, Conversation) {
    let stack = Stack::builder()
        .persisters(2)
        .wire(Link::PersisterPostgres)
        .wire(Link::PersisterNats)
        .start()
        .await;
    share_as(&stack.pool(), SHARE_WITHIN, &[8, 8]).await;
    let conversation = Conversation::begin(&stack, &Puppet::start().await).await;
    conversation.is_delivered(5).await;
    (stack, conversation)
}
