//! A stack's nats-server, or its own Postgres: to kill, freeze and start again.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use anyhow::Result;
use stack::cluster::Cluster;
use stack::launch::Output;
use stack::{Machine, Port, nats, postgres};

use crate::block_disk::settle;
#[cfg(feature = "docker")]
use crate::docker::{self, Container};
use crate::wait::{blocking, must};

/// More than any disk has, so that what a stream may promise does not depend on the machine.
const STORE: &str = "1TB";

/// The stack's nats-server.
pub type Nats = Server<nats::Nats>;
/// The Postgres that a stack has for itself.
pub type Postgres = Server<postgres::Postgres>;

/// A server that comes back on the same port with its data.
#[derive(Debug)]
pub struct Server<P>(Place<P>);

#[derive(Debug)]
enum Place<P> {
    Local(Arc<P>),
    #[cfg(feature = "docker")]
    Docker(Box<Container>),
}

/// What can be done to a server that is a process of ours.
#[expect(missing_docs, reason = "the methods of `Server` say it")]
pub trait Process: Send + Sync + 'static {
    fn start(&self) -> Result<()>;
    fn stop(&self) -> Result<()>;
    fn kill(&self) -> Result<()>;
    fn pause(&self) -> Result<()>;
    fn resume(&self) -> Result<()>;
    fn port(&self) -> u16;
    fn id(&self) -> Option<u32>;
    fn ended(&self) -> Result<Option<ExitStatus>>;
}

impl<P: Process> Server<P> {
    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        match &self.0 {
            Place::Local(process) => process.port(),
            #[cfg(feature = "docker")]
            Place::Docker(container) => container.port(),
        }
    }

    /// Starts it again and waits until it takes connections.
    pub async fn start(&self) {
        match &self.0 {
            Place::Local(process) => act(process, "starting a server", P::start).await,
            #[cfg(feature = "docker")]
            Place::Docker(container) => container.start().await,
        }
    }

    /// Stops it in order; connections are ended.
    pub async fn stop(&self) {
        match &self.0 {
            Place::Local(process) => act(process, "stopping a server", P::stop).await,
            #[cfg(feature = "docker")]
            Place::Docker(container) => container.stop().await,
        }
    }

    /// `kill -9` of all its processes; returns once they are gone.
    pub async fn kill(&self) {
        match &self.0 {
            Place::Local(process) => act(process, "killing a server", P::kill).await,
            #[cfg(feature = "docker")]
            Place::Docker(container) => container.kill().await,
        }
    }

    /// SIGSTOP to all its processes: connections stay and nothing answers.
    pub async fn pause(&self) {
        match &self.0 {
            Place::Local(process) => act(process, "freezing a server", P::pause).await,
            #[cfg(feature = "docker")]
            Place::Docker(container) => container.pause().await,
        }
    }

    /// SIGCONT.
    pub async fn resume(&self) {
        match &self.0 {
            Place::Local(process) => act(process, "thawing a server", P::resume).await,
            #[cfg(feature = "docker")]
            Place::Docker(container) => container.resume().await,
        }
    }

    /// Whether it ended though nobody stopped it.
    pub async fn ended(&self) -> bool {
        match &self.0 {
            Place::Local(process) => {
                let process = Arc::clone(process);
                blocking("looking after a server", move || Ok(process.ended()?.is_some())).await
            }
            #[cfg(feature = "docker")]
            Place::Docker(container) => !container.is_running().await,
        }
    }

    /// Its process id, if it runs as a process of ours.
    pub fn id(&self) -> Option<u32> {
        match &self.0 {
            Place::Local(process) => process.id(),
            #[cfg(feature = "docker")]
            Place::Docker(_) => None,
        }
    }
}

impl Nats {
    pub(crate) async fn local_nats(
        machine: Machine,
        (home, data): (&Path, &Path),
        sync_interval: Option<String>,
    ) -> Self {
        Self::local(machine, (home, data), "nats", sync_interval, None).await
    }

    /// Three that are one.
    pub(crate) async fn local_cluster(
        machine: &Machine,
        home: &Path,
        sync_interval: Option<&String>,
    ) -> [Self; 3] {
        let ports = [0; 3].map(|_| Arc::new(must(Port::reserve(), "a port for a nats-server")));
        let all: Vec<_> = ports.iter().map(|port| port.number()).collect();
        let [one, two, three] = ports.map(|port| Some(nats::Member { port, all: all.clone() }));
        let server = async |name: &str, member| {
            Self::local(machine.clone(), (home, home), name, sync_interval.cloned(), member).await
        };
        [server("nats", one).await, server("nats-2", two).await, server("nats-3", three).await]
    }

