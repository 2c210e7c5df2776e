//! What the documents say is what the programs do, and what they name is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use gateway::error::ErrorCode;
use serde_json::Value;
use shared::settings::Setting;

/// Set to anything, this writes the parts of the documents that are made from other files.
const UPDATE: &str = "UPDATE_DOCS";
/// A screen and a half.
const README_BYTES_MAX: usize = 8_192;
/// From the README to any page, and from it to code.
const CLICKS_MAX: usize = 2;
/// Folders in which no document of ours lies, beside those that `ls` does not show.
const FOREIGN: [&str; 2] = ["target", "node_modules"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).expect(path)
}

/// The part of a document between two texts.
fn between<'a>(document: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = document.split_once(start).expect(start);
    rest.split_once(end).expect(end).0
}

fn section(file: &str, name: &str) -> String {
    between(&read(file), &format!("<!-- {name} -->\n"), "<!-- end -->").to_owned()
}

/// Compares a part of a document with what it must be, or writes it.
fn check(file: &str, start: &str, end: &str, wanted: &str) {
    let document = read(file);
    let found = between(&document, start, end);
    if std::env::var_os(UPDATE).is_some() {
        let updated =
            document.replace(&format!("{start}{found}{end}"), &format!("{start}{wanted}{end}"));
        fs::write(workspace().join(file), updated).expect("it can be written");
    } else {
        assert_eq!(found, wanted, "write it with: {UPDATE}=1 cargo test documents::");
    }
}

/// One test, not two: only one may write the file at a time.
#[test]
fn settings_and_snippet_are_as_the_programs_have_them() {
    check("docs/settings.md", "<!-- settings -->\n", "<!-- end -->", &settings_table());
    let script = |file, name, script| {
        check(file, &format!("<!-- {name} -->\n```js\n"), "```\n", &read(script));
    };
    script("docs/http.md", "bot", "tests/client/bot.mjs");
    script("README.md", "snippet", "tests/client/snippet.mjs");
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
        Some(ErrorCode::Forbidden) => Some(ErrorCode::Conflict),
        Some(ErrorCode::Conflict) => Some(ErrorCode::AiOff),
        Some(ErrorCode::AiOff) => Some(ErrorCode::TooLarge),
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
    assert_eq!(first_column(&section("docs/contract.md", "codes")), every_code());
}

#[test]
fn every_event_of_a_client_is_described() {
    let events = read("gateway/src/socket/events.rs");
    let arms = events.lines().filter_map(|line| line.trim().strip_prefix('"'));
    let taken = arms.filter_map(|line| line.split_once("\" =>")).map(|(name, _)| name.to_owned());
    let described = section("docs/contract.md", "events");
    let of_clients = described.split("| Server emits").next().expect("a table");
    assert_eq!(first_column(of_clients), taken.collect());
}

/// The page `/docs` and programs have the events and codes from there.
#[test]
fn every_event_and_code_of_the_contract_is_in_the_openapi_document() {
    let document: Value = serde_json::from_str(gateway::http::openapi::DOCUMENT).expect("JSON");
    let names = |key: &str| {
        let object = document["x-socket-io"][key].as_object().expect(key);
        object.keys().cloned().collect::<BTreeSet<_>>()
    };
    let events = section("docs/contract.md", "events");
    let (emitted, heard) = events.split_once("| Server emits").expect("two tables");
    assert_eq!(names("clientEmits"), first_column(emitted));
    assert_eq!(names("serverEmits"), first_column(heard));
    assert_eq!(names("codes"), every_code());
}

#[test]
fn every_route_is_described() {
    let routes = read("gateway/src/http/routes.rs");
    let routes = routes.split(".route(").skip(1).filter_map(|rest| rest.split_once(','));
    let served = routes.map(|(path, handler)| {
        let method = handler.trim().split('(').next().expect("a method").to_uppercase();
        let path = path.trim().trim_matches('"').replace("{session_id}", ":sessionId");
        format!("{method} {path}")
    });
    // `starting` serves one of them before the others.
    assert_eq!(first_column(&section("docs/http.md", "routes")), served.collect());
}

#[test]
fn the_commands_are_those_that_ci_runs() {
    let (readme, ci) = (read("README.md"), read(".ci/run"));
    for command in ["cargo test", "cargo up"] {
        assert!(readme.contains(&format!("\n{command} ")), "{command}");
    }
    assert!(ci.lines().any(|line| line.trim_end().ends_with(" cargo test")));
    assert!(ci.contains("cargo up --fresh"));
    let workflow = read(".github/workflows/ci.yml");
    for step in ["lints", "tests"] {
        assert!(workflow.contains(&format!("run: .ci/run {step}\n")), "{step}");
        assert!(ci.contains(&format!("\n{step}() {{\n")), "{step}");
    }
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

fn is_a(path: &Path, kind: &str) -> bool {
    path.extension().is_some_and(|extension| extension == kind)
}

/// Every document of the project, by its path in it.
fn documents() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::new()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(workspace().join(&folder)).expect("a folder").flatten() {
            let name = entry.file_name().into_string().expect("a name");
            let path = folder.join(&name);
            match entry.file_type().expect("a type").is_dir() {
                true if FOREIGN.contains(&name.as_str()) || name.starts_with('.') => {}
                true => folders.push(path),
                false if is_a(&path, "md") => found.push(path),
                false => {}
            }
        }
    }
    found
}

/// A document without its blocks of code.
fn prose(document: &Path) -> String {
    let text = fs::read_to_string(workspace().join(document)).expect("a document");
    let mut is_code = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            prose.extend([line, "\n"]);
        }
    }
    prose
}

/// A link of a document: its text, the file that it leads to, and where in that.
struct Link {
    text: String,
    file: PathBuf,
    anchor: Option<String>,
}

