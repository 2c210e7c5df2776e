//! Servers from containers, for machines where Docker is what there is.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use stack::Port;
use testcontainers::core::logs::LogFrame;
use testcontainers::core::{ContainerPort, Mount, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt};
use tokio::net::TcpStream;

use crate::binaries::workspace;
use crate::wait::{eventually, must};

const USER: &str = "chat";
/// Like nothing else that is printed: tests look for passwords in logs.
const PASSWORD: &str = "onlyInContainers7Zq4";
/// As with programs of this machine: in programs that are not optimised, the hash rounds of SCRAM take longer than the
/// services wait for a connection.
const AUTH: &str = "password";
const POSTGRES: ContainerPort = ContainerPort::Tcp(5432);
const NATS: ContainerPort = ContainerPort::Tcp(4222);
/// Where a nats-server finds its configuration, and keeps its log.
const NATS_HOME: &str = "/home-of-nats";

/// Settings of a Postgres that need not outlive a loss of power.
const HASTY: [&str; 3] = ["fsync=off", "synchronous_commit=off", "full_page_writes=off"];

/// Waits until nobody can write to it any more.
const REMOVES: &str = r#"read -r _; exec docker rm --force --volumes "$0""#;

/// After a restart, until the server listens again.
const STARTS_WITHIN: Duration = Duration::from_mins(1);
/// Until Docker kills what does not stop.
const STOPS_WITHIN: i32 = 20;

/// A container on a fixed port of 127.0.0.1, so that it comes back where it was.
#[derive(Debug)]
pub(crate) struct Container {
    port: Port,
    /// Where its data are on this machine, if they are.
    data: Option<PathBuf>,
    /// Taken only to be dropped.
    container: Option<ContainerAsync<GenericImage>>,
    /// Removes it where this process is killed. Without Docker's command line there is none.
    remover: Option<Child>,
}

/// A nats-server with `JetStream`, whose log lies in a folder of `home`.
pub(crate) async fn nats(
    home: &Path,
    sync_interval: Option<&str>,
    max_file_store: &str,
) -> Container {
    let folder = home.join("nats");
    let sync_interval = sync_interval.map(|interval| format!("sync_interval: {interval}\n"));
    let config = format!(
        "listen: \"0.0.0.0:{}\"\njetstream {{\nstore_dir: \"{NATS_HOME}/store\"\n\
         max_file_store: {max_file_store}\n{}}}\n",
        NATS.as_u16(),
        sync_interval.unwrap_or_default(),
    );
    must(fs::create_dir_all(&folder), "a folder for NATS");
    must(fs::write(folder.join("nats.conf"), config), "configuring NATS");
    let image = image("nats").with_exposed_port(NATS);
    let request = image
        .with_wait_for(WaitFor::message_on_stderr("Server is ready"))
        .with_mount(Mount::bind_mount(folder.to_string_lossy(), NATS_HOME))
        // What it writes there is ours to copy and to throw away.
        .with_user(this_user())
        .with_cmd(["-c".to_owned(), format!("{NATS_HOME}/nats.conf")]);
    Container::start_first(request, NATS, home.join("nats.log"), Some(folder.join("store"))).await
}

/// A Postgres, which says that it is ready twice: once before and once after its own set-up. One that is not
/// durable does not wait for the disk.
pub(crate) async fn postgres(home: &Path, durable: bool) -> Container {
    let hasty = if durable { &[][..] } else { &HASTY[..] };
    let settings = ["max_connections=400"].into_iter().chain(hasty.iter().copied());
    let ready = || WaitFor::message_on_stderr("database system is ready to accept connections");
    let request = image("postgres")
        .with_exposed_port(POSTGRES)
        .with_wait_for(WaitFor::message_on_stdout("PostgreSQL init process complete"))
        .with_wait_for(ready())
        // As in Compose: it needs no more.
        .with_user("postgres")
        .with_env_var("POSTGRES_USER", USER)
        .with_env_var("POSTGRES_PASSWORD", PASSWORD)
        .with_env_var("POSTGRES_HOST_AUTH_METHOD", AUTH)
        .with_cmd(settings.flat_map(|setting| ["-c", setting]));
    Container::start_first(request, POSTGRES, home.join("postgres.log"), None).await
}

