//! Any number of persisters share the partitions; what one leaves, another takes over.

use std::time::{Duration, Instant};

use shared::ids::SessionId;
use shared::partition::PartitionCount;
use sqlx::PgPool;
use tests::{Conversation, JsClients, Link, Stack, eventually, step_clock_back};

const SHARE_WITHIN: Duration = Duration::from_secs(10);
const TAKEOVER_WITHIN: Duration = Duration::from_secs(5);
/// "At once" for a hand-over: one message over NATS and one statement.
const HANDOVER_WITHIN: Duration = Duration::from_secs(1);

/// The longest that a session hears nothing after its persister was killed, or asked to stop.
const SILENT_AFTER_KILL: Duration = Duration::from_secs(6);
const SILENT_AFTER_STOP: Duration = Duration::from_secs(1);

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

/// The persister that stores this conversation.
async fn persister_of(stack: &Stack, conversation: &Conversation) -> usize {
    let session = SessionId::parse(&conversation.session).unwrap();
    let partition = PartitionCount::DEFAULT.partition_of(session);
    let owner = r#"SELECT "owner"::text FROM "LogPartition" WHERE "partition" = $1"#;
    let owner = sqlx::query_scalar(owner).bind(partition.to_column());
    let owner: String = owner.fetch_one(&stack.pool()).await.unwrap();
    stack.persisters().iter().position(|persister| persister.logs().contains(&owner)).unwrap()
}

#[tokio::test]
async fn a_persister_that_is_killed_is_replaced_within_5_seconds() {
    let (stack, conversation) = talk_with_two_persisters().await;
    let owner = persister_of(&stack, &conversation).await;
    conversation.visitor.longest_silence().await;
    stack.persister(owner).kill();
    share_as(&stack.pool(), TAKEOVER_WITHIN, &[16]).await;
    conversation.is_delivered(20).await;
    let silence = conversation.visitor.longest_silence().await;
    assert!(silence < SILENT_AFTER_KILL, "silent for {silence:?}");
    conversation.end(&stack).await;
}

/// Whether any lease or any worker's word is of longer than somebody who lives gives it.
async fn from_the_future(pool: &PgPool) -> bool {
    let any = r#"SELECT EXISTS (SELECT 1 FROM "LogPartition" WHERE "leaseUntil" > now() + interval '1 minute')
                     OR EXISTS (SELECT 1 FROM "Worker" WHERE "aliveUntil" > now() + interval '1 minute')"#;
    sqlx::query_scalar(any).fetch_one(pool).await.unwrap()
}

/// How many partitions each worker owns, whatever its lease says, fewest first.
async fn owned(pool: &PgPool) -> Vec<i64> {
    let owned = r#"SELECT count(*) FROM "LogPartition" WHERE "owner" IS NOT NULL
                   GROUP BY "owner" ORDER BY 1"#;
    sqlx::query_scalar(owned).fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn leases_from_before_the_clock_was_set_back_hold_nobody_up() {
    let (stack, conversation) = talk_with_two_persisters().await;
    let pool = stack.pool();
    step_clock_back(&pool).await.unwrap();
    // The living share as before, once each has looked: one may have taken all for a moment.
    eventually(SHARE_WITHIN, "shares of 8 and 8", async || {
        !from_the_future(&pool).await && owned(&pool).await == [8, 8]
    })
    .await;
    conversation.is_delivered(20).await;
    // And those of the dead are taken over.
    let owner = persister_of(&stack, &conversation).await;
    stack.persister(owner).kill();
    step_clock_back(&pool).await.unwrap();
    share_as(&pool, TAKEOVER_WITHIN, &[16]).await;
    conversation.is_delivered(20).await;
    conversation.end(&stack).await;
}

#[tokio::test]
async fn a_lease_without_an_end_or_with_one_at_no_time_holds_nobody_up() {
    let stack = Stack::start().await;
    let pool = stack.pool();
    for end in ["'infinity'", "NULL", "now() + interval '4 seconds'"] {
        let stolen = format!(
            r#"UPDATE "LogPartition" SET "owner" = gen_random_uuid(), "leaseUntil" = {end}"#
        );
        sqlx::query(sqlx::AssertSqlSafe(stolen)).execute(&pool).await.unwrap();
        // One that is swept away at once, and one whose end is near enough to be believed by a sweep.
        let ghost = r#"
            INSERT INTO "Worker"
            VALUES (gen_random_uuid(), 'infinity'), (gen_random_uuid(), now() + interval '40 seconds')"#;
        sqlx::query(ghost).execute(&pool).await.unwrap();
        let within = std::time::Duration::from_millis(3_500);
        eventually(within, end, async || owned(&pool).await == [16] && shares(&pool).await == [16])
            .await;
    }
    let ghosts = r#"SELECT count(*) FROM "Worker" WHERE "aliveUntil" = 'infinity'"#;
    eventually(SHARE_WITHIN, "those are forgotten that live for ever", async || {
        sqlx::query_scalar::<_, i64>(ghosts).fetch_one(&pool).await.unwrap() == 0
    })
    .await;
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
        let proxy = stack.proxy(link, persister);
        proxy.freeze();
        share_as(&stack.pool(), TAKEOVER_WITHIN, &[16]).await;
        conversation.is_delivered(20).await;
        proxy.mend();
        share_as(&stack.pool(), SHARE_WITHIN, &[8, 8]).await;
    }
    conversation.end(&stack).await;
}

