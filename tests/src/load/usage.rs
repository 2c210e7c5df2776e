//! What the server processes take: processor time and memory.

use std::time::Duration;

use anyhow::Result;
use stack::stats;

use super::figures::{Figures, Unit, float};

/// A server: one process, or several with all their children.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) ids: Vec<u32>,
}

/// Several servers, and the generator itself.
#[derive(Clone, Debug)]
pub(super) struct Servers(pub(super) Vec<Server>);

/// Processor time of each server and of the generator up to a moment.
#[derive(Clone, Debug)]
pub(super) struct Used {
    servers: Vec<(String, Duration)>,
    generator: Duration,
}

impl Server {
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        self.ids.iter().map(|id| stats::family_cpu_time(*id)).sum()
    }

    /// Memory in RAM, in bytes; what several processes share is counted once.
    pub(super) fn memory(&self) -> Result<u64> {
        self.ids.iter().map(|id| stats::family_memory(*id)).sum()
    }
}

impl Servers {
    /// The server with this name.
    pub(super) fn get(&self, name: &str) -> Option<&Server> {
        self.0.iter().find(|server| server.name == name)
    }

    pub(super) fn used(&self) -> Result<Used> {
        let used = |server: &Server| Ok((server.name.clone(), server.cpu_time()?));
        let servers = self.0.iter().map(used).collect::<Result<_>>()?;
        Ok(Used { servers, generator: generator()? })
    }

    /// Adds the memory of each.
    pub(super) fn add_memory(&self, figures: &mut Figures) -> Result<()> {
        for server in &self.0 {
            let mib = float(server.memory()?) / 1024.0 / 1024.0;
            figures.add(format!("memory, {}", server.name), Unit::Mib, mib);
        }
        Ok(())
    }
}

impl Used {
    /// Adds what each took since then for each of so many things.
    pub(super) fn add_since(&self, before: &Self, of: u64, figures: &mut Figures) {
        let each = |now: Duration, then: Duration| {
            now.saturating_sub(then).as_secs_f64() * 1e6 / float(of.max(1))
        };
        let mut all = 0.0;
        for ((name, now), (_, then)) in self.servers.iter().zip(&before.servers) {
            let micros = each(*now, *then);
            all += micros;
            figures.add(format!("processor, {name}"), Unit::Micros, micros);
        }
        if !self.servers.is_empty() {
            figures.add("processor, all servers", Unit::Micros, all);
        }
        let generator = each(self.generator, before.generator);
        figures.add("processor, generator", Unit::Micros, generator);
    }
}

/// Processor time of this process.
pub(super) fn generator() -> Result<Duration> {
    stats::cpu_time(std::process::id())
}
