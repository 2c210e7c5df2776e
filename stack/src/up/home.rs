//! Where the data of a stack lie.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail};
use stack::lock::Lock;
use stack::machine::Machine;
use stack::run_dir::{self, RunDir};

use super::options::Options;
use super::settings::Settings;

/// For the owner alone; another user who runs Postgres must be able to pass.
const PRIVATE: u32 = 0o700;
const PASSABLE: u32 = 0o711;

/// The file with the addresses and passwords of the running servers.
pub(crate) const URLS: &str = "urls.env";

/// A folder that no other stack uses at the same time.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    keep: Keep,
}

/// What ends with the stack.
#[derive(Debug)]
enum Keep {
    /// The claim on data that stay.
    Lasting(#[expect(dead_code, reason = "held, not used")] Lock),
    /// The data, too.
    Fresh(#[expect(dead_code, reason = "held, not used")] RunDir),
}

impl Home {
    /// Takes the folder for these settings, and ends what a killed stack may have left running there.
    pub(crate) fn open(machine: &Machine, settings: &Settings, options: &Options) -> Result<Self> {
        if options.fresh {
            let folder = RunDir::create(machine)?;
            return Ok(Self { path: folder.path().to_path_buf(), keep: Keep::Fresh(folder) });
        }
        let path = data_folder(machine, settings)?.join(settings.port.to_string());
        make(machine, &path)?;
        let Some(lock) = Lock::try_exclusive(&path.join("lock"))? else {
            bail!(
                "a stack is running on the data in {}: stop it, or run a second one beside it with \
                 another port: cargo up --port {}",
                path.display(),
                settings.port.wrapping_add(10)
            );
        };
        run_dir::end_leftovers(&path);
        Ok(Self { path, keep: Keep::Lasting(lock) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the data end with the run.
    pub(crate) fn is_fresh(&self) -> bool {
        matches!(self.keep, Keep::Fresh(_))
    }
}

/// The folder of the stack that runs with these settings.
pub(crate) fn of_running(machine: &Machine, settings: &Settings) -> Result<PathBuf> {
    let path = data_folder(machine, settings)?.join(settings.port.to_string());
    let is_free = || Ok::<_, Error>(Lock::try_exclusive(&path.join("lock"))?.is_some());
    if !path.join(URLS).exists() || is_free()? {
        bail!(
            "no stack runs on port {}: start it with `cargo up`, in another terminal",
            settings.port
        );
    }
    Ok(path)
}

fn make(machine: &Machine, path: &Path) -> Result<()> {
    machine.make_folder(path)?;
    let mode = if machine.postgres_user().is_some() { PASSABLE } else { PRIVATE };
    let mode = fs::Permissions::from_mode(mode);
    fs::set_permissions(path, mode).with_context(|| format!("cannot use {}", path.display()))
}

/// The folder of the folders per port.
fn data_folder(machine: &Machine, settings: &Settings) -> Result<PathBuf> {
    if let Some(folder) = &settings.data_dir {
        if settings.database_url.is_none() && !machine.postgres_can_reach(folder) {
            bail!(
                "DATA_DIR is {}, where the user who runs Postgres for root cannot go: choose another",
                folder.display()
            );
        }
        return Ok(folder.clone());
    }
    if machine.postgres_can_reach(&settings.project) {
        return Ok(settings.project.join(".data"));
    }
    // Told apart by where the project lies, with the separators replaced.
    let project = settings.project.to_string_lossy().trim_matches('/').replace('/', "-");
    Ok(machine.base().join("data").join(project))
}
