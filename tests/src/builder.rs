//! What a test's stack is to be made of.

use std::collections::BTreeMap;
use std::env;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stack::launch::{Output, Program};
use stack::nats::SYNC_INTERVAL;
use stack::run_dir::RunDir;
use stack::{Machine, Port};
use url::Url;

use crate::backend::Backend;
use crate::binaries::Binaries;
use crate::database::Database;
use crate::proxy::Proxy;
use crate::room::Room;
use crate::server::{Nats, Postgres};
use crate::service::{Place, Service};
use crate::stack::Stack;
use crate::wait::must;

/// What a service inherits from the tests; all else would make a test depend on who runs it.
const INHERITED: [&str; 5] = ["PATH", "HOME", "TMPDIR", "RUST_LOG", "RUST_BACKTRACE"];

/// A connection between two programs where a [`Proxy`] can be put; every process has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// From a gateway to NATS.
    GatewayNats,
    /// From a gateway to Postgres.
    GatewayPostgres,
    /// From a persister to NATS.
    PersisterNats,
    /// From a persister to Postgres.
    PersisterPostgres,
}

/// Whose Postgres a stack's database is on.
#[derive(Clone, Copy, Debug)]
enum Source {
    Shared,
    Own { durable: bool },
}

/// What the processors have to do for a test.
#[derive(Clone, Copy, Debug)]
enum Work {
    Waits,
    Busy,
    /// Must not be slowed down by others.
    Alone,
}

type Variables = Vec<(String, String)>;

/// Describes a stack; [`Builder::start`] makes it.
#[derive(Clone, Debug)]
pub struct Builder {
    gateways: usize,
    persisters: usize,
    env: Variables,
    gateway_env: Variables,
    persister_env: Variables,
    proxies: Vec<Link>,
    postgres: Source,
    empty_database: bool,
    start_services: bool,
    sync_interval: Option<String>,
    as_containers: bool,
    programs: Option<PathBuf>,
    nats_servers: usize,
    nats_home: Option<PathBuf>,
    postgres_home: Option<PathBuf>,
    work: Work,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            gateways: 1,
            persisters: 1,
            env: vec![("LIMITS".into(), "off".into())],
            gateway_env: Vec::new(),
            persister_env: Vec::new(),
            proxies: Vec::new(),
            postgres: Source::Shared,
            empty_database: false,
            start_services: true,
            sync_interval: Some(SYNC_INTERVAL.to_owned()),
            as_containers: false,
            programs: None,
            nats_servers: 1,
            nats_home: None,
            postgres_home: None,
            work: Work::Waits,
        }
    }
}

impl Builder {
    /// How many gateways; 1 unless said otherwise.
    #[must_use]
    pub fn gateways(self, gateways: usize) -> Self {
        Self { gateways, ..self }
    }

    /// How many persisters; 1 unless said otherwise.
    #[must_use]
    pub fn persisters(self, persisters: usize) -> Self {
        Self { persisters, ..self }
    }

    /// Sets a variable for all services. `LIMITS` is `off` unless set.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets a variable for the gateways.
    #[must_use]
    pub fn gateway_env(mut self, name: &str, value: &str) -> Self {
        self.gateway_env.push((name.into(), value.into()));
        self
    }

    /// Sets a variable for the persisters.
    #[must_use]
    pub fn persister_env(mut self, name: &str, value: &str) -> Self {
        self.persister_env.push((name.into(), value.into()));
        self
    }

    /// Puts a proxy into this connection of every process that has it.
    #[must_use]
    pub fn proxy(mut self, link: Link) -> Self {
        self.proxies.push(link);
        self
    }

    /// A Postgres of the test's own, to break.
    #[must_use]
    pub fn own_postgres(self) -> Self {
        Self { postgres: Source::Own { durable: false }, ..self }
    }

    /// A Postgres of the test's own, with its data on a disk of the test's own, which must outlive the stack.
    #[must_use]
    pub fn postgres_on(self, disk: &impl AsRef<Path>) -> Self {
        Self { postgres_home: Some(disk.as_ref().to_path_buf()), ..self.own_postgres() }
    }

    /// The nats-server keeps its log on a disk of the test's own, which must outlive the stack.
    #[must_use]
    pub fn nats_on(self, disk: &impl AsRef<Path>) -> Self {
        Self { nats_home: Some(disk.as_ref().to_path_buf()), ..self }
    }

    /// The test's own Postgres writes as it does in production, and so does NATS.
    #[must_use]
    pub fn durable(self) -> Self {
        Self {
            postgres: Source::Own { durable: true },
            sync_interval: Some("always".into()),
            ..self
        }
    }

    /// `sync_interval` of the nats-server: `always`, or a duration; that of production unless said otherwise.
    #[must_use]
    pub fn nats_sync_interval(self, interval: &str) -> Self {
        Self { sync_interval: Some(interval.into()), ..self }
    }

