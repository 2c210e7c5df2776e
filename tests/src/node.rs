//! Node, for the suite with the real JavaScript client.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use stack::find::{self, Node};
use stack::launch::{Output, Program};
use stack::lock::Lock;
use stack::npm;
use stack::run_dir::RunDir;
use stack::tool;
use tokio::sync::OnceCell;

use crate::binaries::{Binaries, workspace};
use crate::wait::{blocking, must};

/// 70 MB, over a slow line.
const INSTALLS_WITHIN: Duration = Duration::from_mins(10);
/// A script that hangs must fail its test before the test runner is killed.
const RUNS_WITHIN: Duration = Duration::from_mins(10);
/// A browser whose test waits for several outages in turn, on a busy machine.
const BROWSES_WITHIN: Duration = Duration::from_mins(15);

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
    run_in(client(), installed().await, args, env, RUNS_WITHIN).await
}

/// The same in `tests/web`, where what checks documents and pages is: it has more to install. `NPM` in its environment is
/// how npm is started, as JSON: a program and its first arguments.
pub async fn web_node(args: &[&str], env: &[(String, String)]) -> NodeRun {
    static NODE: OnceCell<Node> = OnceCell::const_new();
    // Pages talk to what `tests/client` has.
    installed().await;
    let node = NODE.get_or_init(|| blocking("installing what checks pages", || install(&web())));
    let node = node.await;
    let npm = must(serde_json::to_string(&node.npm), "saying how npm is started");
    let env: Vec<_> = env.iter().cloned().chain([("NPM".to_owned(), npm)]).collect();
    run_in(web(), node, args, &env, BROWSES_WITHIN).await
}

async fn run_in(
    folder: PathBuf,
    node: &Node,
    args: &[&str],
    env: &[(String, String)],
    within: Duration,
) -> NodeRun {
    let mut program = Program::new("node", &node.node).args(args.iter().copied());
    program.env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
    program.folder = Some(folder);
    blocking("running Node", move || run(program, within)).await
}

/// Node, once the packages of `tests/client` are installed.
pub(crate) async fn installed() -> &'static Node {
    static NODE: OnceCell<Node> = OnceCell::const_new();
    NODE.get_or_init(|| blocking("installing the JavaScript client", || install(&client()))).await
}

/// Runs `node --test` on one file of `tests/client`; panics with its output if it fails.
///
/// # Panics
/// That is how it fails.
pub async fn node_test(file: &str, env: &[(String, String)]) {
    let NodeRun { status, output } = node(&["--test", file], env).await;
    assert!(status.success(), "{file} failed ({status}):\n{output}");
}

fn run(program: Program, within: Duration) -> Result<NodeRun> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let machine = Binaries::get().machine();
    let home = RunDir::create(&machine)?;
    let log = home.path().join(format!("node-{}.log", COUNT.fetch_add(1, Ordering::Relaxed)));
    let program = Program { output: Output::File(log.clone()), ..program };
    let child = program.start(&machine)?;
    let status = child.wait(within);
    let output = fs::read_to_string(&log)?;
    Ok(NodeRun { status: status.with_context(|| output.clone())?, output })
}

/// The folder of the scripts.
pub(crate) fn client() -> PathBuf {
    workspace().join("tests/client")
}

/// What checks documents and pages.
fn web() -> PathBuf {
    workspace().join("tests/web")
}

/// `npm ci`, unless what it would install is there already.
fn install(folder: &Path) -> Result<Node> {
    let node = find::node(&Binaries::get().machine())?;
    let _lock = Lock::exclusive(&env::temp_dir().join("chat-tests-npm"), INSTALLS_WITHIN)?;
    let wanted = fs::read_to_string(folder.join("package-lock.json"))?;
    let installed = folder.join("node_modules/.installed");
    if fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) {
        eprintln!("installing the packages of {} …", folder.display());
        tool::run(npm::ci(&node, folder)?, INSTALLS_WITHIN)?;
        fs::write(&installed, wanted)?;
    }
    Ok(node)
}
