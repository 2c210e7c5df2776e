//! Metrics in the text format of Prometheus. Which there are stands in one file of each service,
//! `metrics.rs`; this is what both files are written with.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::health::Report;
use crate::pool::Pool;

/// The `Content-Type` of the text.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Upper bounds of latencies in seconds: a commit takes half a millisecond, a backlog minutes.
const LATENCY_SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    120.0,
];

/// One metric per value of one label.
pub type Labelled<M> = Family<[(&'static str, Cow<'static, str>); 1], M>;

/// Metrics that are told of under a common prefix.
pub struct Catalogue(Registry);

impl Catalogue {
    /// Without any metric but the version.
    pub fn new(prefix: &str, version: &'static str) -> Self {
        let mut catalogue = Self(Registry::with_prefix(prefix));
        let build: Labelled<Gauge> =
            catalogue.add("build_info", "Always 1; the version is in the label");
        build.get_or_create(&[("version", version.into())]).set(1);
        catalogue
    }

    /// A metric that starts at nothing. A counter is told of with `_total` behind its name.
    pub fn add<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.register(name, help, M::default())
    }

    /// A histogram of latencies; the name ends in `_seconds`.
    pub fn latencies(&mut self, name: &str, help: &str) -> Histogram {
        self.register(name, help, Histogram::new(LATENCY_SECONDS))
    }

    /// A histogram with these upper bounds.
    pub fn histogram(&mut self, name: &str, help: &str, bounds: &[f64]) -> Histogram {
        self.register(name, help, Histogram::new(bounds.iter().copied()))
    }

    fn register<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    /// All of them as they are now.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.0)?;
        Ok(text)
    }
}

/// Connections to Postgres and NATS, looked at when somebody asks.
pub struct Connections {
    postgres: Labelled<Gauge>,
    postgres_max: Gauge,
    nats_reconnects: Counter,
    dependency_up: Labelled<Gauge>,
    ready: Gauge,
}

impl Connections {
    pub fn new(catalogue: &mut Catalogue) -> Self {
        Self {
            postgres: catalogue.add(
                "postgres_connections",
                "Connections to Postgres that are open, in use or idle",
            ),
            postgres_max: catalogue
                .add("postgres_connections_max", "Most connections to Postgres at a time"),
            nats_reconnects: catalogue
                .add("nats_reconnects", "Connections to NATS made anew after the first"),
            dependency_up: catalogue
                .add("dependency_up", "Whether what the service depends on answers"),
            ready: catalogue.add("ready", "Whether /ready answers 200"),
        }
    }

    /// Notes the state of the pool.
    pub fn set_pool(&self, pool: &Pool) {
        let idle = i64::try_from(pool.idle()).unwrap_or(i64::MAX);
        let set = |state: &'static str, count| {
            self.postgres.get_or_create(&[("state", state.into())]).set(count);
        };
        set("idle", idle);
        set("used", i64::from(pool.size()) - idle);
        self.postgres_max.set(pool.max().into());
    }

    /// Notes what the client has counted.
    pub fn set_nats(&self, client: &async_nats::Client) {
        let connects = client.statistics().connects.load(Ordering::Relaxed);
        let known = self.nats_reconnects.get();
        self.nats_reconnects.inc_by(connects.saturating_sub(1).saturating_sub(known));
    }

    /// Notes what `/ready` answers.
    pub fn set_report(&self, report: &Report) {
        for (dependency, up) in report.dependencies() {
            let gauge = self.dependency_up.get_or_create(&[("dependency", (*dependency).into())]);
            gauge.set(i64::from(*up));
        }
        self.ready.set(report.is_ready().into());
    }
}
