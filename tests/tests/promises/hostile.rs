//! What a single client can do to harm: the faults themselves stand in `tests/client`.

use tests::Stack;

#[tokio::test]
async fn hostile_events_are_refused_and_nobody_else_notices() {
    survives("hostile.test.mjs").await;
}

#[tokio::test]
async fn hostile_bytes_are_refused_and_nobody_else_notices() {
    survives("frames.test.mjs").await;
}

/// The suite passes, the same processes still serve, and nothing wrong is stored or set aside.
async fn survives(suite: &str) {
    let stack = Stack::builder().busy().start().await;
    let ids = (stack.gateway(0).id(), stack.persister(0).id());
    stack.node_test(suite, &[]).await;
    assert!(stack.gateway(0).is_running() && stack.persister(0).is_running());
    assert_eq!(ids, (stack.gateway(0).id(), stack.persister(0).id()));
    assert_eq!(count(&stack, r#""Message" WHERE "content" NOT LIKE 'honest%'"#).await, 0);
    assert_eq!(count(&stack, r#""DeadLetter""#).await, 0);
    assert_ne!(count(&stack, r#""Message""#).await, 0);
    assert!(!stack.gateway(0).logs().contains("panicked"), "{}", stack.gateway(0).logs());
}

async fn count(stack: &Stack, what: &str) -> i64 {
    let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {what}"));
    sqlx::query_scalar(sql).fetch_one(&stack.pool()).await.unwrap()
}