/// The URL of the maintenance database.
pub(crate) fn postgres_url(container: &Container) -> String {
    format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/postgres", container.port())
}

/// The major version of the containers' Postgres.
pub(crate) fn postgres_major() -> u32 {
    let (_, tag) = named_image("postgres");
    let major = tag.split(['.', '-']).next().and_then(|major| major.parse().ok());
    must(major.with_context(|| tag.clone()), "reading a tag of Postgres")
}

fn image(service: &str) -> GenericImage {
    let (name, tag) = named_image(service);
    GenericImage::new(name, tag)
}

/// Name and tag of the image that Compose runs.
fn named_image(service: &str) -> (String, String) {
    let read = || -> Result<(String, String)> {
        let compose = fs::read_to_string(workspace().join("compose.yaml"))?;
        let compose: Value = serde_saphyr::from_str(&compose)?;
        let image = compose["services"][service]["image"].as_str().context("no image")?;
        let (name, tag) = image.split_once(':').context("no tag")?;
        Ok((name.to_owned(), tag.to_owned()))
    };
    must(read(), "looking for an image in compose.yaml")
}

fn this_user() -> String {
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    format!("{}:{}", user.as_raw(), group.as_raw())
}

impl Container {
    /// What it prints goes to `log`.
    async fn start_first(
        request: impl Into<ContainerRequest<GenericImage>>,
        inside: ContainerPort,
        log: PathBuf,
        data: Option<PathBuf>,
    ) -> Self {
        let port = must(Port::reserve(), "a port for a container");
        let log = must(File::create(log), "a log of a container");
        // A line that cannot be written is missing when a test fails, no more.
        let note = move |frame: &LogFrame| drop((&log).write_all(frame.bytes()));
        let name = format!("chat-test-{}-{}", process::id(), port.number());
        let request = request.into().with_container_name(&name);
        let request = request.with_mapped_port(port.number(), inside).with_log_consumer(note);
        // Before it is there: until it is ready nobody else knows of it.
        let remover = remover(&name);
        let container = must(request.start().await, "starting a container");
        Self { port, data, container: Some(container), remover }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where its data are on this machine.
    pub(crate) fn data(&self) -> PathBuf {
        must(self.data.clone().context("they are in a volume"), "reaching for data of a container")
    }

    pub(crate) async fn start(&self) {
        must(self.container().start().await, "starting a container");
        let address = ("127.0.0.1", self.port());
        eventually(STARTS_WITHIN, "a container listens", async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await;
    }

    pub(crate) async fn stop(&self) {
        let stopped = self.container().stop_with_timeout(Some(STOPS_WITHIN)).await;
        must(stopped, "stopping a container");
    }

    /// Docker sends SIGKILL when the time for a stop is over, which is at once.
    pub(crate) async fn kill(&self) {
        must(self.container().stop_with_timeout(Some(0)).await, "killing a container");
    }

    pub(crate) async fn pause(&self) {
        must(self.container().pause().await, "freezing a container");
    }

    pub(crate) async fn resume(&self) {
        must(self.container().unpause().await, "thawing a container");
    }

    pub(crate) async fn is_running(&self) -> bool {
        must(self.container().is_running().await, "looking after a container")
    }

    fn container(&self) -> &ContainerAsync<GenericImage> {
        must(self.container.as_ref().context("it is removed"), "reaching for a container")
    }
}

/// Removed also where the test's runtime is gone already, or was never that of this thread.
impl Drop for Container {
    fn drop(&mut self) {
        let container = self.container.take();
        let removing = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            if let Some(Err(error)) = container.map(|container| runtime.block_on(container.rm())) {
                eprintln!("a container stays: {error}");
            }
        });
        // It said itself what went wrong.
        drop(removing.join());
        if let Some(remover) = &mut self.remover {
            // It has nothing to do any more.
            drop(remover.kill().and_then(|()| remover.wait()));
        }
    }
}

/// However this process ends, the pipe to the other one ends with it. In a group of its own, as Ctrl-C ends all others.
fn remover(container: &str) -> Option<Child> {
    let mut shell = Command::new("sh");
    shell.args(["-c", REMOVES, container]).process_group(0);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    shell.spawn().ok()
}
