//! Settings are checked at the start: one clear line per mistake, and no secret is ever printed.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::json;
use shared::settings::COMMON;
use tests::{JsClients, Stack, eventually, is_taken};
use tokio::process::Command;
use url::Url;

/// A mistake that is not noticed would let the program run.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(30);
/// Part of every value that must not be repeated.
const SECRET: &str = "hunter2";

/// What Rust's own parsers say, and no operator understands.
const JARGON: [&str; 4] =
    ["invalid digit", "target type", "invalid socket address", "empty string"];

type Environment<'a> = &'a [(&'a str, &'a str)];

async fn run(program: &'static str, args: &[&str], env: Environment<'_>, folder: &Path) -> Output {
    let path = tokio::task::spawn_blocking(move || tests::program(program)).await.unwrap();
    let mut command = Command::new(path);
    command.args(args).env_clear().envs(env.iter().copied()).current_dir(folder).kill_on_drop(true);
    let ended = tokio::time::timeout(ENDS_WITHIN, command.output()).await;
    ended.unwrap_or_else(|_| panic!("{program} {args:?} {env:?} does not end")).unwrap()
}

/// What a start that is refused prints.
async fn refused(program: &'static str, env: Environment<'_>, folder: &Path) -> Vec<String> {
    let output = run(program, &[], env, folder).await;
    assert!(!output.status.success(), "{program} {env:?} starts");
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains(SECRET), "{env:?}: {text}");
    text.lines().map(str::to_owned).collect()
}

/// One line, which begins with the name of the setting.
async fn assert_refused(program: &'static str, name: &str, value: &str) {
    let lines = refused(program, &[(name, value)], &std::env::temp_dir()).await;
    assert_eq!(lines.len(), 1, "{program} {name}={value}: {lines:?}");
    assert!(lines[0].starts_with(&format!("{name}: ")), "{name}={value}: {lines:?}");
    assert!(JARGON.iter().all(|words| !lines[0].contains(words)), "not clear: {lines:?}");
}

/// An empty folder of a test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("chat-settings-{}-{name}", std::process::id()));
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(&folder).unwrap();
    folder
}

