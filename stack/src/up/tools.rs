//! `cargo up psql` and `cargo up persister`: programs that run against the stack that runs already.

use std::collections::HashMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Error, Result};
use stack::build::{self, Programs};
use stack::find;
use stack::machine::Machine;
use stack::tool;
use url::{Url, form_urlencoded};

use super::home;
use super::options::{Options, Tool};
use super::settings::Settings;

/// A build from nothing on a slow machine; usually everything is built.
const BUILDS_WITHIN: Duration = Duration::from_hours(1);

/// Becomes the program; returns only if that failed.
pub(crate) fn run(
    machine: &Machine,
    settings: &Settings,
    options: &Options,
    tool: &Tool,
) -> Result<ExitCode> {
    let home = home::of_running(machine, settings)?;
    let urls = urls(&home.join(home::URLS))?;
    let (program, args) = match tool {
        Tool::Psql { args } => (find::psql()?, args),
        Tool::Persister { args } => (persister(settings, options)?, args),
    };
    let mut command = Command::new(&program);
    command.args(args).env_clear().envs(build::environment()).envs(&urls);
    if matches!(tool, Tool::Psql { .. }) {
        let url = urls.get("DATABASE_URL").context("the stack notes no database")?;
        command.envs(parameters(url)?);
    }
    Err(Error::from(command.exec()).context(format!("cannot start {}", program.display())))
}

fn urls(path: &Path) -> Result<HashMap<String, String>> {
    let text = fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// The program as it is built now, with the same profile.
fn persister(settings: &Settings, options: &Options) -> Result<PathBuf> {
    let mut cargo = Command::new(build::cargo());
    cargo.args(build::args(build::SERVICES, build::PROGRAMS, options.release)).arg("--quiet");
    cargo.current_dir(&settings.project).env_clear().envs(build::environment());
    let report = tool::run_visibly(cargo, BUILDS_WITHIN).context("the persister does not build")?;
    Ok(Programs::of_report(&report).path("persister")?.to_path_buf())
}

/// The database as psql's own variables: it refuses Prisma's parameters in a URL, and everybody on the
/// machine may read a command line, but not an environment.
fn parameters(database_url: &str) -> Result<Vec<(&'static str, String)>> {
    let url = Url::parse(database_url).ok().context("DATABASE_URL is not a URL")?;
    let mut all = vec![
        ("PGHOST", url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned()),
        ("PGPORT", url.port().map(|port| port.to_string()).unwrap_or_default()),
        ("PGUSER", decoded(url.username())),
        ("PGPASSWORD", decoded(url.password().unwrap_or_default())),
        ("PGDATABASE", decoded(url.path().trim_start_matches('/'))),
    ];
    for (name, value) in url.query_pairs() {
        match &*name {
            "sslmode" => all.push(("PGSSLMODE", value.into_owned())),
            "host" => all.push(("PGHOST", value.into_owned())),
            "schema" => all.push(("PGOPTIONS", format!("-c search_path=\"{value}\""))),
            _ => {}
        }
    }
    all.retain(|(_, value)| !value.is_empty());
    Ok(all)
}

/// A part of a URL with its %XX escapes resolved; unlike in a form, `+` stands for itself.
fn decoded(part: &str) -> String {
    let pair = part.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    let mut pairs = form_urlencoded::parse(pair.as_bytes());
    pairs.next().map(|(text, _)| text.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::parameters;

    #[test]
    fn psql_is_told_everything_that_a_prisma_url_says() {
        let url = "postgresql://us%40er:p%2Ba+s%3Ds@[::1]:5433/my%20db?schema=Chat&connection_limit=5&sslmode=require";
        let told = parameters(url).unwrap();
        let told: Vec<_> = told.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let wanted = [
            ("PGHOST", "::1"),
            ("PGPORT", "5433"),
            ("PGUSER", "us@er"),
            ("PGPASSWORD", "p+a+s=s"),
            ("PGDATABASE", "my db"),
            ("PGOPTIONS", "-c search_path=\"Chat\""),
            ("PGSSLMODE", "require"),
        ];
        assert_eq!(told, wanted);
        assert_eq!(parameters("postgres://localhost/db").unwrap().len(), 2);
    }
}
