//! The manifests of `deploy/kubernetes`, as far as they can be checked without a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shared::settings::Setting;

/// Where settings of a file are kept: the kind of the object, and how it is asked for.
const KEPT: [(&str, &str); 2] = [("ConfigMap", "configMapRef"), ("Secret", "secretRef")];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every object of every file.
fn objects() -> Vec<Value> {
    let files = fs::read_dir(workspace().join("deploy/kubernetes")).expect("a folder").flatten();
    let texts = files.map(|file| fs::read_to_string(file.path()).expect("a manifest"));
    texts
        .flat_map(|text| text.split("\n---\n").map(str::to_owned).collect::<Vec<_>>())
        .map(|text| serde_saphyr::from_str(&text).expect("YAML"))
        .collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("a name")
}

fn named<'a>(objects: &'a [Value], kind: &str, wanted: &str) -> &'a Value {
    let mut found =
        objects.iter().filter(|object| object["kind"] == kind && name(object) == wanted);
    found.next().unwrap_or_else(|| panic!("no {kind} {wanted}"))
}

/// Whoever runs pods, with the setting tables of its program.
fn workloads(objects: &[Value]) -> [(&Value, Vec<Setting>); 3] {
    let tables = |own: &[Setting]| [shared::settings::COMMON, own].concat();
    let persister = || tables(persister::config::OWN);
    [
        (named(objects, "Deployment", "support-chat-gateway"), tables(gateway::config::OWN)),
        (named(objects, "Deployment", "support-chat-persister"), persister()),
        (named(objects, "Job", "support-chat-migrate"), persister()),
    ]
}

fn pod(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]
}

fn container(workload: &Value) -> &Value {
    let containers = pod(workload)["containers"].as_array().expect("containers");
    assert_eq!(containers.len(), 1);
    &containers[0]
}

/// Every mistake that the schemas of the API find in an object.
fn mistakes(object: &Value) -> Vec<String> {
    let text = fs::read_to_string(workspace().join("tests/fixtures/kubernetes.json"));
    let mut schema: Value = serde_json::from_str(&text.expect("schemas")).expect("JSON");
    let (api, kind) = (json!([object["apiVersion"]]), json!([object["kind"]]));
    let definitions = schema["$defs"].as_object().expect("definitions");
    let fits = |schema: &Value| {
        let properties = &schema["properties"];
        properties["apiVersion"]["enum"] == api && properties["kind"]["enum"] == kind
    };
    let Some((name, _)) = definitions.iter().find(|(_, schema)| fits(schema)) else {
        return vec![format!("there is no {kind} in {api}")];
    };
    schema["$ref"] = json!(format!("#/$defs/{name}"));
    let validator = jsonschema::draft202012::new(&schema).expect("a schema that can be used");
    let told = |error: jsonschema::ValidationError| format!("{}: {error}", error.instance_path());
    validator.iter_errors(object).map(told).collect()
}

#[test]
fn manifests_keep_to_the_schemas_of_the_api() {
    let objects = objects();
    assert!(objects.len() > 10, "{}", objects.len());
    for object in &objects {
        assert_eq!(mistakes(object), Vec::<String>::new(), "{} {}", object["kind"], name(object));
    }
}

#[test]
fn the_schemas_find_a_mistake() {
    let objects = objects();
    let gateway = named(&objects, "Deployment", "support-chat-gateway");
    for (place, key, wrong) in [
        ("", "apiVersion", json!("apps/v1beta1")),
        ("/spec", "replica", json!(2)),
        ("/spec/template/spec", "terminationGracePeriodSeconds", json!("30s")),
        ("/spec/template/spec/containers/0", "env", json!([{"value": "0.0.0.0"}])),
        ("/spec/template/spec/containers/0/readinessProbe", "command", json!([])),
    ] {
        let mut gateway = gateway.clone();
        let place = gateway.pointer_mut(place).and_then(Value::as_object_mut).expect(place);
        place.insert(key.into(), wrong);
        assert!(!mistakes(&gateway).is_empty(), "{key}");
    }
}

/// What a workload's container finds in its environment.
fn environment(objects: &[Value], workload: &Value) -> BTreeMap<String, String> {
    let container = container(workload);
    let mut environment = BTreeMap::new();
    for source in container["envFrom"].as_array().expect("sources") {
        for (kind, asked) in KEPT {
            let Some(kept) = source[asked]["name"].as_str() else { continue };
            let kept = named(objects, kind, kept);
            let data = kept["data"].as_object().or(kept["stringData"].as_object()).expect("data");
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            environment.extend(data.iter().map(|(name, value)| (name.clone(), text(value))));
        }
    }
    for variable in container["env"].as_array().into_iter().flatten() {
        let text = |key: &str| variable[key].as_str().expect(key).to_owned();
        environment.insert(text("name"), text("value"));
    }
    environment
}