const COMMON_MISTAKES: &[(&str, &str)] = &[
    ("DATABASE_URL", "hunter2"),
    ("DATABASE_URL", "mysql://user:hunter2@localhost:3306/chat"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:port/chat"),
    ("DATABASE_URL", "postgresql://user:hunter2#@localhost:5432/chat"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432/chat?sslmode=hunter2"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432/chat?connect_timeout=hunter2"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432/chat?schema="),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432/chat?schema=a\"b"),
    ("DATABASE_URL", "postgresql://user:hunter2%ff@localhost:5432/chat"),
    ("DATABASE_URL", "postgresql://user:hunter2@one:5432,two:5432/chat"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432/chat?sslmode=no_verify"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432/chat?ssl=hunter2"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432/chat?sslrootcert=/hunter2"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432/chat?sslidentity=hunter2"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432/chat?pgbouncer=hunter2"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432/chat?options=hunter2"),
    ("NATS_URL", "http://user:hunter2@localhost"),
    ("NATS_URL", "nats://user:hunter2%ff@localhost"),
    ("NATS_URL", "nats://user:hunter2@localhost/chat"),
    ("NATS_URL", "nats://user:hunter2@one,nats://user:other@two"),
    ("LOG_STREAM", "hunter2.chat"),
    ("LOG_STREAM", "*"),
    ("NATS_URL", "nats://user:hunter2@localhost:port"),
    ("PARTITIONS", "0"),
    ("PARTITIONS", "-1"),
    ("PARTITIONS", "hunter2"),
    ("PARTITIONS", "1025"),
    ("PARTITIONS", "99999999999999999999"),
    ("LOG_MAX_BYTES", "1GB"),
    ("LOG_MAX_BYTES", "1"),
    ("LOG_MAX_BYTES", "-1"),
    ("LOG_REPLICAS", "hunter2"),
    ("LOG_REPLICAS", "0"),
    ("LOG_REPLICAS", "6"),
    ("SEARCH", "hunter2"),
    ("RUST_LOG", "gateway=hunter2"),
    ("LOG_FORMAT", "xml"),
    ("SHUTDOWN_SECONDS", "soon"),
    ("SHUTDOWN_SECONDS", "-1"),
];

const GATEWAY_MISTAKES: &[(&str, &str)] = &[
    ("HOST", "chat.example"),
    ("HOST", "256.0.0.1"),
    ("PORT", "http"),
    ("PORT", "65536"),
    ("ALLOW_INSECURE_OPEN", "maybe"),
    ("JWT_SECRET", "hunter2"),
    ("JWT_PUBLIC_KEY", "hunter2"),
    ("JWT_AUDIENCE", "hunter2"),
    ("TRY_PAGE", "hunter2"),
    ("SOCKET_IO_CLIENT", "/hunter2"),
    ("CORS_ORIGINS", "shop.example"),
    ("CORS_ORIGINS", "https://shop.example,*"),
    ("CORS_ORIGINS", "https://shop.example/x"),
    ("CORS_ORIGINS", "https://*"),
    ("CORS_ORIGINS", "file://"),
    ("CORS_CREDENTIALS", "true"),
    ("TRUSTED_PROXIES", "proxy.example"),
    ("TRUSTED_PROXIES", "10.0.0.0/33"),
    ("LIMITS", "sometimes"),
    ("MESSAGES_PER_SECOND", "0"),
    ("MESSAGES_BURST", "many"),
    ("NEW_SESSIONS_PER_MINUTE", "-1"),
    ("SOCKETS_PER_ADDRESS", "0"),
    ("ROOMS_PER_SOCKET", "0"),
    ("MAX_HEADER_BYTES", "10"),
    ("WAITING_BYTES_PER_SOCKET", "1"),
    ("WAITING_BYTES_PER_ADDRESS", "64MB"),
    ("WAITING_BYTES", "-1"),
    ("HEADER_SECONDS", "0"),
    ("CONNECTIONS_PER_ADDRESS", "0"),
    ("HTTP_READS_PER_SECOND", "0"),
    ("HTTP_READS_BURST", "many"),
    ("HTTP_READS_AT_ONCE", "none"),
    ("HTTP_REQUESTS_PER_SECOND", "0"),
    ("HTTP_REQUESTS_BURST", "-1"),
    ("SLOW_SECONDS", "0"),
    ("MIN_BYTES_PER_SECOND", "1kB"),
    ("IDLE_SECONDS", "soon"),
    ("MAX_CONTENT_CHARS", "0"),
    ("MAX_CONTENT_CHARS", "many"),
    ("MAX_PAYLOAD_BYTES", "0"),
    ("MAX_PAYLOAD_BYTES", "1MB"),
];

const PERSISTER_MISTAKES: &[(&str, &str)] = &[
    ("OPS_ADDRESS", "4010"),
    ("DATABASE_URL", "postgresql://user:hunter2@localhost:5432/chat?pgbouncer=true"),
    ("DIRECT_URL", "hunter2"),
    ("OPS_ADDRESS", "localhost:4010"),
    ("LOG_KEEP", "hunter2"),
    ("LOG_KEEP", "-1d"),
    ("LOG_KEEP", "7"),
    ("RETENTION", "90"),
    ("RETENTION", "90s"),
    ("RETENTION", "never"),
];

#[tokio::test]
async fn every_mistake_is_one_line_that_names_its_setting_and_repeats_no_value() {
    for (name, value) in COMMON_MISTAKES {
        assert_refused("gateway", name, value).await;
        assert_refused("persister", name, value).await;
    }
    for (name, value) in GATEWAY_MISTAKES {
        assert_refused("gateway", name, value).await;
    }
    for (name, value) in PERSISTER_MISTAKES {
        assert_refused("persister", name, value).await;
    }
}

#[tokio::test]
async fn all_mistakes_are_told_at_once() {
    let env = [("PORT", "x"), ("NATS_URL", "x:y:z"), ("PARTITIONS", "0"), ("CORS_ORIGINS", "x")];
    let lines = refused("gateway", &env, &std::env::temp_dir()).await;
    assert_eq!(lines.len(), env.len(), "{lines:?}");
    for (name, _) in env {
        assert_eq!(lines.iter().filter(|line| line.starts_with(name)).count(), 1, "{lines:?}");
    }
}

#[tokio::test]
async fn open_mode_beyond_this_machine_is_refused_unless_it_is_said_in_so_many_words() {
    for host in ["0.0.0.0", "::", "[::]", "192.0.2.1", "::ffff:192.0.2.1"] {
        let lines = refused("gateway", &[("HOST", host)], &std::env::temp_dir()).await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("HOST: "), "{lines:?}");
        assert!(lines[0].contains("ALLOW_INSECURE_OPEN=true"), "{lines:?}");
    }
    let open =
        Stack::builder().gateway_env("HOST", "0.0.0.0").gateway_env("ALLOW_INSECURE_OPEN", "true");
    let stack = open.start().await;
    assert!(stack.http().get(stack.url("/health")).send().await.unwrap().status().is_success());
}

