//! `compose.yaml` and the Dockerfiles, as far as they can be checked without an engine.

#![expect(clippy::expect_used, reason = "clippy does not see that helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use shared::settings::Setting;

/// The containers' programs that are ours.
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
    for (name, tables) in OURS {
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
            "INBOX_TZ",
            "TRUSTED_PROXIES",
            "POSTGRES_PASSWORD",
            "PROMETHEUS_PORT",
            "GRAFANA_PORT",
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
    let dockerfiles = OURS.map(|(name, _)| read(&format!("{name}/Dockerfile")));
    let bases = dockerfiles.iter().flat_map(|text| text.lines());
    let bases = bases.filter_map(|line| line.strip_prefix("FROM ")?.split(' ').next());
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

/// Its file holds what is the same in every Compose: names and ports of other services.
#[test]
fn the_balancer_finds_gateways_where_they_listen() {
    let (compose, file) = (compose(), read(".balancer/haproxy.cfg"));
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
    for (name, service) in services {
        assert!(service["healthcheck"]["test"].is_array(), "{name}");
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        for (other, how) in service["depends_on"].as_object().into_iter().flatten() {
            assert!(services.contains_key(other), "{name} waits for {other}");
            assert_eq!(how["condition"], "service_healthy", "{name} waits for {other}");
        }
    }
    for (name, _) in OURS {
        assert_eq!(services[name]["healthcheck"]["test"], json!(["CMD", name, "health"]));
        assert_eq!(services[name]["build"]["dockerfile"], format!("{name}/Dockerfile"));
    }
}

#[test]
fn images_share_their_layers_and_run_as_nobody() {
    let [gateway, persister] = OURS.map(|(name, _)| instructions(&format!("{name}/Dockerfile")));
    let shared = gateway.iter().rposition(|line| line.starts_with("FROM ")).expect("a last stage");
    assert!(shared > 5);
    assert_eq!(gateway[..=shared], persister[..=shared]);
    for dockerfile in [&gateway, &persister] {
        assert!(dockerfile.contains(&"USER 65532:65532".to_owned()), "{dockerfile:?}");
    }
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

/// What is copied must exist and must not be kept from the engine.
#[test]
fn everything_that_the_images_copy_reaches_the_engine() {
    let ignore = read(".dockerignore");
    let sent: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    for line in instructions("gateway/Dockerfile") {
        let Some(words) = line.strip_prefix("COPY ").filter(|rest| !rest.starts_with("--")) else {
            continue;
        };
        let words: Vec<&str> = words.split(' ').collect();
        for source in &words[..words.len() - 1] {
            assert!(workspace().join(source).exists(), "{source}");
            assert!(sent.iter().any(|kept| Path::new(source).starts_with(kept)), "{source}");
        }
    }
}

/// A Dockerfile without comments and empty lines.
fn instructions(path: &str) -> Vec<String> {
    let text = read(path);
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}
