//! A client that comes back with `after` misses nothing and sees nothing twice.

use tests::Stack;

#[tokio::test]
async fn a_client_resumes_without_gap_or_repeat_on_any_gateway() {
    let stack = Stack::builder().gateways(2).persisters(2).start().await;
    stack.node_test("resume.test.mjs", &[]).await;
}

#[tokio::test]
async fn a_resume_that_postgres_cannot_answer_is_unavailable_and_keeps_the_id() {
    let stack = Stack::builder().own_postgres().start().await;
    let client = tests::Puppet::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    stack.postgres().kill().await;
    let resume = serde_json::json!({ "sessionId": session, "after": "" });
    let ack = client.ask("init_session", resume).await;
    assert_eq!(
        (&ack["sessionId"], &ack["error"]["code"]),
        (&session.as_str().into(), &"unavailable".into())
    );
    // Without `after` there is nothing to read: a returning visitor keeps the conversation.
    let ack = client.ask("init_session", serde_json::json!({ "sessionId": session })).await;
    assert_eq!(ack["sessionId"], session.as_str());
    assert!(ack["error"].is_null(), "{ack}");
}