#[tokio::test]
async fn help_lists_every_setting_with_its_default() {
    for (program, own) in [("gateway", gateway::config::OWN), ("persister", persister::config::OWN)]
    {
        for flag in ["--help", "-h"] {
            let output = run(program, &[flag], &[], &std::env::temp_dir()).await;
            assert!(output.status.success(), "{output:?}");
            let help = String::from_utf8(output.stdout).unwrap();
            for setting in COMMON.iter().chain(own) {
                let entry = format!("  {}\n", setting.name);
                assert_eq!(help.matches(&entry).count(), 1, "{program} {flag}: {}", setting.name);
                assert!(help.contains(setting.help), "{program} {flag}: {}", setting.name);
                assert!(
                    help.contains(&format!("[default: {}", setting.default)),
                    "{}",
                    setting.name
                );
            }
        }
    }
}

#[tokio::test]
async fn an_env_file_in_the_working_directory_is_read_and_the_environment_wins() {
    let folder = folder("env");
    let file = folder.join(".env");
    fs::write(&file, "# seed\nPORT=\"nowhere\" # quoted\nexport LOG_FORMAT='xml'\nUNKNOWN=1\n")
        .unwrap();
    let lines = refused("gateway", &[], &folder).await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("PORT: ")), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("LOG_FORMAT: ")), "{lines:?}");
    let lines = refused("gateway", &[("PORT", "4000")], &folder).await;
    assert_eq!(lines.len(), 1, "{lines:?}");

    // A variable that is set to nothing is set.
    let lines = refused("gateway", &[("LOG_FORMAT", "")], &folder).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn lines_of_an_env_file_that_set_nothing_are_passed_over_with_one_warning() {
    let folder = folder("passed-over");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let prose = format!("the password is {SECRET}, and\nthis is no setting\n");
    let settings = format!("TITLE=Our Chat\nx.y=1\nA=`b`\nPORT={port} # taken\n");
    fs::write(folder.join(".env"), format!("{prose}{settings}")).unwrap();
    let output = run("gateway", &[], &[], &folder).await;
    let printed =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    let warnings: Vec<_> = printed.lines().filter(|line| line.contains(".env")).collect();
    assert_eq!(warnings.len(), 1, "{printed}");
    assert!(warnings[0].contains("WARN") && warnings[0].contains("1, 2"), "{printed}");
    assert!(printed.contains("PORT: ") && !printed.contains(SECRET), "{printed}");
    fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn an_env_file_of_the_folder_above_is_not_read() {
    let folder = folder("above");
    let below = folder.join("below");
    fs::create_dir(&below).unwrap();
    fs::write(folder.join(".env"), "PORT=nowhere\n").unwrap();
    let lines = refused("gateway", &[("LOG_FORMAT", "xml")], &below).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_taken_port_is_one_clear_line() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let lines = refused("gateway", &[("PORT", &port)], &std::env::temp_dir()).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("PORT: ") && lines[0].contains(&port), "{lines:?}");
    let address = format!("127.0.0.1:{port}");
    let lines = refused("persister", &[("OPS_ADDRESS", &address)], &std::env::temp_dir()).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("OPS_ADDRESS: ") && lines[0].contains(&port), "{lines:?}");
}

#[tokio::test]
async fn health_asks_the_service_that_runs_here() {
    let stack = Stack::start().await;
    let port = stack.gateway(0).port().to_string();
    let ops = format!("127.0.0.1:{}", stack.persister(0).port());
    let asked: [(_, Environment); 2] =
        [("gateway", &[("PORT", &port)]), ("persister", &[("OPS_ADDRESS", &ops)])];
    for (program, env) in asked {
        let output = run(program, &["health"], env, &std::env::temp_dir()).await;
        assert!(output.status.success(), "{output:?}");
    }
    stack.gateway(0).kill();
    stack.persister(0).kill();
    for (program, env) in asked {
        let output = run(program, &["health"], env, &std::env::temp_dir()).await;
        assert!(!output.status.success());
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1, "{program}");
    }
}