    /// The database holds nothing before the first service starts.
    #[must_use]
    pub fn empty_database(self) -> Self {
        Self { empty_database: true, ..self }
    }

    /// Three nats-servers in a cluster. `None`, and a line that says so, where servers are containers.
    #[must_use]
    pub fn nats_cluster(self) -> Option<Self> {
        let local = Backend::chosen() == Backend::Local;
        if !local {
            eprintln!("NOT CHECKED: a cluster of nats-servers, which is not made of containers");
        }
        local.then_some(Self { nats_servers: 3, ..self })
    }

    /// Each gateway has an address of its own, and all have the same ports.
    #[must_use]
    pub fn gateways_as_containers(self) -> Self {
        Self { as_containers: true, ..self }
    }

    /// The test keeps a processor busy: it waits until half of the machine is free of other tests.
    #[must_use]
    pub fn busy(self) -> Self {
        Self { work: Work::Busy, ..self }
    }

    /// The test must be faster than a time-out that nobody can set: it waits until all other tests are done.
    #[must_use]
    pub fn alone(self) -> Self {
        Self { work: Work::Alone, ..self }
    }

    /// The services are made and not started.
    #[must_use]
    pub fn services_stopped(self) -> Self {
        Self { start_services: false, ..self }
    }

    /// The services' programs are those in this folder, not those that were built for the tests.
    #[must_use]
    pub fn programs(self, folder: &Path) -> Self {
        Self { programs: Some(folder.to_path_buf()), ..self }
    }

    /// Makes the stack and waits until every service is ready; before, until there is room for it beside those of
    /// other tests.
    pub async fn start(self) -> Stack {
        let room = Room::take(self.room()).await;
        let machine =
            must(tokio::task::spawn_blocking(|| Binaries::get().machine()).await, "looking around");
        let home = must(RunDir::create(&machine), "making a folder for a stack");
        let (postgres, (nats, others)) = self.servers(&machine, home.path()).await;
        let urls = [&nats].into_iter().chain(&others).map(Nats::url).collect::<Vec<_>>();
        let database = self.database(postgres.as_ref()).await;
        let maker = Maker {
            plan: &self,
            machine,
            home: home.path(),
            database: database.url(),
            nats: urls.join(","),
        };
        let (gateways, gateway_proxies) = maker.services(Kind::Gateway, self.gateways).await;
        let (persisters, persister_proxies) =
            maker.services(Kind::Persister, self.persisters).await;
        let proxies = gateway_proxies.into_iter().chain(persister_proxies).collect();
        let stack = Stack {
            gateways,
            persisters,
            proxies,
            database,
            nats,
            others,
            postgres,
            home,
            _room: room,
        };
        if self.start_services {
            stack.start_services().await;
        }
        stack
    }

    /// Its processes, but for the nats-server that every stack has. Of containers every stack has a Postgres too.
    fn room(&self) -> usize {
        let own =
            Backend::chosen() != Backend::Local || matches!(self.postgres, Source::Own { .. });
        let postgres = usize::from(own);
        match self.work {
            Work::Waits => self.gateways + self.persisters + self.nats_servers - 1 + postgres,
            Work::Busy => Room::half(),
            Work::Alone => Room::whole(),
        }
    }

    async fn servers(
        &self,
        machine: &Machine,
        home: &Path,
    ) -> (Option<Postgres>, (Nats, Vec<Nats>)) {
        match Backend::chosen() {
            Backend::Local => tokio::join!(self.postgres(machine, home), self.nats(machine, home)),
            // One after the other: a start that is given up, because the other one failed, may leave its container.
            #[cfg(feature = "docker")]
            Backend::Docker => (self.postgres(machine, home).await, self.nats(machine, home).await),
        }
    }

    async fn postgres(&self, machine: &Machine, home: &Path) -> Option<Postgres> {
        match (Backend::chosen(), self.postgres) {
            (Backend::Local, Source::Shared) => None,
            (Backend::Local, Source::Own { durable }) => {
                let data = self.postgres_home.as_deref().unwrap_or(home);
                Some(Postgres::local_postgres(machine.clone(), (home, data), durable).await)
            }
            #[cfg(feature = "docker")]
            (Backend::Docker, source) => {
                let durable = matches!(source, Source::Own { durable: true });
                Some(Postgres::docker(home, durable).await)
            }
        }
    }

    /// The one, and the others of its cluster.
    async fn nats(&self, machine: &Machine, home: &Path) -> (Nats, Vec<Nats>) {
        match Backend::chosen() {
            Backend::Local if self.nats_servers > 1 => {
                let sync_interval = self.sync_interval.as_ref();
                let [first, second, third] =
                    Nats::local_cluster(machine, home, sync_interval).await;
                (first, vec![second, third])
            }
            Backend::Local => {
                let sync_interval = self.sync_interval.clone();
                let data = self.nats_home.as_deref().unwrap_or(home);
                let nats = Nats::local_nats(machine.clone(), (home, data), sync_interval).await;
                (nats, Vec::new())
            }
            #[cfg(feature = "docker")]
            Backend::Docker => {
                (Nats::docker(home, self.sync_interval.as_deref()).await, Vec::new())
            }
        }
    }