/// The links to files of the project.
fn links(document: &Path) -> Vec<Link> {
    let prose = prose(document);
    let folder = document.parent().expect("a folder");
    let parts = prose.split("](").collect::<Vec<_>>();
    let pairs = parts.windows(2).filter_map(|pair| {
        let text = pair[0].rsplit('[').next()?.to_owned();
        let target = pair[1].split(')').next()?;
        let (file, anchor) = target
            .split_once('#')
            .map_or((target, None), |(file, anchor)| (file, Some(anchor.to_owned())));
        let file = if file.is_empty() { document.to_owned() } else { normal(&folder.join(file)) };
        (!target.contains("://")).then_some(Link { text, file, anchor })
    });
    pairs.collect()
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path {
        if part == ".." {
            assert!(normal.pop(), "{} leads out of the project", path.display());
        } else {
            normal.push(part);
        }
    }
    normal
}

/// The anchors of a document's headings, as they are made for readers.
fn anchors(document: &Path) -> BTreeSet<String> {
    let prose = prose(document);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let titles = headings.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let kept = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    titles
        .map(|title| title.chars().filter(|c| kept(*c)).collect::<String>().replace(' ', "-"))
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let documents = documents();
    assert!(documents.iter().any(|document| document.ends_with("docs/contract.md")));
    for document in &documents {
        for Link { text, file, anchor } in links(document) {
            let here = format!("{}: [{text}]({}", document.display(), file.display());
            assert!(workspace().join(&file).exists(), "{here}");
            if let Some(anchor) = anchor {
                assert!(anchors(&file).contains(&anchor), "{here}#{anchor}");
            }
        }
    }
}

/// Whether a file of Rust defines this: a function, a type, a constant.
fn defines(source: &str, name: &str) -> bool {
    const KINDS: [&str; 7] = ["fn", "struct", "enum", "trait", "const", "static", "type"];
    let code = source.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
    code.map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_')).any(|words| {
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        words.windows(2).any(|pair| KINDS.contains(&pair[0]) && pair[1] == name)
    })
}

/// Whether it defines a path such as `Type::method`: the method, and the type or an `impl` of it.
fn defines_path(source: &str, path: &str) -> bool {
    let (of, name) = path.rsplit_once("::").unwrap_or_default();
    let name = if of.is_empty() { path } else { name };
    let is_type = of.starts_with(char::is_uppercase);
    let implements = || source.lines().any(|line| line.starts_with("impl") && has_word(line, of));
    defines(source, name) && (!is_type || defines(source, of) || implements())
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

/// The names of code that a document leads to: `[`name`](file.rs)`.
fn code(document: &Path) -> Vec<(String, PathBuf)> {
    let code = links(document).into_iter().filter_map(|link| {
        let path = link.text.strip_prefix('`')?.strip_suffix('`')?.to_owned();
        (is_a(&link.file, "rs") && !path.contains(['/', '.'])).then_some((path, link.file))
    });
    code.collect()
}

#[test]
fn every_name_of_code_is_defined_where_its_link_leads() {
    assert!(defines("    pub async fn put<T>(", "put") && !defines("// fn put(", "put"));
    assert!(!defines("fn output() { put() }", "put"));
    assert!(defines_path("impl Way {\n    fn go() {}\n}", "Way::go"));
    assert!(!defines_path("impl Road {\n    fn go() {}\n}", "Way::go"));
    for document in documents() {
        for (path, file) in code(&document) {
            let source = fs::read_to_string(workspace().join(&file)).expect("a file of Rust");
            let here = document.display();
            assert!(
                defines_path(&source, &path),
                "{here}: {} does not define `{path}`",
                file.display()
            );
        }
    }
}

#[test]
fn three_walks_lead_through_the_code() {
    let text = read("docs/architecture.md");
    let walks = text.split_once("## Three walks through the code").expect("the walks").1;
    let walks: Vec<_> = walks.split("\n### ").skip(1).collect();
    assert_eq!(walks.len(), 3);
    for walk in walks {
        assert!(walk.matches("`](../").count() >= 5, "{walk}");
    }
}

#[test]
fn the_readme_is_short() {
    let bytes = read("README.md").len();
    assert!(bytes <= README_BYTES_MAX, "{bytes} bytes");
}

/// How many links must be followed from the README to each file.
fn clicks() -> BTreeMap<PathBuf, usize> {
    let mut clicks = BTreeMap::from([(PathBuf::from("README.md"), 0)]);
    for click in 1..=CLICKS_MAX {
        let pages: Vec<_> = clicks.keys().filter(|file| is_a(file, "md")).cloned().collect();
        for link in pages.iter().flat_map(|page| links(page)) {
            clicks.entry(link.file).or_insert(click);
        }
    }
    clicks
}

#[test]
fn whoever_has_only_the_readme_finds_everything_in_two_clicks() {
    let clicks = clicks();
    for page in documents().iter().filter(|document| document.starts_with("docs")) {
        assert!(clicks.contains_key(page), "{}", page.display());
    }
    for code in [
        // Where a message is checked, where it is stored, which test holds its order.
        "gateway/src/socket/send_message.rs",
        "persister/src/store/commit.rs",
        "tests/tests/promises/order.rs",
    ] {
        assert!(clicks.contains_key(Path::new(code)), "{code}");
    }
}

#[test]
fn every_script_that_is_named_exists() {
    for document in documents() {
        let text = fs::read_to_string(workspace().join(&document)).expect("a document");
        for rest in text.split("tests/client/").skip(1) {
            let name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
            let file: String = rest.chars().take_while(|c| name(*c)).collect();
            let path = workspace().join("tests/client").join(file.trim_end_matches('.'));
            assert!(path.exists(), "{}: {file}", document.display());
        }
    }
}
