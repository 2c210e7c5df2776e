//! One Postgres for all test processes: the first starts it, the last leaves nothing running.
//!
//! Every test process holds a shared lock for as long as it lives. A keeper, the hidden subcommand
//! `stack __keep`, owns the server and waits for the exclusive lock: when it gets it, nobody is left,
//! whatever they died of. It then stops the server, removes the data and ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::Cluster;
use crate::launch::Output;
use crate::lock::Lock;
use crate::machine::Machine;
use crate::port::Port;
use crate::postgres::{Postgres, Settings};
use crate::run_dir;
use crate::tool;
use crate::wait;

/// The hidden subcommand of the keeper.
pub const KEEP: &str = "__keep";

/// Starting the server includes an `initdb` the first time, and perhaps fetching it.
const STARTS_WITHIN: Duration = Duration::from_mins(12);
/// A keeper that is about to end holds the lock while it cleans up.
const ENDS_WITHIN: Duration = Duration::from_mins(1);
/// Lines of the log to show when the server does not start.
const LAST_WORDS: usize = 20;
/// All test processes of a run share the server.
const MAX_CONNECTIONS: u32 = 400;

/// A share of the server; dropping it, or dying, gives it back.
#[derive(Debug)]
pub struct SharedPostgres {
    url: String,
    folder: PathBuf,
    _share: Lock,
}

impl SharedPostgres {
    /// Joins the others, or starts the server.
    pub fn join(machine: &Machine) -> Result<Self> {
        let files = Files::of(machine)?;
        let _starting = Lock::exclusive(&files.starting, STARTS_WITHIN)?;
        let share = Lock::shared(&files.users, ENDS_WITHIN)?;
        if Lock::try_exclusive(&files.keeper)?.is_some() {
            files.start_keeper(machine)?;
        }
        let url = fs::read_to_string(&files.url)?;
        Ok(Self { url, folder: files.folder, _share: share })
    }

    /// The URL of its maintenance database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A folder for locks that the users of the server share.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

struct Files {
    folder: PathBuf,
    /// Held while somebody joins.
    starting: PathBuf,
    /// Held, shared, by every user.
    users: PathBuf,
    /// Held by the keeper for its life.
    keeper: PathBuf,
    /// Where the server is, once it answers.
    url: PathBuf,
    log: PathBuf,
}

impl Files {
    fn of(machine: &Machine) -> Result<Self> {
        let folder = machine.folder("shared-postgres")?;
        let file = |name: &str| folder.join(name);
        let (starting, users, keeper) = (file("starting"), file("users"), file("keeper"));
        let (url, log) = (file("url"), file("log"));
        Ok(Self { folder, starting, users, keeper, url, log })
    }

    /// The keeper outlives us and must not hold our output open.
    fn start_keeper(&self, machine: &Machine) -> Result<()> {
        use std::os::unix::process::CommandExt;
        remove(&self.url)?;
        let log = fs::File::create(&self.log)?;
        let mut command = Command::new(machine.stack_binary());
        command.arg(KEEP).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut keeper =
            command.process_group(0).current_dir("/").spawn().context("cannot start the keeper")?;
        let started = || match keeper.try_wait()? {
            Some(status) => bail!(
                "the shared Postgres did not start ({status}):\n{}",
                tool::tail(&self.log, LAST_WORDS)
            ),
            None => Ok(self.url.exists().then_some(())),
        };
        wait::until(STARTS_WITHIN, "the shared Postgres", started)
    }
}

/// The life of the keeper.
pub fn keep(machine: &Machine) -> Result<()> {
    let files = Files::of(machine)?;
    let life = Lock::exclusive(&files.keeper, ENDS_WITHIN)?;
    let data = files.folder.join("data");
    run_dir::end_leftovers(&files.folder);
    remove(&data)?;
    let server = start(machine, &data)?;
    announce(&files.url, &server.url("postgres"))?;
    let _everybody = Lock::once_everybody_left(&files.users)?;
    remove(&files.url)?;
    server.discard()?;
    remove(&data)?;
    run_dir::sweep_all(machine)?;
    drop(life);
    Ok(())
}

fn start(machine: &Machine, data: &Path) -> Result<Postgres> {
    let cluster = Cluster::scratch(machine, data)?;
    let settings =
        Settings { durable: false, max_connections: MAX_CONNECTIONS, output: Output::Ours };
    let server = Postgres::new(machine, cluster, Port::reserve()?, settings);
    server.start()?;
    Ok(server)
}

/// A program that waits for the file must not read half of it.
fn announce(file: &Path, url: &str) -> Result<()> {
    let unfinished = file.with_extension("unfinished");
    crate::secret::write(&unfinished, url)?;
    Ok(fs::rename(&unfinished, file)?)
}

fn remove(path: &Path) -> Result<()> {
    match path {
        path if path.is_dir() => Ok(fs::remove_dir_all(path)?),
        path if path.exists() => Ok(fs::remove_file(path)?),
        _ => Ok(()),
    }
}
