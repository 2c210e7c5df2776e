//! What `README.md` says is what the programs do.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use gateway::error::ErrorCode;
use shared::settings::Setting;

/// Set to anything, this writes the parts of README.md that are made from other files.
const UPDATE: &str = "UPDATE_README";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).expect(path)
}

/// The part of README.md between two texts.
fn between<'a>(readme: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = readme.split_once(start).expect(start);
    rest.split_once(end).expect(end).0
}

fn section(name: &str) -> String {
    between(&read("README.md"), &format!("<!-- {name} -->\n"), "<!-- end -->").to_owned()
}

/// Compares a part of README.md with what it must be, or writes it.
fn check(start: &str, end: &str, wanted: &str) {
    let readme = read("README.md");
    let found = between(&readme, start, end);
    if std::env::var_os(UPDATE).is_some() {
        let updated =
            readme.replace(&format!("{start}{found}{end}"), &format!("{start}{wanted}{end}"));
        fs::write(workspace().join("README.md"), updated).expect("README.md can be written");
    } else {
        assert_eq!(found, wanted, "write it with: {UPDATE}=1 cargo test readme::");
    }
}

/// One test, not two: only one may write the file at a time.
#[test]
fn settings_and_snippet_are_as_the_programs_have_them() {
    check("<!-- settings -->\n", "<!-- end -->", &settings_table());
    check("<!-- bot -->\n```js\n", "```\n", &read("tests/client/bot.mjs"));
    check("<!-- snippet -->\n```js\n", "```\n", &read("tests/client/snippet.mjs"));
}

fn settings_table() -> String {
    let mut table =
        String::from("| Setting | Default | Read by | What it says |\n|---|---|---|---|\n");
    let tables: [(&str, &[Setting]); 3] = [
        ("both", shared::settings::COMMON),
        ("gateway", gateway::config::OWN),
        ("persister", persister::config::OWN),
    ];
    for (who, settings) in tables {
        for Setting { name, default, help } in settings {
            let default =
                if default.is_empty() { "not set".into() } else { format!("`{default}`") };
            let help = help.replace('|', "\\|").replace('*', "\\*");
            writeln!(table, "| `{name}` | {default} | {who} | {help} |").expect("a text");
        }
    }
    table
}

/// What stands between backticks at the start of a table's rows.
fn first_column(section: &str) -> BTreeSet<String> {
    let names = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    names.map(str::to_owned).collect()
}

/// Every code; a new one does not compile until it stands here.
fn every_code() -> BTreeSet<String> {
    let mut codes = vec![ErrorCode::InvalidPayload];
    while let Some(next) = match codes.last() {
        None | Some(ErrorCode::InvalidPayload) => Some(ErrorCode::SessionNotFound),
        Some(ErrorCode::SessionNotFound) => Some(ErrorCode::Unauthorized),
        Some(ErrorCode::Unauthorized) => Some(ErrorCode::Forbidden),
        Some(ErrorCode::Forbidden) => Some(ErrorCode::TooLarge),
        Some(ErrorCode::TooLarge) => Some(ErrorCode::RateLimited),
        Some(ErrorCode::RateLimited) => Some(ErrorCode::Overloaded),
        Some(ErrorCode::Overloaded) => Some(ErrorCode::Unavailable),
        Some(ErrorCode::Unavailable) => None,
    } {
        codes.push(next);
    }
    let name = |code| serde_json::to_value(code).expect("a code").as_str().map(str::to_owned);
    codes.into_iter().filter_map(name).collect()
}

#[test]
fn every_error_code_is_described() {
    assert_eq!(first_column(&section("codes")), every_code());
}

#[test]
fn every_event_of_a_client_is_described() {
    let events = read("gateway/src/events.rs");
    let arms = events.lines().filter_map(|line| line.trim().strip_prefix('"'));
    let taken = arms.filter_map(|line| line.split_once("\" =>")).map(|(name, _)| name.to_owned());
    let described = section("events");
    let of_clients = described.split("| Server emits").next().expect("a table");
    assert_eq!(first_column(of_clients), taken.collect());
}

#[test]
fn every_route_is_described() {
    let routes = read("gateway/src/routes.rs");
    let routes = routes.split(".route(").skip(1).filter_map(|rest| rest.split_once(','));
    let served = routes.map(|(path, handler)| {
        let method = handler.trim().split('(').next().expect("a method").to_uppercase();
        let path = path.trim().trim_matches('"').replace("{session_id}", ":sessionId");
        format!("{method} {path}")
    });
    // `starting` serves one of them before the others.
    assert_eq!(first_column(&section("routes")), served.collect());
}

#[test]
fn the_commands_are_those_that_ci_runs() {
    let (readme, ci) = (read("README.md"), read(".ci/run"));
    for command in ["cargo test", "cargo up"] {
        assert!(readme.contains(&format!("\n{command} ")), "{command}");
    }
    assert!(ci.lines().any(|line| line.trim_end().ends_with(" cargo test")));
    assert!(ci.contains("cargo up --fresh"));
    assert!(read(".github/workflows/ci.yml").contains("run: .ci/run"));
}

/// In a browser's console two other lines stand in their place.
#[test]
fn the_first_two_lines_of_the_snippet_are_those_that_a_browser_replaces() {
    let snippet = read("tests/client/snippet.mjs");
    let lines: Vec<&str> = snippet.lines().take(3).collect();
    assert!(lines[0].starts_with("import { io }") && lines[1].starts_with("const url ="));
    assert_eq!(lines[2], "");
    assert!(!snippet.lines().skip(2).any(|line| line.contains("process.")));
}

#[test]
fn every_file_that_is_named_exists() {
    let readme = read("README.md");
    let linked = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for file in linked.filter(|target| !target.starts_with("http") && !target.starts_with('#')) {
        assert!(workspace().join(file).exists(), "{file}");
    }
    for file in readme.split("tests/client/").skip(1) {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let file: String = file.chars().take_while(|c| name(*c)).collect();
        assert!(workspace().join("tests/client").join(&file).exists(), "{file}");
    }
}
