//! The runbooks' commands, as they stand there, against a running stack.

#![expect(clippy::expect_used, reason = "clippy does not see that helpers of tests are tests")]

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use stack::find;
use stack::run_dir::RunDir;
use tests::{Client, Conversation, Disk, Puppet, Service, Stack, eventually, machine, program};
use tokio::process::Command;

const SOON: Duration = Duration::from_secs(20);
/// Sleeps and looks every few seconds are part of them.
const RUNS_WITHIN: Duration = Duration::from_mins(1);

/// Mebibytes of a disk with what is needed at first, and some.
const NATS_DISK: u32 = 64;
const POSTGRES_DISK: u32 = 160;

fn runbooks() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.runbooks")
}

fn read(file: &str) -> String {
    fs::read_to_string(runbooks().join(file)).expect(file)
}

/// The commands of a runbook, block by block.
fn blocks(file: &str) -> Vec<String> {
    let text = read(file);
    let blocks = text.split("```bash\n").skip(1);
    blocks.filter_map(|rest| Some(rest.split("```").next()?.to_owned())).collect()
}

/// A shell as the runbooks want it.
struct Shell {
    home: RunDir,
    path: OsString,
}

impl Shell {
    /// Where Postgres's own programs are on this machine.
    async fn open() -> Option<Self> {
        let prepare = || {
            let machine = machine();
            let postgres = find::postgres(&machine, None).expect("Postgres");
            let persister = program("persister").parent().map(Path::to_path_buf);
            let own = env::var_os("PATH").unwrap_or_default();
            let folders = [postgres].into_iter().chain(persister).chain(env::split_paths(&own));
            let path = env::join_paths(folders).expect("folders");
            let home = RunDir::create(&machine).expect("a folder");
            Self { home, path }
        };
        let shell = tokio::task::spawn_blocking(prepare).await.expect("a shell");
        let found = |name: &str| env::split_paths(&shell.path).any(|at| at.join(name).is_file());
        if ["psql", "pg_dump", "pg_restore", "curl", "awk", "bash"].into_iter().all(found) {
            return Some(shell);
        }
        eprintln!("NOT CHECKED: psql, pg_dump, pg_restore or curl is not here");
        None
    }

    /// Runs a block; what it printed.
    async fn run(&self, stack: &Stack, block: &str) -> String {
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", block]).current_dir(self.home.path());
        bash.env("PATH", &self.path).env("DATABASE_URL", stack.database_url());
        bash.env("NATS_URL", stack.nats().url());
        bash.env("OPS", format!("127.0.0.1:{}", stack.persister(0).ops_port())).kill_on_drop(true);
        let output = tokio::time::timeout(RUNS_WITHIN, bash.output()).await;
        let output = output.unwrap_or_else(|_| panic!("it does not end: {block}"));
        let output = output.expect("bash");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{block}\n{printed}\n{complaints}");
        printed
    }
}

async fn terminate(service: &Service) {
    assert!(service.terminate().await.success(), "{}", service.logs());
}

async fn enter(stack: &Stack) -> (Client, String) {
    let client = Puppet::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().expect("an id").to_owned();
    (client, session)
}

async fn say(client: &Client, session: &str, count: usize) {
    for n in 0..count {
        let said = json!({ "sessionId": session, "content": n.to_string() });
        assert_eq!(client.ask("user_message", said).await["status"], "accepted");
    }
}

async fn history(stack: &Stack, session: &str) -> Vec<Value> {
    let url = stack.url(&format!("/api/chats/{session}"));
    stack.http().get(url).send().await.expect("an answer").json().await.expect("a history")
}

async fn is_stored(stack: &Stack, session: &str, count: usize) {
    eventually(SOON, "everything is stored", async || history(stack, session).await.len() == count)
        .await;
}

#[tokio::test]
async fn a_restored_backup_catches_up_by_the_commands_of_the_runbook() {
    let Some(shell) = Shell::open().await else { return };
    let stack = Stack::start().await;
    let (client, session) = enter(&stack).await;
    let [back_up, restore, wait] = blocks("restore.md").try_into().expect("three blocks");
    say(&client, &session, 10).await;
    is_stored(&stack, &session, 10).await;
    shell.run(&stack, &back_up).await;
    say(&client, &session, 10).await;
    is_stored(&stack, &session, 20).await;
    let before = history(&stack, &session).await;
    terminate(stack.persister(0)).await;
    shell.run(&stack, &restore).await;
    assert_eq!(history(&stack, &session).await, before[..10], "an older one");
    say(&client, &session, 5).await;
    stack.persister(0).start().await;
    shell.run(&stack, &wait).await;
    is_stored(&stack, &session, 25).await;
    assert_eq!(history(&stack, &session).await[..20], before);
    eventually(SOON, "it is shown once", async || client.messages().await.len() == 25).await;
}

