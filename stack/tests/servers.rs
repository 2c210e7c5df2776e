//! The servers start, die, come back with their data, and leave nothing behind.

#![expect(clippy::unwrap_used, reason = "clippy does not see that helpers of tests are tests")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use stack::cluster::Cluster;
use stack::launch::Output;
use stack::machine::Machine;
use stack::nats::{self, Nats};
use stack::port::{self, Port};
use stack::postgres::{Postgres, Settings};
use stack::run_dir::RunDir;
use stack::shared_postgres::SharedPostgres;
use stack::{stats, wait};

const STACK: &str = env!("CARGO_BIN_EXE_stack");
const WITHIN: Duration = Duration::from_secs(30);
/// It may fetch nats-server first, over a slow line, and make a cluster of Postgres.
const STARTS_WITHIN: Duration = Duration::from_mins(10);

/// Says to the test that stands in for another process where to put its files.
const PLAY: &str = "STACK_TEST_PLAY";

fn machine() -> Machine {
    Machine::detect(STACK).unwrap()
}

fn postgres(machine: &Machine, home: &Path, durable: bool) -> Postgres {
    let cluster = Cluster::scratch(machine, &home.join("postgres")).unwrap();
    let settings = Settings {
        durable,
        output: Output::File(home.join("postgres.log")),
        ..Settings::default()
    };
    Postgres::new(machine, cluster, Port::reserve().unwrap(), settings)
}

#[test]
fn postgres_comes_back_after_every_kind_of_end() {
    let machine = machine();
    let home = RunDir::create(&machine).unwrap();
    let server = postgres(&machine, home.path(), true);
    server.start().unwrap();
    server.kill().unwrap();
    assert!(port::is_free(server.port()));
    server.start().unwrap();
    server.stop().unwrap();
    assert!(port::is_free(server.port()));
    server.start().unwrap();
    server.pause().unwrap();
    server.resume().unwrap();
    server.pause().unwrap();
    server.kill().unwrap();
    server.start().unwrap();
}

/// While one sweeps, others remove theirs.
#[test]
fn folders_are_made_and_removed_by_many_at_once() {
    let machine = machine();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let home = RunDir::create(&machine).unwrap();
                    for number in 0..20 {
                        fs::create_dir(home.path().join(number.to_string())).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn nats_comes_back_after_every_kind_of_end() {
    let machine = machine();
    let home = RunDir::create(&machine).unwrap();
    let settings = nats::Settings {
        sync_interval: Some("always".into()),
        password: true,
        output: Output::File(home.path().join("nats.log")),
        ..nats::Settings::default()
    };
    let server =
        Nats::new(&machine, &home.path().join("nats"), Port::reserve().unwrap(), settings).unwrap();
    server.start().unwrap();
    server.kill().unwrap();
    server.start().unwrap();
    server.stop().unwrap();
    assert!(port::is_free(server.port()));
    server.start().unwrap();
    assert!(stats::resident_bytes(server.id().unwrap()).unwrap() > 1_000_000);
}

#[test]
fn the_shared_postgres_ends_with_its_last_user_though_killed() {
    let cache = Cache::new("keeper");
    let first = cache.player("shared");
    let url = cache.wait_for("url");
    let second = cache.player("shared");
    assert_eq!(cache.wait_for("url"), url, "the second joins the first");
    end(first);
    assert!(runs_below(&cache.0), "one user is left");
    end(second);
    gone(&cache.0);
    let data = cache.0.join("chat-stack/shared-postgres/data");
    wait::until(WITHIN, "the data to go", || Ok((!data.exists()).then_some(()))).unwrap();
}

#[test]
fn servers_die_with_a_killed_parent() {
    let cache = Cache::new("orphans");
    let player = cache.player("own");
    cache.wait_for("up");
    assert!(runs_below(&cache.0));
    end(player);
    gone(&cache.0);
}

#[test]
fn a_frozen_postgres_is_ended_by_whoever_comes_next() {
    let cache = Cache::new("frozen");
    let player = cache.player("frozen");
    cache.wait_for("up");
    end(player);
    assert!(runs_below(&cache.0));
    let next = cache.player("own");
    cache.wait_for("up");
    end(next);
    gone(&cache.0);
}

/// Not a test: another process, that a test kills.
#[test]
#[ignore = "run by the tests beside it"]
fn player() {
    let Ok(play) = env::var(PLAY) else { return };
    let machine = machine();
    let place = PathBuf::from(env::var_os("XDG_CACHE_HOME").unwrap());
    match play.as_str() {
        "shared" => {
            let shared = SharedPostgres::join(&machine).unwrap();
            fs::write(place.join("url"), shared.url()).unwrap();
            std::thread::park();
        }
        _ => run_own(&machine, &place, play == "frozen"),
    }
}

fn run_own(machine: &Machine, place: &Path, frozen: bool) {
    let home = RunDir::create(machine).unwrap();
    let server = postgres(machine, home.path(), false);
    server.start().unwrap();
    let settings =
        nats::Settings { output: Output::File(home.path().join("nats.log")), ..Default::default() };
    let nats =
        Nats::new(machine, &home.path().join("nats"), Port::reserve().unwrap(), settings).unwrap();
    nats.start().unwrap();
    if frozen {
        server.pause().unwrap();
    }
    fs::write(place.join("up"), "up").unwrap();
    std::thread::park();
}

/// A cache folder of a test's own, so that it shares no server with others.
struct Cache(PathBuf);

impl Cache {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("stack-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn player(&self, play: &str) -> Child {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "player", "--ignored"]).stdout(Stdio::null());
        command.env(PLAY, play).env("XDG_CACHE_HOME", &self.0).spawn().unwrap()
    }

    /// Takes the file that a player leaves, so that the next one can leave it again.
    fn wait_for(&self, file: &str) -> String {
        let file = self.0.join(file);
        let left = || Ok(fs::read_to_string(&file).ok().filter(|text| !text.is_empty()));
        let text = wait::until(STARTS_WITHIN, "a player", left).unwrap();
        fs::remove_file(&file).unwrap();
        text
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // Whatever ends with its last user may still put its things away.
        let removed = || Ok(fs::remove_dir_all(&self.0).ok());
        wait::until(WITHIN, "the folder to be left", removed).unwrap();
    }
}

fn end(mut player: Child) {
    player.kill().unwrap();
    player.wait().unwrap();
}

fn gone(place: &Path) {
    wait::until(WITHIN, "everything to end", || Ok((!runs_below(place)).then_some(()))).unwrap();
}

/// Whether some process has this folder in its command line.
fn runs_below(place: &Path) -> bool {
    let table = stack::tool::output("ps", ["-A", "-o", "command="]).unwrap();
    table.lines().any(|line| line.contains(&*place.to_string_lossy()))
}