#[tokio::test]
async fn another_partition_count_than_the_logs_is_refused_and_the_way_to_change_it_is_named() {
    let stack = Stack::start().await;
    for service in [stack.gateway(0), stack.persister(0)] {
        service.kill();
        service.set_env("PARTITIONS", "8");
        service.spawn();
        assert!(!service.exit_status(SOON).await.success());
        let logs = service.logs();
        let last = logs.lines().last().unwrap();
        assert!(
            last.contains("16") && last.contains("PARTITIONS") && last.contains("stop"),
            "{last}"
        );
        service.set_env("PARTITIONS", "16");
    }
    stack.start_services().await;
}

#[tokio::test]
async fn an_unknown_parameter_of_the_database_url_is_warned_of_and_prismas_own_are_not() {
    let stack = Stack::builder().services_stopped().start().await;
    let parameters =
        "schema=public&connect_timeout=5&connection_limit=4&sslmode=prefer&pool_timeout=3";
    let url = format!("{}?{parameters}&nonsense={SECRET}", stack.database_url());
    for service in [stack.persister(0), stack.gateway(0)] {
        service.set_env("DATABASE_URL", &url);
        service.start().await;
        let logs = service.logs();
        let warnings: Vec<_> = logs.lines().filter(|line| line.contains("DATABASE_URL")).collect();
        assert_eq!(warnings.len(), 1, "{logs}");
        assert!(warnings[0].contains("WARN") && warnings[0].contains("nonsense"), "{logs}");
        assert!(!logs.contains(SECRET), "{logs}");
    }
}

/// The URL with a password that nobody asks for, unless it has one; and that password.
fn with_password(url: &str) -> (String, String) {
    let mut url = Url::parse(url).unwrap();
    if url.password().is_none() {
        if url.username().is_empty() {
            url.set_username("somebody").unwrap();
        }
        url.set_password(Some(SECRET)).unwrap();
    }
    (url.to_string(), url.password().unwrap().to_owned())
}

#[tokio::test]
async fn no_secret_is_logged_at_any_level_and_no_session_id_above_debug() {
    for (level, format) in [("trace", "text"), ("debug", "json"), ("info", "text")] {
        let verbose = Stack::builder().env("RUST_LOG", level).env("LOG_FORMAT", format);
        let stack = verbose.services_stopped().start().await;
        let (database, of_postgres) = with_password(stack.database_url());
        let (nats, of_nats) = with_password(&stack.nats().url());
        for service in [stack.gateway(0), stack.persister(0)] {
            service.set_env("DATABASE_URL", &database);
            service.set_env("NATS_URL", &nats);
        }
        stack.start_services().await;
        let session = converse(&stack).await;
        for service in [stack.gateway(0), stack.persister(0)] {
            let logs = service.logs();
            assert!(!logs.is_empty());
            for secret in [&of_postgres, &of_nats] {
                assert!(!logs.contains(secret), "{level}: {}", line_with(&logs, secret));
            }
            if level == "info" {
                assert!(!logs.contains(&session), "{}", line_with(&logs, &session));
            }
        }
    }
}

/// A conversation, also through an outage: that is what is written about most.
async fn converse(stack: &Stack) -> String {
    let client = JsClients::start().await.client(&stack.url(""), &["websocket"]).await;
    let session = client.stay(None).await["sessionId"].as_str().unwrap().to_owned();
    let say = json!({ "sessionId": session, "content": "hello" });
    client.ask("user_message", say.clone()).await;
    client.ask("user_message", json!({ "sessionId": session, "content": "" })).await;
    stack.nats().kill().await;
    client.ask("user_message", say.clone()).await;
    stack.nats().start().await;
    eventually(SOON, "it is accepted again", async || {
        is_taken(&client.ask("user_message", say.clone()).await)
    })
    .await;
    eventually(SOON, "it is delivered", async || client.messages().await.len() >= 2).await;
    session
}

fn line_with<'a>(logs: &'a str, text: &str) -> &'a str {
    logs.lines().find(|line| line.contains(text)).unwrap_or_default()
}