#[tokio::test]
async fn a_poisoned_record_is_looked_at_put_back_and_dropped() {
    let Some(shell) = Shell::open().await else { return };
    let stack = Stack::start().await;
    let (client, session) = enter(&stack).await;
    let [look, requeue, drop] = blocks("dead-letters.md").try_into().expect("three blocks");
    let stream = async_nats::jetstream::new(stack.nats_client().await);
    let subject = "chat.requests.3.22222222-2222-4222-8222-222222222222";
    stream.publish(subject, "poison".into()).await.expect("sent").await.expect("taken");
    say(&client, &session, 5).await;
    is_stored(&stack, &session, 5).await;
    let listed = async || shell.run(&stack, "persister dead-letters list").await;
    eventually(SOON, "it is set aside", async || listed().await.contains("22222222")).await;
    assert!(shell.run(&stack, &look).await.contains("poison"));
    shell.run(&stack, &requeue).await;
    // Nothing was mended: it is set aside again, under another number.
    eventually(SOON, "it is set aside again", async || listed().await.contains("22222222")).await;
    shell.run(&stack, &drop).await;
    assert!(!listed().await.contains("22222222"));
}

#[tokio::test]
async fn the_partition_count_is_changed_up_and_down_and_nothing_is_lost() {
    let Some(shell) = Shell::open().await else { return };
    let stack = Stack::builder().persisters(2).start().await;
    let (client, session) = enter(&stack).await;
    let [drain, delete] = blocks("partitions.md").try_into().expect("two blocks");
    let mut said = 0;
    for partitions in ["32", "8"] {
        say(&client, &session, 10).await;
        said += 10;
        terminate(stack.gateway(0)).await;
        terminate(stack.persister(1)).await;
        shell.run(&stack, &drain).await;
        terminate(stack.persister(0)).await;
        shell.run(&stack, &delete).await;
        for service in stack.persisters().iter().chain(stack.gateways()) {
            service.set_env("PARTITIONS", partitions);
        }
        stack.start_services().await;
        client.connected().await;
        is_stored(&stack, &session, said).await;
        say(&client, &session, 10).await;
        said += 10;
        is_stored(&stack, &session, said).await;
    }
    eventually(SOON, "it is shown once", async || client.messages().await.len() == said).await;
}

/// What operators are told.
async fn readiness(stack: &Stack, service: &Service) -> String {
    let answer = stack.http().get(service.ops_url("/ready")).send().await.expect("an answer");
    answer.text().await.expect("a report")
}

async fn says(stack: &Stack, service: &Service, line: &str) {
    let what = format!("{} says {line}", service.name());
    eventually(SOON, &what, async || readiness(stack, service).await.contains(line)).await;
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
    let conversation = Conversation::begin(&stack, &Puppet::start().await).await;
    conversation.is_delivered(10).await;
    disk.fill();
    says(&stack, stack.gateway(0), "nats: unavailable").await;
    assert!(stack.gateway(0).logs().contains("the log takes nothing"));
    assert!(stack.logs().contains("no space left on device"), "NATS says why");
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
    let conversation = Conversation::begin(&stack, &Puppet::start().await).await;
    conversation.is_delivered(10).await;
    disk.fill();
    says(&stack, stack.persister(0), "postgres: unavailable").await;
    assert!(stack.persister(0).logs().contains("No space left on device"));
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
    let conversation = Conversation::begin(&stack, &Puppet::start().await).await;
    conversation.is_delivered(10).await;
    disk.fill();
    // What hours of writing do: a new file of the write-ahead log is needed.
    let pool = stack.pool();
    eventually(SOON, "Postgres ends", async || {
        sqlx::query("SELECT pg_switch_wal()").execute(&pool).await.ok();
        stack.postgres().ended()
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

#[tokio::test]
async fn the_other_commands_run() {
    let Some(shell) = Shell::open().await else { return };
    let stack = Stack::start().await;
    for file in ["upgrade.md", "full-disk.md"] {
        for block in blocks(file) {
            shell.run(&stack, &block).await;
        }
    }
}

#[test]
fn every_runbook_is_listed_and_every_link_leads_somewhere() {
    let list = read("README.md");
    for file in fs::read_dir(runbooks()).expect("runbooks").flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        assert!(name == "README.md" || list.contains(&format!("]({name})")), "{name}");
        let text = read(&name);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            assert!(runbooks().join(target).exists(), "{name}: {target}");
        }
    }
}
