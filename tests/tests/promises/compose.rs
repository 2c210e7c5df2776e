//! `compose.yaml` and the Dockerfiles, as far as they can be checked without an engine: what it runs before the
//! services start is run here, with its words.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::{Map, Value, json};
use shared::settings::Setting;
use stack::find;
use tests::{Conversation, JsClients, Stack, eventually};
use tokio::process::Command;
use url::Url;

const SOON: Duration = Duration::from_secs(20);
/// What runs to its end before the services start.
const ONCE: [&str; 2] = ["migrate", "roles"];
/// Where a Dockerfile begins to build what is of its own image.
const OWN_STAGE: &str = "FROM dependencies AS build";
/// The containers' programs that are ours and stay.
const OURS: [(&str, &[&[Setting]]); 2] = [
    ("gateway", &[shared::settings::COMMON, gateway::config::OWN]),
    ("persister", &[shared::settings::COMMON, persister::config::OWN]),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).expect(path)
}

fn compose() -> Value {
    serde_saphyr::from_str(&read("compose.yaml")).expect("compose.yaml is YAML")
}

fn services(compose: &Value) -> &Map<String, Value> {
    compose["services"].as_object().expect("services")
}

/// Every mistake that the Compose specification's schema finds.
fn mistakes(compose: &Value) -> Vec<String> {
    let schema = serde_json::from_str(&read("tests/fixtures/compose-spec.json")).expect("a schema");
    let validator = jsonschema::options().with_draft(jsonschema::Draft::Draft7).build(&schema);
    let validator = validator.expect("a schema that can be used");
    validator
        .iter_errors(compose)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

#[test]
fn compose_yaml_keeps_to_the_specification() {
    assert_eq!(mistakes(&compose()), Vec::<String>::new());
}

/// For engines that know it: an older one refuses the file.
#[test]
fn every_container_that_is_asked_how_it_is_can_be_asked_rarely() {
    let rare: Value =
        serde_saphyr::from_str(&read("deploy/rare-checks.yaml")).expect("rare-checks.yaml is YAML");
    assert_eq!(mistakes(&rare), Vec::<String>::new());
    let compose = compose();
    let asked = services(&compose).iter().filter(|(_, it)| it["healthcheck"].is_object());
    assert!(asked.map(|(name, _)| name).eq(services(&rare).keys()));
    let rarely = json!({"healthcheck": {"start_interval": "1s", "interval": "30s"}});
    assert!(services(&rare).values().all(|service| *service == rarely));
}

#[test]
fn the_schema_finds_a_mistake() {
    for (place, key, wrong) in [
        ("/services/gateway", "restarts", json!("always")),
        ("/services/gateway", "read_only", json!([])),
        ("/services/gateway/healthcheck", "test", json!(1)),
        ("/services/persister/depends_on/nats", "condition", json!("service_is_well")),
    ] {
        let mut compose = compose();
        let place = compose.pointer_mut(place).and_then(Value::as_object_mut).expect(place);
        place.insert(key.into(), wrong);
        assert!(!mistakes(&compose).is_empty(), "{key}");
    }
}

#[test]
fn every_variable_of_a_service_is_a_setting_it_knows() {
    let compose = compose();
    let [gateway, persister] = OURS;
    for (name, tables) in [gateway, persister, ("migrate", persister.1)] {
        let known: BTreeSet<&str> = tables.concat().iter().map(|setting| setting.name).collect();
        let environment = compose["services"][name]["environment"].as_object().expect(name);
        for variable in environment.keys() {
            assert!(known.contains(variable.as_str()), "{name} knows no {variable}");
        }
    }
}

/// A variable without a value is taken from the environment of `docker compose`, as `${…}` is.
#[test]
fn what_compose_reads_and_what_the_example_shows_are_the_same() {
    let example = read(".env.example");
    let names = example.lines().filter_map(|line| Some(line.strip_prefix('#')?.split_once('=')?.0));
    let shown: BTreeSet<&str> = names.filter(|name| !name.contains(' ')).collect();
    let (text, compose) = (read("compose.yaml"), compose());
    let inserted = text.split("${").skip(1).filter_map(|rest| rest.split([':', '}']).next());
    let passed =
        services(&compose).values().filter_map(|service| service["environment"].as_object());
    let passed =
        passed.flatten().filter(|(_, value)| value.is_null()).map(|(name, _)| name.as_str());
    let read: BTreeSet<&str> = inserted.chain(passed).collect();
    assert_eq!(shown, read);
}

#[test]
fn the_example_shows_defaults_and_settings_that_exist() {
    let tables: Vec<Setting> = OURS.iter().flat_map(|(_, tables)| tables.concat()).collect();
    for line in read(".env.example").lines().filter_map(|line| line.strip_prefix('#')) {
        let Some((name, value)) = line.split_once('=') else { continue };
        let setting = tables.iter().find(|setting| setting.name == name);
        let examples_only = [
            "CORS_ORIGINS",
            "TRY_PAGE",
            "INBOX_TZ",
            "TRUSTED_PROXIES",
            "POSTGRES_PASSWORD",
            "GATEWAY_PASSWORD",
            "PERSISTER_PASSWORD",
            "PROMETHEUS_PORT",
            "GRAFANA_PORT",
            "GATEWAY_REPLICAS",
            "PERSISTER_REPLICAS",
        ];
        match setting {
            _ if examples_only.contains(&name) => {}
            Some(setting) => assert_eq!(value, setting.default, "{name}"),
            None => panic!("{name} is no setting"),
        }
    }
}

#[test]
fn every_image_is_pinned_to_a_major_version() {
    let compose = compose();
    let images = services(&compose).values().filter_map(|service| service["image"].as_str());
    let inline = services(&compose).values();
    let inline = inline.filter_map(|service| service["build"]["dockerfile_inline"].as_str());
    let dockerfiles = OURS.map(|(name, _)| read(&format!("{name}/Dockerfile")));
    let bases = dockerfiles.iter().map(String::as_str).chain(inline).flat_map(str::lines);
    let bases = bases.filter_map(|line| line.strip_prefix("FROM ")?.split(' ').next());
    // A stage of the file itself is no image.
    let bases = bases.filter(|base| !OWN_STAGE.contains(base));
    for image in images.chain(bases) {
        let (name, tag) = image.rsplit_once(':').expect(image);
        let in_tag = tag.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit());
        // Distroless images name Debian's version in the image's name.
        let in_name = name.ends_with(|last: char| last.is_ascii_digit());
        assert!(in_tag || in_name, "{image}");
    }
}