#[tokio::test]
async fn a_graceful_stop_hands_over_at_once() {
    let (stack, conversation) = talk_with_two_persisters().await;
    let (mut silences, mut handovers) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let owner = persister_of(&stack, &conversation).await;
        conversation.visitor.longest_silence().await;
        stack.persister(owner).ask_to_stop();
        let asked = Instant::now();
        share_as(&stack.pool(), TAKEOVER_WITHIN, &[16]).await;
        handovers.push(asked.elapsed());
        assert!(stack.persister(owner).exit_status(TAKEOVER_WITHIN).await.success());
        conversation.is_delivered(20).await;
        silences.push(conversation.visitor.longest_silence().await);
        stack.persister(owner).start().await;
        share_as(&stack.pool(), SHARE_WITHIN, &[8, 8]).await;
    }
    // A busy machine is silent too, but not every time: whoever waits for a lease to end always is.
    assert!(silences.iter().any(|silence| *silence < SILENT_AFTER_STOP), "{silences:?}");
    assert!(handovers.iter().any(|took| *took < HANDOVER_WITHIN), "{handovers:?}");
    conversation.end(&stack).await;
}

async fn talk_with_two_persisters() -> (Stack, Conversation) {
    let stack = Stack::builder()
        .persisters(2)
        .proxy(Link::PersisterPostgres)
        .proxy(Link::PersisterNats)
        .start()
        .await;
    share_as(&stack.pool(), SHARE_WITHIN, &[8, 8]).await;
    let conversation = Conversation::begin(&stack, &JsClients::start().await).await;
    conversation.is_delivered(5).await;
    (stack, conversation)
}

/// Who locks rows in one order never waits in a circle: a deadlock costs a second of silence.
#[tokio::test]
async fn a_lease_that_waits_for_a_partition_holds_no_later_one() {
    let stack = Stack::start().await;
    let pool = stack.pool();
    share_as(&pool, SHARE_WITHIN, &[16]).await;
    // Backwards on disk: so finds them a statement that does not care.
    stack.persister(0).pause();
    for statement in [
        r#"CREATE INDEX "backwards" ON "LogPartition" ("partition" DESC)"#,
        r#"CLUSTER "LogPartition" USING "backwards""#,
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    let mut first = pool.begin().await.unwrap();
    let lock = r#"SELECT FROM "LogPartition" WHERE "partition" = 0 FOR UPDATE"#;
    sqlx::query(lock).execute(&mut *first).await.unwrap();
    let waiting = "
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    stack.persister(0).resume();
    eventually(SHARE_WITHIN, "the lease waits", async || {
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&pool).await.unwrap() > 0
    })
    .await;
    let later = r#"SELECT FROM "LogPartition" WHERE "partition" > 0 FOR UPDATE NOWAIT"#;
    sqlx::query(later).execute(&pool).await.unwrap();
}
