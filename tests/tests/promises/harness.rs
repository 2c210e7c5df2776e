//! The harness itself: what tests rely on without looking.

use std::time::Duration;

use tests::{Database, Proxy, Stack, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SOON: Duration = Duration::from_secs(5);
/// Long enough for a byte that should not come to come.
const SILENCE: Duration = Duration::from_millis(200);

#[tokio::test]
async fn databases_are_separate_and_migrated() {
    let (one, other) = tokio::join!(Database::migrated(), Database::empty());
    assert_ne!(one.url(), other.url());
    assert_eq!(tables(&one).await, 2);
    assert_eq!(tables(&other).await, 0);
}

async fn tables(database: &Database) -> i64 {
    let pool = sqlx::PgPool::connect(database.url()).await.unwrap();
    let seed = "SELECT count(*) FROM pg_tables WHERE tablename IN ('ChatSession', 'Message')";
    sqlx::query_scalar(seed).fetch_one(&pool).await.unwrap()
}

#[tokio::test]
async fn a_proxy_carries_and_freezes_and_cuts() {
    let (proxy, _server) = echo().await;
    let mut client = connect(&proxy).await.unwrap();
    client.write_u8(b'a').await.unwrap();
    assert_eq!(hear(&mut client, SOON).await, Some(b'a'));
    proxy.freeze();
    client.write_u8(b'b').await.unwrap();
    assert_eq!(hear(&mut client, SILENCE).await, None);
    proxy.mend();
    assert_eq!(hear(&mut client, SOON).await, Some(b'b'));
    proxy.cut();
    let ended = tokio::time::timeout(SOON, client.read_u8()).await;
    assert!(ended.expect("an end").is_err());
    eventually(SOON, "new connections are refused", async || connect(&proxy).await.is_err()).await;
    proxy.mend();
    eventually(SOON, "connections are taken again", async || connect(&proxy).await.is_ok()).await;
}

async fn echo() -> (Proxy, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap().port()).await;
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    (proxy, server)
}

async fn connect(proxy: &Proxy) -> std::io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", proxy.port())).await
}

async fn hear(client: &mut TcpStream, within: Duration) -> Option<u8> {
    tokio::time::timeout(within, client.read_u8()).await.ok()?.ok()
}

#[tokio::test]
async fn a_stack_starts_and_its_services_die_and_come_back() {
    let stack = Stack::builder().persisters(2).start().await;
    let answer = stack.http().get(stack.url("/health")).send().await.unwrap();
    assert!(answer.status().is_success());
    stack.persister(0).kill();
    assert!(!stack.persister(0).is_running());
    assert!(stack.persister(1).is_running());
    stack.start_services().await;
    assert!(stack.gateway(0).terminate().await.success(), "{}", stack.gateway(0).logs());
    stack.gateway(0).start().await;
    assert!(stack.gateway(0).resident_bytes() > 1_000_000);
}

#[tokio::test]
async fn a_stack_can_break_its_servers() {
    let stack = Stack::builder().own_postgres().start().await;
    stack.nats().kill().await;
    stack.postgres().kill().await;
    stack.nats().start().await;
    stack.postgres().start().await;
    stack.nats().pause().await;
    stack.nats().resume().await;
    stack.postgres().pause().await;
    stack.postgres().resume().await;
    stack.gateway(0).ready().await;
    stack.persister(0).ready().await;
    stack.nats_client().await.flush().await.unwrap();
    sqlx::query("SELECT 1").execute(&stack.pool()).await.unwrap();
}

#[tokio::test]
async fn node_runs_with_the_real_client() {
    let script = "import('socket.io-client').then(({ io }) => console.log(typeof io))";
    let run = tests::node(&["-e", script], &[]).await;
    assert!(run.status.success(), "{}", run.output);
    assert_eq!(run.output.trim(), "function");
}
