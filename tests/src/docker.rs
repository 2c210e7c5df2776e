//! Servers from containers, for machines where Docker is what there is.

use std::time::Duration;

use stack::Port;
use testcontainers::core::{ContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::net::TcpStream;

use crate::wait::{eventually, must};

const USER: &str = "chat";
const PASSWORD: &str = "chat";
const POSTGRES: ContainerPort = ContainerPort::Tcp(5432);
const NATS: ContainerPort = ContainerPort::Tcp(4222);

/// After a restart, until the server listens again.
const STARTS_WITHIN: Duration = Duration::from_mins(1);
/// Until Docker kills what does not stop.
const STOPS_WITHIN: i32 = 20;

/// A container on a fixed port of 127.0.0.1, so that it comes back where it was.
#[derive(Debug)]
pub(crate) struct Container {
    port: Port,
    container: ContainerAsync<GenericImage>,
}

/// A nats-server with `JetStream`.
pub(crate) async fn nats() -> Container {
    let image = GenericImage::new("nats", "2.11-alpine")
        .with_exposed_port(NATS)
        .with_wait_for(WaitFor::message_on_stderr("Server is ready"));
    let port = must(Port::reserve(), "a port for NATS");
    let request = image.with_mapped_port(port.number(), NATS).with_cmd(["-js", "-sd", "/data"]);
    Container { port, container: must(request.start().await, "starting a NATS container") }
}

/// A Postgres, which says that it is ready twice: once before and once after its own set-up.
pub(crate) async fn postgres() -> Container {
    let ready = || WaitFor::message_on_stderr("database system is ready to accept connections");
    let image = GenericImage::new("postgres", "18-alpine")
        .with_exposed_port(POSTGRES)
        .with_wait_for(WaitFor::message_on_stdout("PostgreSQL init process complete"))
        .with_wait_for(ready());
    let port = must(Port::reserve(), "a port for Postgres");
    let request = image
        .with_mapped_port(port.number(), POSTGRES)
        .with_env_var("POSTGRES_USER", USER)
        .with_env_var("POSTGRES_PASSWORD", PASSWORD)
        .with_cmd(["-c", "max_connections=400"]);
    Container { port, container: must(request.start().await, "starting a Postgres container") }
}

/// The URL of the maintenance database.
pub(crate) fn postgres_url(container: &Container) -> String {
    format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/postgres", container.port())
}

impl Container {
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    pub(crate) async fn start(&self) {
        must(self.container.start().await, "starting a container");
        let address = ("127.0.0.1", self.port());
        eventually(STARTS_WITHIN, "a container listens", async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await;
    }

    pub(crate) async fn stop(&self) {
        must(self.container.stop_with_timeout(Some(STOPS_WITHIN)).await, "stopping a container");
    }

    /// Docker sends SIGKILL when the time for a stop is over, which is at once.
    pub(crate) async fn kill(&self) {
        must(self.container.stop_with_timeout(Some(0)).await, "killing a container");
    }

    pub(crate) async fn pause(&self) {
        must(self.container.pause().await, "freezing a container");
    }

    pub(crate) async fn resume(&self) {
        must(self.container.unpause().await, "thawing a container");
    }
}