    /// What it prints goes to `home`, the log that it keeps to `data`; that its own folder is there on a disk
    /// that can be cut off was somebody else's care.
    async fn local(
        machine: Machine,
        (home, data): (&Path, &Path),
        name: &str,
        sync_interval: Option<String>,
        cluster: Option<nats::Member>,
    ) -> Self {
        let settings = nats::Settings {
            sync_interval,
            max_file_store: Some(STORE.to_owned()),
            cluster,
            output: Output::File(home.join(format!("{name}.log"))),
            ..nats::Settings::default()
        };
        let (elsewhere, data) = (data != home, data.join(name));
        let server = blocking("starting nats-server", move || {
            let server = nats::Nats::new(&machine, &data, Port::reserve()?, settings)?;
            if elsewhere {
                settle(&data)?;
            }
            server.start()?;
            Ok(server)
        });
        Self(Place::Local(Arc::new(server.await)))
    }

    /// What it is called in its cluster.
    pub fn name(&self) -> String {
        match &self.0 {
            Place::Local(server) => server.name(),
            #[cfg(feature = "docker")]
            Place::Docker(_) => "nats".to_owned(),
        }
    }

    /// What it prints and the log that it keeps go to `home`.
    #[cfg(feature = "docker")]
    pub(crate) async fn docker(home: &Path, sync_interval: Option<&str>) -> Self {
        Self(Place::Docker(Box::new(docker::nats(home, sync_interval, STORE).await)))
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port())
    }

    /// The folder of its data, to be touched only while it does not run.
    pub fn store(&self) -> PathBuf {
        match &self.0 {
            Place::Local(server) => server.store(),
            #[cfg(feature = "docker")]
            Place::Docker(container) => container.data(),
        }
    }

    /// Throws its data away; it must not run.
    pub fn wipe(&self) {
        must(std::fs::remove_dir_all(self.store()), "wiping the log");
    }
}

impl Postgres {
    /// What it prints goes to `home`, its cluster to `data`: written through where it matters, as `initdb` does.
    pub(crate) async fn local_postgres(
        machine: Machine,
        (home, data): (&Path, &Path),
        durable: bool,
    ) -> Self {
        let output = Output::File(home.join("postgres.log"));
        let settings = postgres::Settings { durable, output, ..postgres::Settings::default() };
        let (elsewhere, data) = (data != home, data.join("postgres"));
        let server = blocking("starting Postgres", move || {
            let cluster = Cluster::scratch(&machine, &data)?;
            if elsewhere && durable {
                settle(&data)?;
            }
            let server = postgres::Postgres::new(&machine, cluster, Port::reserve()?, settings);
            server.start()?;
            Ok(server)
        });
        Self(Place::Local(Arc::new(server.await)))
    }

    /// What it prints goes to `home`.
    #[cfg(feature = "docker")]
    pub(crate) async fn docker(home: &Path, durable: bool) -> Self {
        Self(Place::Docker(Box::new(docker::postgres(home, durable).await)))
    }

    /// The URL of its maintenance database.
    pub(crate) fn url(&self) -> String {
        match &self.0 {
            Place::Local(server) => server.url("postgres"),
            #[cfg(feature = "docker")]
            Place::Docker(container) => docker::postgres_url(container),
        }
    }
}

async fn act<P: Process>(process: &Arc<P>, doing: &str, work: fn(&P) -> Result<()>) {
    let process = Arc::clone(process);
    blocking(doing, move || work(&process)).await;
}

macro_rules! process {
    ($server:ty) => {
        impl Process for $server {
            fn start(&self) -> Result<()> {
                self.start()
            }
            fn stop(&self) -> Result<()> {
                self.stop()
            }
            fn kill(&self) -> Result<()> {
                self.kill()
            }
            fn pause(&self) -> Result<()> {
                self.pause()
            }
            fn resume(&self) -> Result<()> {
                self.resume()
            }
            fn port(&self) -> u16 {
                self.port()
            }
            fn id(&self) -> Option<u32> {
                self.id()
            }
            fn ended(&self) -> Result<Option<ExitStatus>> {
                self.ended()
            }
        }
    };
}

process!(nats::Nats);
process!(postgres::Postgres);