#[test]
fn every_variable_is_a_setting_that_the_program_knows() {
    let objects = objects();
    for (workload, settings) in workloads(&objects) {
        let known: BTreeSet<&str> = settings.iter().map(|setting| setting.name).collect();
        let environment = environment(&objects, workload);
        assert!(environment.contains_key("DATABASE_URL"), "{}", name(workload));
        for variable in environment.keys() {
            assert!(known.contains(variable.as_str()), "{}: {variable}", name(workload));
        }
    }
}

#[test]
fn nobody_serves_others_without_a_key_and_only_the_job_is_the_owner() {
    let objects = objects();
    let [(gateway, _), (persister, _), (migrate, _)] = workloads(&objects);
    let gateway = environment(&objects, gateway);
    assert!(gateway.contains_key("JWT_SECRET") && !gateway.contains_key("ALLOW_INSECURE_OPEN"));
    let urls = [gateway, environment(&objects, persister), environment(&objects, migrate)];
    let urls =
        urls.map(|environment| url::Url::parse(&environment["DATABASE_URL"]).expect("a URL"));
    assert_eq!(urls.each_ref().map(url::Url::username), ["gateway", "persister", "chat"]);
}

#[test]
fn ports_and_probes_are_where_the_programs_listen() {
    let objects = objects();
    let [(gateway, _), (persister, _), _] = workloads(&objects);
    for workload in [gateway, persister] {
        let environment = environment(&objects, workload);
        let mut listens =
            BTreeSet::from([environment["OPS_ADDRESS"].rsplit(':').next().expect("a port")]);
        listens.extend(environment.get("PORT").map(String::as_str));
        let container = container(workload);
        let ports = container["ports"].as_array().expect("ports");
        let ports = ports.iter().map(|port| port["containerPort"].to_string()).collect::<Vec<_>>();
        assert_eq!(ports.iter().map(String::as_str).collect::<BTreeSet<_>>(), listens);
        let scraped =
            &workload["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"];
        assert!(listens.contains(scraped.as_str().expect("a port")));
        let policy = named(&objects, "NetworkPolicy", name(workload));
        let open = policy["spec"]["ingress"].as_array().expect("rules").iter();
        let open: BTreeSet<_> = open.map(|rule| rule["ports"][0]["port"].to_string()).collect();
        assert_eq!(open, ports.into_iter().collect());
        assert_eq!(
            container["livenessProbe"]["httpGet"],
            json!({"path": "/health", "port": "ops"})
        );
    }
    assert_eq!(
        container(gateway)["readinessProbe"]["exec"]["command"],
        json!(["gateway", "health"])
    );
}

#[test]
fn who_is_told_to_stop_has_the_time_for_it() {
    let objects = objects();
    for (workload, settings) in &workloads(&objects)[..2] {
        let setting = settings.iter().find(|setting| setting.name == "SHUTDOWN_SECONDS");
        let needed: u64 = setting.expect("a setting").default.parse().expect("seconds");
        let pause = &container(workload)["lifecycle"]["preStop"]["sleep"]["seconds"];
        let pause = pause.as_u64().unwrap_or_default();
        let given = pod(workload)["terminationGracePeriodSeconds"].as_u64().expect("seconds");
        assert!(given > needed + pause, "{}", name(workload));
    }
}

#[test]
fn selectors_find_the_pods_that_they_are_for() {
    let objects = objects();
    let workloads = workloads(&objects).map(|(workload, _)| workload);
    let labels = |workload: &Value| workload["spec"]["template"]["metadata"]["labels"].clone();
    let found = |selector: &Value| -> Vec<&str> {
        let wanted = selector.as_object().expect("labels");
        let fits = |workload: &&Value| {
            wanted.iter().all(|(label, value)| labels(workload)[label] == *value)
        };
        workloads.into_iter().filter(fits).map(name).collect()
    };
    let all = workloads.map(name);
    for workload in &workloads[..2] {
        assert_eq!(found(&workload["spec"]["selector"]["matchLabels"]), [name(workload)]);
        let spread = &pod(workload)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"];
        assert_eq!(found(spread), [name(workload)]);
        let budget = named(&objects, "PodDisruptionBudget", name(workload));
        assert_eq!(found(&budget["spec"]["selector"]["matchLabels"]), [name(workload)]);
    }
    for policy in of_kind(&objects, "NetworkPolicy") {
        let selected = found(&policy["spec"]["podSelector"]["matchLabels"]);
        if name(policy) == "support-chat" {
            assert_eq!(selected, all);
        } else {
            assert_eq!(selected, [name(policy)]);
        }
    }
    let service = named(&objects, "Service", "support-chat");
    assert_eq!(found(&service["spec"]["selector"]), ["support-chat-gateway"]);
    assert_eq!(service["spec"]["sessionAffinity"], "ClientIP");
}

#[test]
fn pods_may_little() {
    let objects = objects();
    for (workload, _) in workloads(&objects) {
        let (pod, container) = (pod(workload), container(workload));
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        // As the images say.
        assert_eq!(pod["securityContext"]["runAsUser"], 65532);
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
        let image = container["image"].as_str().expect("an image");
        assert!(image.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))), "{image}");
    }
}