#[test]
fn only_what_people_use_is_published_and_only_on_this_machine() {
    let compose = compose();
    for (name, service) in services(&compose) {
        let ports = service["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let published = ["balancer", "grafana", "prometheus"].contains(&name.as_str());
        assert_eq!(ports.is_empty(), !published, "{name}");
        for port in ports {
            assert!(port.as_str().expect("the short form").starts_with("127.0.0.1:"), "{name}");
        }
    }
}

#[test]
fn gateways_and_persisters_can_be_scaled() {
    let compose = compose();
    for (name, _) in OURS {
        let service = services(&compose)[name].as_object().expect(name);
        for one_of_a_kind in ["container_name", "hostname", "ports", "network_mode", "scale"] {
            assert!(!service.contains_key(one_of_a_kind), "{name}: {one_of_a_kind}");
        }
    }
}

/// A value of the file as it is without a `.env`, or with one variable set.
fn filled(value: &Value, set: (&str, &str)) -> String {
    let mut text = value.as_str().expect("a text").to_owned();
    while let Some((before, rest)) = text.split_once("${") {
        let (variable, after) = rest.split_once('}').expect("an end");
        let (name, default) = variable.split_once(":-").expect("a default");
        let value = if name == set.0 { set.1 } else { default };
        text = format!("{before}{value}{after}");
    }
    text
}

/// A URL of the file, with the place of the stack's database.
fn url_there(url: &str, there: &Url) -> Url {
    let mut url = Url::parse(url).expect("a URL");
    assert_eq!((url.host_str(), url.port()), (Some("postgres"), Some(5432)));
    url.set_host(there.host_str()).expect("a host");
    url.set_port(there.port()).expect("a port");
    url.set_path(there.path());
    url
}

/// What `docker compose up` does before the services start, in its order and with its words, and whom it
/// gives the services to be.
async fn prepare(stack: &Stack, set: (&'static str, &'static str)) {
    let compose = compose();
    let owner = Url::parse(stack.database_url()).expect("a URL");
    let [migrate, roles] = ONCE.map(|name| compose["services"][name].clone());
    assert!(roles["depends_on"]["migrate"].is_object());
    let words = |service: &Value| {
        let words = service["command"].as_array().expect("words").clone();
        let sql = workspace().join("migrations").to_string_lossy().into_owned();
        let word = move |word: Value| filled(&word, set).replace("=/sql", &format!("={sql}"));
        words.into_iter().map(word).collect::<Vec<_>>()
    };
    let url = url_there(&filled(&migrate["environment"]["DATABASE_URL"], set), &owner);
    assert_eq!(url.username(), owner.username());
    let program = tokio::task::spawn_blocking(|| tests::program("persister")).await;
    let mut migrating = Command::new(program.expect("the persister"));
    migrating.args(words(&migrate)).env("DATABASE_URL", owner.as_str());
    ends_well(migrating).await;

    let psql = tokio::task::spawn_blocking(|| find::postgres(&tests::machine(), None));
    let psql = psql.await.expect("a look").expect("Postgres").join("psql");
    let [first, rest @ ..] = &words(&roles)[..] else { panic!("no command") };
    assert_eq!(first, "psql");
    let mut making = Command::new(psql);
    for (name, value) in roles["environment"].as_object().expect("variables") {
        making.env(name, filled(value, set));
    }
    making.args(rest).env("PGHOST", owner.host_str().expect("a host"));
    making.env("PGPORT", owner.port().expect("a port").to_string());
    making.env("PGDATABASE", owner.path().trim_start_matches('/'));
    making.env("PGPASSWORD", owner.password().expect("a password"));
    ends_well(making).await;

    for service in stack.persisters().iter().chain(stack.gateways()) {
        let name = service.name();
        let (kind, _) = name.split_once('-').expect("a kind and a number");
        let url = &compose["services"][kind]["environment"]["DATABASE_URL"];
        service.set_env("DATABASE_URL", url_there(&filled(url, set), &owner).as_str());
    }
}

async fn ends_well(mut command: Command) {
    let output = command.current_dir(std::env::temp_dir()).output().await.expect("a program");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !complaints.contains("ERROR"), "{complaints}");
}

