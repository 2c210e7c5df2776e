//! Postgres's data on disk, made by `initdb`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::find;
use crate::lock::Lock;
use crate::machine::Machine;
use crate::secret;
use crate::tool;

/// The superuser of our clusters.
pub const SUPERUSER: &str = "chat";
/// The database that data which are to stay lie in.
const LASTING_DATABASE: &str = "chat";
/// The database that every cluster has.
pub const MAINTENANCE_DATABASE: &str = "postgres";

const INITDB_WITHIN: Duration = Duration::from_mins(2);
const COPY_WITHIN: Duration = Duration::from_mins(1);
const OWNER_ONLY: u32 = 0o700;

/// Passwords in the clear never leave the machine here, and spare every test connection the
/// thousands of hash rounds of SCRAM.
const SCRATCH_AUTH: &str = "password";
const LASTING_AUTH: &str = "scram-sha-256";

/// A cluster that can be started.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The folder with the programs.
    pub bin: PathBuf,
    /// The data folder.
    pub data: PathBuf,
    /// The superuser's password.
    pub password: String,
    /// An empty database to use.
    pub database: &'static str,
}

impl Cluster {
    /// The cluster in `home/postgres`, made with an empty database if there is none.
    pub fn lasting(machine: &Machine, home: &Path) -> Result<Self> {
        let data = home.join("postgres");
        let password = secret::kept_in(&home.join("postgres.password"))?;
        let major = made_by(&data);
        let bin = find::postgres(machine, major)?;
        refuse_other_version(&bin, major, &data)?;
        let cluster = Self { bin, data, password, database: LASTING_DATABASE };
        if major.is_none() {
            cluster.init(machine, LASTING_AUTH, &[])?;
        }
        Ok(cluster)
    }

    /// A new cluster in `data` for tests: a copy of one that was made earlier.
    pub fn scratch(machine: &Machine, data: &Path) -> Result<Self> {
        let bin = find::postgres(machine, None)?;
        let template = template(machine, &bin)?;
        make_private(machine, data)?;
        let from = template.data.join(".");
        let mut copy = Command::new("cp");
        copy.arg("-R").arg(from).arg(data);
        as_postgres(machine, &mut copy);
        tool::run(copy, COPY_WITHIN)?;
        Ok(Self { data: data.to_path_buf(), ..template })
    }

    /// Makes it beside its place and moves it there: a killed initdb leaves nothing half done.
    fn init(&self, machine: &Machine, auth: &str, more: &[&str]) -> Result<()> {
        let unfinished = self.data.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        make_private(machine, &unfinished)?;
        self.initdb(machine, &unfinished, auth, more)?;
        if self.database != MAINTENANCE_DATABASE {
            self.create_database(machine, &unfinished)?;
        }
        fs::rename(&unfinished, &self.data).context("cannot move the new cluster into place")
    }

    fn initdb(&self, machine: &Machine, data: &Path, auth: &str, more: &[&str]) -> Result<()> {
        let password = data.with_extension("pwfile");
        secret::write(&password, &self.password)?;
        if let Some(user) = machine.postgres_user() {
            user.take(&password)?;
        }
        let mut command = Command::new(self.bin.join("initdb"));
        command.arg("-D").arg(data).arg("--pwfile").arg(&password).args(more);
        command.args(["-U", SUPERUSER, "-A", auth, "-E", "UTF8", "--locale=C"]);
        as_postgres(machine, &mut command);
        let result = tool::run(command, INITDB_WITHIN);
        fs::remove_file(&password)?;
        result.map(drop)
    }

    /// Single-user mode needs no running server.
    fn create_database(&self, machine: &Machine, data: &Path) -> Result<()> {
        let name = self.database;
        let script = data.join("create.sql");
        fs::write(&script, format!("CREATE DATABASE {name}\n"))?;
        let mut command = Command::new(self.bin.join("postgres"));
        command.args(["--single", "-j", "-D"]).arg(data).arg(MAINTENANCE_DATABASE);
        as_postgres(machine, &mut command);
        let created = tool::run_fed(command, fs::File::open(&script)?, INITDB_WITHIN);
        fs::remove_file(&script)?;
        created.map(drop).with_context(|| format!("cannot create the database {name}"))
    }
}

/// The cluster that others are copied from.
fn template(machine: &Machine, bin: &Path) -> Result<Cluster> {
    let version = find::version(&bin.join("postgres"))?;
    let home = machine.folder(&format!("initdb/{version}"))?;
    let _lock = Lock::exclusive(&home.join("lock"), INITDB_WITHIN)?;
    let password = secret::kept_in(&home.join("password"))?;
    let cluster = Cluster {
        bin: bin.to_path_buf(),
        data: home.join("data"),
        password,
        database: MAINTENANCE_DATABASE,
    };
    if !cluster.data.exists() {
        cluster.init(machine, SCRATCH_AUTH, &["--no-sync"])?;
    }
    Ok(cluster)
}

/// Runs `command` as the user of Postgres, who may be unable to enter the present folder.
fn as_postgres(machine: &Machine, command: &mut Command) {
    if let Some(user) = machine.postgres_user() {
        command.uid(user.uid).gid(user.gid).current_dir("/");
    }
}

fn make_private(machine: &Machine, folder: &Path) -> Result<()> {
    machine.make_folder(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(OWNER_ONLY))?;
    if let Some(user) = machine.postgres_user() {
        user.take(folder)?;
    }
    Ok(())
}

/// The major version whose data lie there.
fn made_by(data: &Path) -> Option<u32> {
    fs::read_to_string(data.join("PG_VERSION")).ok()?.trim().parse().ok()
}

fn refuse_other_version(bin: &Path, major: Option<u32>, data: &Path) -> Result<()> {
    let found = find::version(&bin.join("postgres"))?.major;
    match major {
        Some(major) if major != found => bail!(
            "the data in {} were made by PostgreSQL {major}, and only {found} is here: install {major}, \
             or set DATA_DIR to another folder",
            data.display()
        ),
        _ => Ok(()),
    }
}
