//! Which module of a service may know of which: arrows lead one way, and a folder is small enough to be read at a glance.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Files of one folder that a reader takes in at a glance.
const FILES_MAX: usize = 16;
/// `lib.rs` says what there is; what is done stands elsewhere.
const LIB_LINES_MAX: usize = 80;
/// What knows nothing of who asks.
const LOW: [&str; 3] = ["access", "db", "log"];
/// Who asks.
const HIGH: [&str; 2] = ["http", "socket"];
/// The module that holds all others.
const ROOT: &str = "lib";

/// The modules of a crate by name, as `db::history`, with what stands in them.
type Sources = BTreeMap<String, String>;
/// Which modules each module names.
type Arrows = BTreeMap<String, BTreeSet<String>>;

fn folder_of(service: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(service).join("src")
}

/// Every folder below this one, itself included, with its files.
fn folders(root: &Path) -> BTreeMap<PathBuf, Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(folder) = left.pop() {
        let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
        left.extend(folders);
        found.insert(folder, files);
    }
    found
}

fn sources(service: &str) -> Sources {
    let root = folder_of(service);
    let files = folders(&root).into_values().flatten();
    let modules = files.filter(|file| file.extension().is_some_and(|kind| kind == "rs"));
    let named = modules.map(|file| (module_of(file.strip_prefix(&root).unwrap()), file));
    // The command line stands above the library.
    let named = named.filter(|(name, _)| name != "main");
    named.map(|(name, file)| (name, fs::read_to_string(file).unwrap())).collect()
}

/// `db/history.rs` is `db::history`, `db/mod.rs` is `db`.
fn module_of(file: &Path) -> String {
    let path = file.with_extension("");
    let parts = path.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod");
    parts.collect::<Vec<_>>().join("::")
}

/// What is compiled into the service: neither comments nor tests.
fn code(source: &str) -> String {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths of a tree of imports: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<String> {
    let end = tree.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let (stem, rest) = tree.split_at(end.unwrap_or(tree.len()));
    let Some(branches) = rest.strip_prefix('{') else { return vec![stem.to_owned()] };
    let branches = branches_of(branches).into_iter().flat_map(|branch| paths(branch.trim()));
    branches.map(|branch| format!("{stem}{branch}")).collect()
}

/// What stands between commas, up to the brace that closes.
fn branches_of(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                found.push(&text[start..at]);
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

fn arrows(sources: &Sources) -> Arrows {
    let mut arrows = Arrows::new();
    for (name, source) in sources {
        let code = code(source);
        assert!(!code.contains("super::"), "{name}: name modules from the crate on");
        let named = code.split("crate::").skip(1).flat_map(paths);
        let mut others: BTreeSet<_> =
            named.map(|path| module_named(&path, sources).to_owned()).collect();
        others.remove(name);
        arrows.insert(name.clone(), others);
    }
    // It holds all others: who names something in it makes a circle.
    let all = sources.keys().filter(|name| *name != ROOT).cloned().collect();
    arrows.insert(ROOT.to_owned(), all);
    arrows
}

/// The module that a path leads into.
fn module_named<'a>(mut path: &'a str, sources: &Sources) -> &'a str {
    while !sources.contains_key(path) {
        let Some((stem, _)) = path.rsplit_once("::") else { return ROOT };
        path = stem;
    }
    path
}

/// Folders in place of the modules in them.
fn of_folders(arrows: &Arrows) -> Arrows {
    let folder = |name: &str| name.split("::").next().unwrap().to_owned();
    let mut of_folders = Arrows::new();
    for (name, others) in arrows {
        let from = folder(name);
        let others = others.iter().map(|other| folder(other)).filter(|other| *other != from);
        of_folders.entry(folder(name)).or_default().extend(others);
    }
    of_folders
}

/// The way from one module to another.
fn way(arrows: &Arrows, from: &str, to: &str) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut left = vec![vec![from.to_owned()]];
    while let Some(way) = left.pop() {
        for next in arrows.get(way.last()?).into_iter().flatten() {
            let longer = [way.as_slice(), std::slice::from_ref(next)].concat();
            if next == to {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                left.push(longer);
            }
        }
    }
    None
}

/// Every module that a way leads back to, with that way.
fn circles(arrows: &Arrows) -> Vec<Vec<String>> {
    arrows.keys().filter_map(|name| way(arrows, name, name)).collect()
}

/// Where something that is low knows of something high.
fn upward(arrows: &Arrows) -> Vec<Vec<String>> {
    let pairs = LOW.iter().flat_map(|low| HIGH.iter().map(move |high| (low, high)));
    pairs.filter_map(|(low, high)| way(arrows, low, high)).collect()
}

#[test]
fn no_module_of_a_service_leads_back_to_itself_nor_does_a_folder() {
    for service in ["gateway", "persister", "shared"] {
        let arrows = arrows(&sources(service));
        assert_eq!(circles(&arrows), Vec::<Vec<String>>::new(), "{service}");
        assert_eq!(circles(&of_folders(&arrows)), Vec::<Vec<String>>::new(), "{service}");
    }
}

#[test]
fn log_database_and_rights_know_nothing_of_sockets_and_http() {
    let arrows = of_folders(&arrows(&sources("gateway")));
    for folder in LOW.iter().chain(&HIGH) {
        assert!(arrows.contains_key(*folder), "{folder}");
    }
    assert_eq!(upward(&arrows), Vec::<Vec<String>>::new());
}

#[test]
fn a_folder_is_read_at_a_glance() {
    for service in ["gateway", "persister"] {
        for (folder, files) in folders(&folder_of(service)) {
            assert!(files.len() <= FILES_MAX, "{}: {} files", folder.display(), files.len());
        }
    }
    let lib = fs::read_to_string(folder_of("gateway").join("lib.rs")).unwrap();
    assert!(lib.lines().count() < LIB_LINES_MAX);
}

fn planted(sources: &[(&str, &str)]) -> Arrows {
    let sources = sources.iter().map(|(name, source)| ((*name).into(), (*source).into()));
    arrows(&sources.collect())
}

#[test]
fn a_circle_that_is_planted_is_found() {
    let hidden = planted(&[
        ("lib", ""),
        ("a::low", "use crate::{b, c::{self, middle::Thing}};"),
        ("b", "// crate::a::low\n#[cfg(test)]\nmod tests {\n    use crate::a::low;"),
        ("c", ""),
        ("c::middle", "fn f() -> crate::a::low::X { todo }"),
    ]);
    assert_eq!(circles(&hidden).len(), 2, "low and middle: {hidden:?}");
    let through_the_root = planted(&[("lib", ""), ("a", "use crate::Gateway;")]);
    assert_eq!(circles(&through_the_root).len(), 2);
    let of_two_folders = planted(&[
        ("lib", ""),
        ("a::low", ""),
        ("a::high", "use crate::b::middle::X;"),
        ("b::middle", "use crate::a::low::X;"),
    ]);
    assert_eq!(circles(&of_two_folders), Vec::<Vec<String>>::new());
    assert_eq!(circles(&of_folders(&of_two_folders)).len(), 2);
}

#[test]
fn an_arrow_upward_that_is_planted_is_found() {
    let direct = planted(&[("lib", ""), ("db", "use crate::http;"), ("http", "")]);
    assert_eq!(upward(&of_folders(&direct)).len(), 1);
    let by_another = planted(&[
        ("lib", ""),
        ("log::publisher", "use crate::metrics::METRICS;"),
        ("metrics", "use crate::socket::ack::Ack;"),
        ("socket::ack", ""),
    ]);
    assert_eq!(upward(&of_folders(&by_another)).len(), 1);
}