async fn users(stack: &Stack) -> Vec<String> {
    let connected = "SELECT DISTINCT usename::text FROM pg_stat_activity
        WHERE application_name LIKE 'chat-%' ORDER BY 1";
    sqlx::query_scalar(connected).fetch_all(&stack.pool()).await.expect("users")
}

#[tokio::test]
async fn the_services_are_users_who_may_little_at_a_first_start() {
    // What is answered over HTTP is stored then, however slow this machine is.
    let stack = Stack::builder().own_postgres().gateway_env("STORED_WAIT", "5s");
    let stack = stack.services_stopped().start().await;
    prepare(&stack, ("", "")).await;
    stack.start_services().await;
    stack.node_test("rest.test.mjs", &[]).await;
    assert_eq!(users(&stack).await, ["gateway", "persister"]);
}

#[tokio::test]
async fn a_volume_whose_services_were_the_owner_goes_on_and_passwords_may_change() {
    let stack = Stack::builder().own_postgres().start().await;
    let js_clients = JsClients::start().await;
    let conversation = Conversation::begin(&stack, &js_clients).await;
    conversation.is_delivered(5).await;
    for password in ["persister", "anotherOne2"] {
        // `docker compose up` runs these while the services of the release before still run.
        prepare(&stack, ("PERSISTER_PASSWORD", password)).await;
        for service in stack.persisters().iter().chain(stack.gateways()) {
            assert!(service.terminate().await.success(), "{}", service.logs());
            service.start().await;
        }
        conversation.is_delivered(5).await;
        eventually(SOON, "only they are connected", async || {
            users(&stack).await == ["gateway", "persister"]
        })
        .await;
    }
    conversation.end(&stack).await;
}