    /// A server of one's own has no template to copy: the persister migrates at its start. Who did not ask for
    /// such a server counts on the tables.
    async fn database(&self, postgres: Option<&Postgres>) -> Database {
        let shared = matches!(self.postgres, Source::Shared);
        match postgres {
            Some(postgres) if shared && !self.empty_database => {
                Database::migrated_on(&postgres.url()).await
            }
            Some(postgres) => Database::empty_on(&postgres.url()).await,
            None if self.empty_database => Database::empty().await,
            None => Database::migrated().await,
        }
    }

    fn variables(&self, kind: Kind) -> impl Iterator<Item = &(String, String)> {
        let own = match kind {
            Kind::Gateway => &self.gateway_env,
            Kind::Persister => &self.persister_env,
        };
        self.env.iter().chain(own)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Gateway,
    Persister,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Persister => "persister",
        }
    }

    fn links(self) -> (Link, Link) {
        match self {
            Self::Gateway => (Link::GatewayNats, Link::GatewayPostgres),
            Self::Persister => (Link::PersisterNats, Link::PersisterPostgres),
        }
    }
}

type Proxies = BTreeMap<(Link, usize), Proxy>;

/// What all services of a stack have in common.
struct Maker<'a> {
    plan: &'a Builder,
    machine: Machine,
    home: &'a Path,
    database: &'a str,
    nats: String,
}

impl Maker<'_> {
    async fn services(&self, kind: Kind, count: usize) -> (Vec<Service>, Proxies) {
        let mut proxies = Proxies::new();
        let mut services = Vec::new();
        let mut places = Vec::new();
        for index in 0..count {
            let place = self.place(kind, index, places.first());
            places.push(place.clone());
            let (nats, postgres) = kind.links();
            let nats = self.through(nats, index, &self.nats, &mut proxies).await;
            let postgres = self.through(postgres, index, self.database, &mut proxies).await;
            services.push(self.service(kind, index, place, (&nats, &postgres)));
        }
        (services, proxies)
    }

    /// The URL to use: the server's own, or that of a proxy to it.
    async fn through(
        &self,
        link: Link,
        index: usize,
        server: &str,
        proxies: &mut Proxies,
    ) -> String {
        if !self.plan.proxies.contains(&link) {
            return server.to_owned();
        }
        let mut url = must(Url::parse(server), "the URL of a server");
        let proxy = Proxy::to(must(url.port().ok_or("no port"), "the URL of a server")).await;
        must(url.set_port(Some(proxy.port())), "the URL of a proxy");
        proxies.insert((link, index), proxy);
        url.into()
    }

    fn place(&self, kind: Kind, index: usize, first: Option<&Place>) -> Place {
        let port = || Arc::new(must(Port::reserve(), "a port for a service"));
        match (kind, first) {
            (Kind::Gateway, Some(first)) if self.plan.as_containers => {
                let last = u8::try_from(index + 1);
                let address = Ipv4Addr::new(127, 0, 0, must(last, "an address for a service"));
                Place { address, ..first.clone() }
            }
            (Kind::Gateway, _) => {
                Place { address: Ipv4Addr::LOCALHOST, port: port(), ops: Some(port()) }
            }
            // It listens nowhere else.
            (Kind::Persister, _) => Place { address: Ipv4Addr::LOCALHOST, port: port(), ops: None },
        }
    }

    fn service(
        &self,
        kind: Kind,
        index: usize,
        place: Place,
        (nats, postgres): (&str, &str),
    ) -> Service {
        let name = format!("{}-{index}", kind.name());
        let log = self.log(&name);
        let mut program = Program {
            clean_env: true,
            folder: Some(self.home.to_path_buf()),
            output: Output::File(log.clone()),
            pid_folder: Some(self.home.join("pids")),
            ..Program::new(name, self.program(kind))
        };
        for name in INHERITED {
            program.env.extend(env::var_os(name).map(|value| (name.into(), value)));
        }
        program = program.env("DATABASE_URL", postgres).env("NATS_URL", nats);
        if let Kind::Gateway = kind {
            let port = place.port.number().to_string();
            program = program.env("HOST", place.address.to_string()).env("PORT", port);
        }
        program = program.env("OPS_ADDRESS", format!("{}:{}", place.address, place.ops_port()));
        for (name, value) in self.plan.variables(kind) {
            program = program.env(name, value);
        }
        Service::new(&self.machine, place, log, program)
    }

    fn program(&self, kind: Kind) -> PathBuf {
        match &self.plan.programs {
            Some(folder) => folder.join(kind.name()),
            None => Binaries::get().path(kind.name()),
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.home.join(format!("{name}.log"))
    }
}
