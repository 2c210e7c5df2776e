//! The clients that people copy: those of the documents, and the two of the Node server's own.

use tests::{NodeRun, Stack};

/// All that a script printed; it must have ended well.
fn output(NodeRun { status, output }: NodeRun) -> String {
    assert!(status.success(), "{status}: {output}");
    output
}

/// These clients know a port only, and never end by themselves.
async fn until(stack: &Stack, text: &str, script: &str) -> String {
    let port = stack.gateway(0).url("").rsplit(':').next().unwrap_or_default().to_owned();
    output(tests::node(&["until.mjs", text, script], &[("PORT".into(), port)]).await)
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[tokio::test]
async fn the_clients_of_the_documentation_work() {
    let stack = Stack::start().await;
    the_readme_snippet(&stack).await;
    the_test_client_of_the_node_server(&stack).await;
    the_browser_console_example(&stack).await;
    the_bot(&stack).await;
}

async fn the_readme_snippet(stack: &Stack) {
    let output = output(stack.node("snippet.mjs", &[]).await);
    assert_eq!(count(&output, "in the log:"), 1, "{output}");
    assert_eq!(count(&output, "stored:"), 1, "{output}");
    assert_eq!(count(&output, "history:"), 1, "{output}");
    assert_eq!(count(&output, "content: 'Hello!'"), 2, "{output}");
}

async fn the_test_client_of_the_node_server(stack: &Stack) {
    let output = until(stack, "New message:", "test-socket.js").await;
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[0].starts_with("Connected: "), "{output}");
    assert!(output.contains("Session initialized: {"), "{output}");
    let message = output.split("New message: ").nth(1).unwrap_or_default();
    // The six keys of the seed, in its order, each on a line of its own.
    let keys: Vec<&str> =
        message.lines().filter_map(|line| line.strip_prefix("  ")?.split(':').next()).collect();
    assert_eq!(keys, ["id", "sender", "content", "createdAt", "isAI", "chatSessionId"], "{output}");
    assert!(message.contains("sender: 'user'") && message.contains("content: 'Testing message!'"));
    assert_eq!(count(&output, "New message:"), 1, "{output}");
}

async fn the_browser_console_example(stack: &Stack) {
    let output = until(stack, "Message received:", "browser-console.mjs").await;
    assert!(output.starts_with("Connected!\nSession: "), "{output}");
    assert_eq!(count(&output, "content: 'Test from browser!'"), 1, "{output}");
}

async fn the_bot(stack: &Stack) {
    stack.node_test("bot.test.mjs", &[]).await;
}