/// Its file holds what is the same in every Compose: names and ports of other services.
#[test]
fn the_balancer_finds_gateways_where_they_listen() {
    let (compose, file) = (compose(), read("deploy/haproxy.cfg"));
    let gateway = &compose["services"]["gateway"]["environment"];
    let ops = gateway["OPS_ADDRESS"].as_str().and_then(|address| address.rsplit(':').next());
    let balancer = &compose["services"]["balancer"];
    let port = balancer["ports"][0].as_str().and_then(|port| port.rsplit(':').next());
    assert!(file.contains(&format!("-gateway:{}}}", gateway["PORT"])), "{gateway}");
    assert!(file.contains(&format!("-{}}}", ops.expect("a port"))), "{gateway}");
    assert!(file.contains(&format!("BIND-:{}}}", port.expect("a port"))), "{balancer}");
    for variable in balancer["environment"].as_object().expect("variables").keys() {
        assert!(file.contains(&format!("${{{variable}")), "{variable}");
    }
}

#[test]
fn services_start_in_order_of_health_and_restart_and_may_little() {
    let compose = compose();
    let services = services(&compose);
    let mut awaited = BTreeSet::new();
    for (name, service) in services {
        let once = ONCE.contains(&name.as_str());
        assert_eq!(service["healthcheck"]["test"].is_array(), !once, "{name}");
        assert_eq!(service["restart"], if once { "no" } else { "unless-stopped" }, "{name}");
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        for (other, how) in service["depends_on"].as_object().into_iter().flatten() {
            assert!(services.contains_key(other), "{name} waits for {other}");
            let end = match other.as_str() {
                once if ONCE.contains(&once) => "service_completed_successfully",
                // For the order of a stop.
                "persister" => "service_started",
                _ => "service_healthy",
            };
            assert_eq!(how["condition"], end, "{name} waits for {other}");
            awaited.insert(other.as_str());
        }
    }
    // Otherwise `up --wait` would wait in vain until they run.
    assert!(ONCE.iter().all(|once| awaited.contains(once)), "{awaited:?}");
    for (name, _) in OURS {
        assert_eq!(services[name]["healthcheck"]["test"], json!(["CMD", name, "health"]));
        assert_eq!(services[name]["build"]["dockerfile"], format!("{name}/Dockerfile"));
    }
}

#[test]
fn images_share_the_layers_of_what_they_depend_on_and_run_as_nobody() {
    let [gateway, persister] = OURS.map(|(name, _)| instructions(&format!("{name}/Dockerfile")));
    let own = gateway.iter().position(|line| line == OWN_STAGE).expect("a stage of its own");
    assert!(own > 5);
    assert_eq!(gateway[..=own], persister[..=own]);
    for dockerfile in [&gateway, &persister] {
        assert!(dockerfile.contains(&"USER 65532:65532".to_owned()), "{dockerfile:?}");
    }
}

/// A change of the other service, of the tests or of the launcher leaves the layers as they are.
#[test]
fn a_program_is_built_from_its_own_files_and_those_of_what_it_depends_on() {
    for (name, _) in OURS {
        let lines = instructions(&format!("{name}/Dockerfile"));
        let own = lines.iter().skip_while(|line| *line != OWN_STAGE).skip(1);
        let own = own.take_while(|line| !line.starts_with("FROM "));
        let copied = own.filter_map(|line| line.strip_prefix("COPY ")?.split_once(' '));
        let copied = copied.filter(|(from, _)| !from.starts_with("--from="));
        let folders: BTreeSet<String> = copied
            .inspect(|(from, to)| assert_eq!(from, to))
            .map(|(from, _)| from.to_owned())
            .collect();
        assert_eq!(folders, folders_of(name));
        // Each is made younger than the empty programs that were built before.
        let touched = lines.iter().rfind(|line| line.trim().starts_with("find ")).expect(name);
        let touched = touched.trim().split(' ').skip(1).take_while(|word| !word.starts_with('-'));
        assert_eq!(folders, touched.map(str::to_owned).collect());
    }
}

/// The folders of the workspace that a program is made from, as the compiler noted them.
fn folders_of(program: &str) -> BTreeSet<String> {
    let root = workspace().canonicalize().expect("the workspace");
    let noted = tests::program(program).with_extension("d");
    let noted = fs::read_to_string(noted).expect("what the program was built from");
    let (_, files) = noted.split_once(": ").expect("names of files");
    // A space within a name is escaped.
    let files = files.replace("\\ ", "\0");
    let files = files.split_whitespace().map(|file| PathBuf::from(file.replace('\0', " ")));
    let files = files.map(|file| file.canonicalize().expect("a file that is there"));
    let inside = files.map(|file| file.strip_prefix(&root).expect("of the workspace").to_owned());
    let folder = |file: PathBuf| Some(file.iter().next()?.to_str()?.to_owned());
    inside.filter_map(folder).collect()
}

