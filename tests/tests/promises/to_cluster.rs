//! `docs/operating/cluster.md`, step by step: from one NATS server to three, while clients talk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stack::child::Signal;
use stack::launch::{Output, Program};
use stack::{Child, Port, find};
use tests::runbooks::{self, Shell, blocks};
use tests::{Conversation, JsClients, Service, Stack, machine};

const STOPS_WITHIN: Duration = Duration::from_secs(20);

/// A server of the new cluster.
struct Member {
    config: PathBuf,
    client: Port,
    monitor: Port,
    _route: Port,
    process: Mutex<Option<Child>>,
}

impl Member {
    /// Three with the settings of the runbook, but for names, places and ports: here one machine has all.
    fn three(home: &Path) -> Vec<Self> {
        let text = runbooks::text("cluster.md");
        let settings = text.split("```\n").nth(1).expect("settings");
        let port = || Port::reserve().expect("a port");
        let routes = [port(), port(), port()];
        let there = |number: u16| format!("127.0.0.1:{number}");
        let mut settings = settings.to_owned();
        for (name, route) in ["nats-1:6222", "nats-2:6222", "nats-3:6222"].iter().zip(&routes) {
            assert!(settings.contains(name), "{settings}");
            settings = settings.replace(name, &there(route.number()));
        }
        let members = routes.into_iter().zip(1..).map(|(route, number)| {
            let (client, monitor) = (port(), port());
            let folder = home.join(format!("server-{number}"));
            let (listen, http) = (there(client.number()), there(monitor.number()));
            let own = settings
                .replace("nats-1 ", &format!("nats-{number} "))
                .replace("/data", &folder.to_string_lossy())
                .replace("http_port: 8222", &format!("http: \"{http}\""))
                .replace("0.0.0.0:6222", &format!("\"{}\"", there(route.number())));
            fs::create_dir_all(&folder).expect("a folder");
            let config = folder.join("nats.conf");
            fs::write(&config, format!("listen: \"{listen}\"\n{own}")).expect("settings");
            Self { config, client, monitor, _route: route, process: Mutex::default() }
        });
        members.collect()
    }

    fn start(&self) {
        let machine = machine();
        let file = find::nats(&machine).expect("nats-server");
        let output = Output::File(self.config.with_extension("log"));
        let program = Program { output, ..Program::new("nats-server", file) };
        let program = program.args(["-c".as_ref(), self.config.as_os_str()]);
        let child = program.start(&machine).expect("a start");
        *self.process.lock().expect("a lock") = Some(child);
    }

    fn restart(&self) {
        let child = self.process.lock().expect("a lock").take().expect("it runs");
        child.stop(Signal::TERM, STOPS_WITHIN).expect("a stop");
        self.start();
    }

    /// Waits as the runbook does.
    async fn is_whole(&self, shell: &Shell) {
        let [wait] = blocks("cluster.md").try_into().expect("one block");
        let monitor = format!("127.0.0.1:{}", self.monitor.number());
        shell.run_with(&[("MONITOR", &monitor)], &wait).await;
    }
}

/// Runs what waits without `await`.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("an end")
}

async fn started(shell: &Shell) -> Vec<Arc<Member>> {
    let home = shell.home().to_path_buf();
    let members = apart(move || {
        let members: Vec<_> = Member::three(&home).into_iter().map(Arc::new).collect();
        for member in &members {
            member.start();
        }
        members
    });
    let members = members.await;
    for member in &members {
        member.is_whole(shell).await;
    }
    members
}

async fn terminate(service: &Service) {
    assert!(service.terminate().await.success(), "{}", service.logs());
}

/// Steps 2 to 6.
async fn move_over(stack: &Stack, shell: &Shell, members: &[Arc<Member>]) {
    for gateway in stack.gateways() {
        terminate(gateway).await;
    }
    terminate(stack.persister(1)).await;
    let [drain, _] = blocks("partitions.md").try_into().expect("two blocks");
    shell.run(stack, &drain).await;
    terminate(stack.persister(0)).await;
    let urls = members.iter().map(|member| format!("nats://127.0.0.1:{}", member.client.number()));
    let urls = urls.collect::<Vec<_>>().join(",");
    for service in stack.persisters().iter().chain(stack.gateways()) {
        service.set_env("NATS_URL", &urls);
        service.set_env("LOG_REPLICAS", "3");
    }
    stack.start_services().await;
    let [back_up, _, _] = blocks("backup.md").try_into().expect("three blocks");
    shell.run(stack, &back_up).await;
    stack.nats().kill().await;
}

async fn is_delivered(conversations: &[Conversation]) {
    for conversation in conversations {
        conversation.is_delivered(10).await;
    }
}

#[tokio::test]
async fn the_log_moves_to_a_cluster_while_clients_talk_and_nothing_is_lost() {
    let Some(shell) = Shell::open_to_back_up().await else { return };
    let stack = Stack::builder().gateways(2).persisters(2).start().await;
    let js_clients = JsClients::start().await;
    let mut conversations = Vec::new();
    for number in 0..4 {
        conversations.push(Conversation::begin_on(&stack, &js_clients, number % 2).await);
    }
    is_delivered(&conversations).await;
    let members = started(&shell).await;
    move_over(&stack, &shell, &members).await;
    is_delivered(&conversations).await;
    for member in &members {
        let restarting = Arc::clone(member);
        apart(move || restarting.restart()).await;
        member.is_whole(&shell).await;
        is_delivered(&conversations).await;
    }
    for conversation in conversations {
        conversation.end(&stack).await;
    }
}
