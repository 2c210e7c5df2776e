//! The runbooks in `docs/operating`, and a shell that runs their commands as they stand there.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use stack::find;
use stack::run_dir::RunDir;
use tokio::process::Command;

use crate::backend::Backend;
use crate::binaries::{machine, program, workspace};
use crate::stack::Stack;
use crate::wait::{blocking, must};

/// Sleeps and looks every few seconds are part of them.
const RUNS_WITHIN: Duration = Duration::from_mins(1);
/// What they use.
const PROGRAMS: [&str; 6] = ["psql", "pg_dump", "pg_restore", "curl", "awk", "bash"];

/// Where they lie.
pub fn folder() -> PathBuf {
    workspace().join("docs/operating")
}

/// One of them.
pub fn text(file: &str) -> String {
    must(fs::read_to_string(folder().join(file)), file)
}

/// The commands of one, block by block.
pub fn blocks(file: &str) -> Vec<String> {
    let text = text(file);
    let blocks = text.split("```bash\n").skip(1);
    blocks.filter_map(|rest| Some(rest.split("```").next()?.to_owned())).collect()
}

/// A shell as the runbooks want it.
#[derive(Debug)]
pub struct Shell {
    home: RunDir,
    path: OsString,
}

impl Shell {
    /// Opens one, with Postgres's own programs and `persister` on its PATH. `None`, and a line that says so,
    /// where a program is missing.
    pub async fn open() -> Option<Self> {
        let shell = blocking("opening a shell", || {
            let machine = machine();
            let postgres = find::postgres(&machine, None)?;
            let persister = program("persister").parent().map(Path::to_path_buf);
            let own = env::var_os("PATH").unwrap_or_default();
            let folders = [postgres].into_iter().chain(persister).chain(env::split_paths(&own));
            Ok(Self { home: RunDir::create(&machine)?, path: env::join_paths(folders)? })
        });
        let shell = shell.await;
        let found = |name: &str| env::split_paths(&shell.path).any(|at| at.join(name).is_file());
        if !PROGRAMS.into_iter().all(found) {
            eprintln!("NOT CHECKED: one of these is not here: {}", PROGRAMS.join(", "));
            return None;
        }
        Some(shell)
    }

    /// Opens one that can back up a stack's database. `None`, and a line that says so, also where `pg_dump` is older
    /// than the stack's Postgres, which it refuses then.
    pub async fn open_to_back_up() -> Option<Self> {
        let shell = Self::open().await?;
        if let Some(server) = Backend::chosen().postgres_major()
            && shell.pg_dump_major().await < server
        {
            eprintln!("NOT CHECKED: pg_dump is older than Postgres {server}");
            return None;
        }
        Some(shell)
    }

    async fn pg_dump_major(&self) -> u32 {
        // pg_dump (PostgreSQL) 18.6
        let printed = self.run_with(&[], "pg_dump --version").await;
        let version = printed.split_whitespace().nth(2);
        let major = version.and_then(|version| version.split('.').next()?.parse().ok());
        must(major.with_context(|| printed.clone()), "reading a version")
    }

    /// The folder that it works in.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Runs a block about a stack; what it printed.
    ///
    /// # Panics
    /// If it fails or does not end.
    pub async fn run(&self, stack: &Stack, block: &str) -> String {
        let ops = format!("127.0.0.1:{}", stack.persister(0).ops_port());
        let nats = stack.nats().url();
        let variables =
            [("DATABASE_URL", stack.database_url()), ("NATS_URL", &nats), ("OPS", &ops)];
        self.run_with(&variables, block).await
    }

    /// Runs a block with variables of its own; what it printed.
    ///
    /// # Panics
    /// If it fails or does not end.
    pub async fn run_with(&self, variables: &[(&str, &str)], block: &str) -> String {
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", block]).current_dir(self.home());
        bash.env("PATH", &self.path).envs(variables.iter().copied()).kill_on_drop(true);
        let output = tokio::time::timeout(RUNS_WITHIN, bash.output()).await;
        let output = output.unwrap_or_else(|_| panic!("it does not end: {block}"));
        let output = must(output, "bash");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{block}\n{printed}\n{complaints}");
        printed
    }
}