#[test]
fn images_are_built_with_the_toolchain_of_the_workspace() {
    let manifest = read("Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "));
    let version = version.expect("rust-version").trim_matches('"');
    let base = format!("FROM rust:{version}-");
    assert!(
        instructions("gateway/Dockerfile").iter().any(|line| line.starts_with(&base)),
        "{base}"
    );
}

/// What the engine is given, made an outline by the Dockerfile's own words, is a workspace that Cargo takes.
#[test]
fn cargo_takes_the_outline_that_dependencies_are_built_from() {
    let folder = std::env::temp_dir().join(format!("chat-outline-{}", std::process::id()));
    send_to_engine(&folder);
    let text = read("gateway/Dockerfile").replace("\\\n", "");
    let outline = text.lines().find_map(|line| line.strip_prefix("RUN find ")).expect("an outline");
    let mut shell = std::process::Command::new("sh");
    let shell = shell.args(["-euc", &format!("find {outline}")]).current_dir(&folder).output();
    let cargo = fetch(&folder);
    let left = fs::read_to_string(folder.join("gateway/src/main.rs"));
    fs::remove_dir_all(&folder).expect("a folder");
    for output in [shell.expect("a shell"), cargo] {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(left.expect("a program"), "fn main() { }\n");
}

/// Cargo reads every target of every member, as a build does. It asks the registry only where something is not
/// here, such as a crate for another system.
fn fetch(folder: &Path) -> Output {
    let fetch = |how: &[&str]| {
        let mut cargo = std::process::Command::new(env!("CARGO"));
        cargo.args(["fetch", "--locked"]).args(how).current_dir(folder).output().expect("cargo")
    };
    let here = fetch(&["--offline"]);
    if here.status.success() { here } else { fetch(&[]) }
}

/// Copies what is under version control and not kept from the engine.
fn send_to_engine(folder: &Path) {
    let ignore = read(".dockerignore");
    let rules: Vec<&str> = ignore.lines().filter(|line| !line.starts_with('#')).collect();
    let listed =
        std::process::Command::new("git").arg("ls-files").current_dir(workspace()).output();
    let listed = String::from_utf8(listed.expect("git").stdout).expect("names");
    for file in listed.lines().filter(|file| reaches_engine(&rules, file)) {
        let copy = folder.join(file);
        fs::create_dir_all(copy.parent().expect("a folder")).expect("a folder");
        fs::copy(workspace().join(file), copy).expect(file);
    }
}

/// The last rule that fits counts, as the engine has it.
fn reaches_engine(rules: &[&str], file: &str) -> bool {
    let fits = |pattern: &str| match pattern.strip_prefix("**/") {
        Some(name) => file.split('/').any(|part| {
            part == name || name.strip_prefix('*').is_some_and(|end| part.ends_with(end))
        }),
        None if pattern == ".*" => file.starts_with('.'),
        None => Path::new(file).starts_with(pattern),
    };
    let last = rules.iter().rev().find(|rule| fits(rule.trim_start_matches('!')));
    last.is_none_or(|rule| rule.starts_with('!'))
}

#[test]
fn nats_writes_the_log_to_the_disk_as_often_as_with_cargo_up() {
    let compose = compose();
    let command = services(&compose)["nats"]["command"][0].as_str().expect("a script");
    let line = format!("  sync_interval: \"{}\"\n", stack::nats::SYNC_INTERVAL);
    for (name, config) in
        [("compose.yaml", command), ("nats.conf", read("deploy/systemd/nats.conf").as_str())]
    {
        assert!(config.contains(&line), "{name}: {config}");
    }
}

/// A clone may have been made under `umask 077`: no file of it is mounted.
#[test]
fn no_file_of_the_clone_is_mounted() {
    let compose = compose();
    for (name, service) in services(&compose) {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let volume = volume.as_str().expect("the short form");
            assert!(!volume.starts_with(['.', '/', '~']), "{name}: {volume}");
        }
    }
}

/// A Dockerfile without comments and empty lines.
fn instructions(path: &str) -> Vec<String> {
    let text = read(path);
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}
