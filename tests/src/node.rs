//! Node, for the suite with the real JavaScript client.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use stack::find::{self, Node};
use stack::launch::{Output, Program};
use stack::lock::Lock;
use stack::run_dir::RunDir;
use stack::tool;
use tokio::sync::OnceCell;

use crate::binaries::{Binaries, workspace};
use crate::wait::blocking;

/// Nine small packages, over a slow line.
const INSTALLS_WITHIN: Duration = Duration::from_mins(5);
/// A script that hangs must fail its test before the test runner is killed.
const RUNS_WITHIN: Duration = Duration::from_mins(5);

/// How a script ended.
#[derive(Clone, Debug)]
pub struct NodeRun {
    /// Its exit status.
    pub status: ExitStatus,
    /// All that it printed.
    pub output: String,
}

/// Runs `node args…` in `tests/client`, whose packages are installed first.
pub async fn node(args: &[&str], env: &[(String, String)]) -> NodeRun {
    let node = installed().await;
    let mut program = Program::new("node", &node.node).args(args.iter().copied());
    program.env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
    blocking("running Node", move || run(program)).await
}

/// Node, once the packages of `tests/client` are installed.
pub(crate) async fn installed() -> &'static Node {
    static NODE: OnceCell<Node> = OnceCell::const_new();
    NODE.get_or_init(|| blocking("installing the JavaScript client", install)).await
}

/// Runs `node --test` on one file of `tests/client`; panics with its output if it fails.
///
/// # Panics
/// That is how it fails.
pub async fn node_test(file: &str, env: &[(String, String)]) {
    let NodeRun { status, output } = node(&["--test", file], env).await;
    assert!(status.success(), "{file} failed ({status}):\n{output}");
}

fn run(program: Program) -> Result<NodeRun> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let machine = Binaries::get().machine();
    let home = RunDir::create(&machine)?;
    let log = home.path().join(format!("node-{}.log", COUNT.fetch_add(1, Ordering::Relaxed)));
    let program = Program { folder: Some(client()), output: Output::File(log.clone()), ..program };
    let child = program.start(&machine)?;
    let status = child.wait(RUNS_WITHIN);
    let output = fs::read_to_string(&log)?;
    Ok(NodeRun { status: status.with_context(|| output.clone())?, output })
}

/// The folder of the scripts.
pub(crate) fn client() -> PathBuf {
    workspace().join("tests/client")
}

/// `npm ci`, unless what it would install is there already.
fn install() -> Result<Node> {
    let node = find::node(&Binaries::get().machine())?;
    let folder = client();
    let _lock = Lock::exclusive(&env::temp_dir().join("chat-tests-npm"), INSTALLS_WITHIN)?;
    let wanted = fs::read_to_string(folder.join("package-lock.json"))?;
    let installed = folder.join("node_modules/.installed");
    if fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) {
        eprintln!("installing the JavaScript client …");
        tool::run(npm_ci(&node, &folder)?, INSTALLS_WITHIN)?;
        fs::write(&installed, wanted)?;
    }
    Ok(node)
}

fn npm_ci(node: &Node, folder: &Path) -> Result<Command> {
    let (program, args) = node.npm.split_first().context("no npm")?;
    let mut npm = Command::new(program);
    npm.args(args).args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
    npm.current_dir(folder).env("PATH", path_with(&node.node)?);
    Ok(npm)
}

/// npm looks for `node` on PATH.
fn path_with(node: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let first = node.parent().map(Path::to_path_buf);
    Ok(env::join_paths(first.into_iter().chain(env::split_paths(&path)))?)
}
