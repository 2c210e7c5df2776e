//! What comes from npm, by lock files: packages of the tests, and the files of Socket.IO's client that gateways serve.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::find::{self, Node};
use crate::lock::Lock;
use crate::machine::Machine;
use crate::tool;

/// Nine small packages, over a slow line. Nobody waits longer for a page to try.
const FETCH_WITHIN: Duration = Duration::from_mins(1);
/// What npm reads.
const MANIFEST: [&str; 2] = ["package.json", "package-lock.json"];
/// The package with the files for browsers, and where they lie in it.
const CLIENT: &str = "node_modules/socket.io-client";
const FILES: &str = "dist";

/// `npm ci` in a folder.
pub fn ci(node: &Node, folder: &Path) -> Result<Command> {
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

/// The folder with the files of Socket.IO's client for browsers, of the version that this project locks; fetched
/// unless they are there. The error says in a line what is missing.
///
/// Node is not fetched for this: 40 MB for a page to try.
pub fn client_files(machine: &Machine, project: &Path) -> Result<PathBuf> {
    let manifest = project.join("web/socket.io");
    let folder = machine.folder("npm")?;
    let target = folder.join(format!("socket.io-client-{}", locked_version(&manifest)?));
    let files = target.join(CLIENT).join(FILES);
    if files.exists() {
        return Ok(files);
    }
    let node =
        find::local_node().context("there is no Node with npm here: apt install nodejs npm")?;
    let _lock = Lock::exclusive(&folder.join("lock"), FETCH_WITHIN)?;
    if !files.exists() {
        fetch(&node, &manifest, &target).context("npm cannot fetch socket.io-client")?;
    }
    Ok(files)
}

fn locked_version(manifest: &Path) -> Result<String> {
    let text = fs::read_to_string(manifest.join(MANIFEST[1]))?;
    let lock: Value = serde_json::from_str(&text)?;
    let version = lock["packages"][CLIENT]["version"].as_str();
    Ok(version.context("the lock file names no socket.io-client")?.to_owned())
}

/// Installs beside the target and renames, so that a killed npm leaves nothing half done in place.
fn fetch(node: &Node, manifest: &Path, target: &Path) -> Result<()> {
    let unfinished = target.with_extension(format!("unfinished-{}", process::id()));
    fs::create_dir_all(&unfinished)?;
    for name in MANIFEST {
        fs::copy(manifest.join(name), unfinished.join(name))?;
    }
    eprintln!("fetching socket.io-client for browsers …");
    let mut npm = ci(node, &unfinished)?;
    npm.arg("--ignore-scripts");
    let fetched = tool::run(npm, FETCH_WITHIN);
    if let Err(error) = fetched {
        fs::remove_dir_all(&unfinished)?;
        let text = format!("{error:#}");
        return Err(anyhow::Error::msg(text.lines().next().unwrap_or_default().to_owned()));
    }
    fs::rename(&unfinished, target).context("cannot move the fetched files into place")
}
