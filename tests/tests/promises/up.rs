//! `cargo up`, as a person or a script uses it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use stack::launch::{self, Program};
use stack::run_dir::RunDir;
use stack::{Child, Port};
use tests::{eventually, machine, program};

/// A start, with a build that finds everything built.
const STARTS_WITHIN: Duration = Duration::from_mins(2);
/// After a `kill -9`.
const ENDS_WITHIN: Duration = Duration::from_mins(1);

/// A place for data, and a port.
struct Place {
    folder: RunDir,
    port: Port,
}

impl Place {
    fn new() -> Self {
        Self { folder: RunDir::create(&machine()).unwrap(), port: Port::reserve().unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Runs it to its end; this database is somebody else's.
    fn run(&self, args: &[&str], database: &str) -> Output {
        let mut command = Command::new(program("stack"));
        command.args(self.args()).args(args).envs(self.env()).env("DATABASE_URL", database);
        command.output().unwrap()
    }

    async fn start(&self) -> Child {
        let said = self.folder.path().join("said");
        let up = Program {
            env: self.env().map(|(name, value)| (name.into(), value)).into(),
            output: launch::Output::Report(said.clone()),
            ..Program::new("cargo up", program("stack")).args(self.args())
        };
        let child = up.start(&machine()).unwrap();
        eventually(STARTS_WITHIN, "cargo up says that it is ready", async || {
            fs::read_to_string(&said).unwrap().contains("  Stop ")
        })
        .await;
        child
    }

    /// What it said when everything ran.
    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap()
    }

    fn args(&self) -> Vec<String> {
        let release = (!cfg!(debug_assertions)).then(|| "--release".to_owned());
        ["--port".to_owned(), self.port.number().to_string()].into_iter().chain(release).collect()
    }

    fn env(&self) -> [(&'static str, OsString); 4] {
        let unset = |name| (name, OsString::new());
        [("DATA_DIR", self.data().into()), unset("DATABASE_URL"), unset("NATS_URL"), unset("HOST")]
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether some process has this folder in its command line.
fn runs_below(folder: &Path) -> bool {
    let table = stack::tool::output("ps", ["-A", "-o", "command="]).unwrap();
    table.lines().any(|line| line.contains(&*folder.to_string_lossy()))
}

#[tokio::test]
async fn a_command_runs_against_the_stack_and_its_exit_code_counts() {
    let place = Place::new();
    let script = "echo $GATEWAY_URL; test -n \"$DATABASE_URL$NATS_URL\" && exit 7";
    let run = place.run(&["--fresh", "--", "sh", "-c", script], "");
    assert_eq!(run.status.code(), Some(7), "{}", text(&run.stderr));
    assert_eq!(text(&run.stdout).trim(), format!("http://127.0.0.1:{}", place.port.number()));
    assert!(!place.data().exists(), "--fresh touches no lasting data");
}

#[tokio::test]
async fn a_killed_stack_leaves_nothing_running_and_its_data_for_the_next() {
    let place = Place::new();
    let first = place.start().await;
    let second = place.run(&[], "");
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("a stack is running on the data in"));
    assert_eq!(text(&second.stderr).trim().lines().count(), 1, "{}", text(&second.stderr));

    let urls = place.data().join(place.port.number().to_string()).join("urls.env");
    let urls = fs::read_to_string(urls).unwrap();
    let (_, database) = urls.lines().next().unwrap().split_once('=').unwrap();
    let pool = sqlx::PgPool::connect(database).await.unwrap();
    sqlx::query("CREATE TABLE kept ()").execute(&pool).await.unwrap();

    first.kill().unwrap();
    let data = place.data();
    eventually(ENDS_WITHIN, "everything ended", async || !runs_below(&data)).await;
    let third = place.start().await;
    let pool = sqlx::PgPool::connect(database).await.unwrap();
    sqlx::query("SELECT FROM kept").execute(&pool).await.unwrap();
    third.kill().unwrap();
    eventually(ENDS_WITHIN, "everything ended", async || !runs_below(&data)).await;
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_line() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind(("127.0.0.1", place.port.number())).unwrap();
    let run = place.run(&[], "");
    assert!(text(&run.stderr).starts_with("port "), "{}", text(&run.stderr));
    drop(taken);
    let away = format!("postgresql://127.0.0.1:{}/x", Port::reserve().unwrap().number());
    let run = place.run(&[], &away);
    assert!(text(&run.stderr).starts_with("DATABASE_URL points at"), "{}", text(&run.stderr));
    assert_eq!(text(&run.stderr).trim().lines().count(), 1, "{}", text(&run.stderr));
}

#[tokio::test]
async fn what_runs_is_said_in_one_block_and_its_tools_find_it() {
    let place = Place::new();
    let nothing = place.run(&["psql"], "");
    assert!(text(&nothing.stderr).starts_with("no stack runs on port "), "{nothing:?}");
    let up = place.start().await;
    let said = place.said();
    let url = format!("http://127.0.0.1:{}", place.port.number());
    for line in [format!("Chat      {url}"), format!("Docs      {url}/docs")] {
        assert!(said.contains(&line), "{said}");
    }
    assert_eq!(said.matches("/metrics").count(), 2, "{said}");
    assert!(!said.contains('\x1b') && !said.contains("chat:"), "plain, and no password: {said}");

    the_pages_to_try_it_are_there(&said, &url).await;
    let psql = place.run(&["psql", "-X", "-A", "-t", "-c", "SELECT 6 * 7"], "");
    let (answer, why) = (text(&psql.stdout), text(&psql.stderr));
    if stack::find::psql().is_ok() {
        assert_eq!(answer.trim(), "42", "{why}");
    } else {
        // The servers that are fetched come without it.
        assert!(!psql.status.success() && why.contains("apt install postgresql-client"), "{why}");
        println!("NOT CHECKED: cargo up psql. There is no psql here.");
    }
    let status = place.run(&["persister", "migrate", "status"], "");
    assert!(text(&status.stdout).starts_with("applied  1  "), "{}", text(&status.stderr));
    let none = place.run(&["persister", "dead-letters", "list"], "");
    assert!(text(&none.stderr).contains("there are no dead letters"), "{}", text(&none.stderr));
    let wrong = place.run(&["persister", "dead-letters", "show", "7"], "");
    assert_eq!(wrong.status.code(), Some(1));
    assert_eq!(text(&wrong.stderr).trim(), "there is no dead letter 7");
    up.stop(stack::child::Signal::TERM, ENDS_WITHIN).unwrap();
}

/// Where npm cannot fetch what they load, the block says so.
async fn the_pages_to_try_it_are_there(said: &str, url: &str) {
    if said.contains("Try it    not yet: ") {
        println!("NOT CHECKED: the pages of cargo up. npm has not fetched what they load.");
        return;
    }
    assert!(said.contains(&format!("Try it    {url}/  as a visitor")), "{said}");
    for path in ["/", "/agent", "/socket.io/socket.io.min.js"] {
        let answer = reqwest::get(format!("{url}{path}")).await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
    }
}

#[tokio::test]
async fn a_refused_setting_is_the_last_line_and_is_said_once() {
    let place = Place::new();
    let mut command = Command::new(program("stack"));
    command.args(place.args()).arg("--fresh").envs(place.env()).env("PARTITIONS", "many");
    let run = command.output().unwrap();
    let said = text(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("PARTITIONS").count(), 1, "{said}");
    assert!(said.trim().lines().last().unwrap().starts_with("PARTITIONS: "), "{said}");
    assert!(!said.contains('\x1b'), "{said}");
}

/// Packages with their features, as they are built for these.
fn built_for(packages: &[&str], edges: &str) -> BTreeSet<String> {
    let mut cargo = Command::new(stack::build::cargo());
    cargo.args(["tree", "--locked", "--prefix=none", "--no-dedupe", "--format={p} [{f}]"]);
    cargo.args(["--edges", edges]).args(packages);
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| line.replace(" (*)", "")).collect()
}

#[test]
fn only_what_runs_is_built_and_nothing_twice() {
    let services = built_for(stack::build::SERVICES, "normal,no-proc-macro");
    for tests_only in ["tests v", "jsonschema v", "reqwest v", "proptest v"] {
        assert!(!services.iter().any(|one| one.starts_with(tests_only)), "{tests_only}");
    }
    // `cargo test`, and the services that its tests start.
    let everything = built_for(stack::build::WORKSPACE, "normal,dev,no-proc-macro");
    let other: Vec<_> = services.difference(&everything).collect();
    assert!(
        other.is_empty(),
        "`cargo test` builds these with more features; ask for them in the services, too: {other:#?}"
    );
}
