//! A stack while it runs.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use stack::build::Programs;
use stack::machine::Machine;

use super::home::Home;
use super::options::Options;
use super::servers::Servers;
use super::services::{self, Maker, Service};
use super::settings::Settings;
use super::signals::Signals;

/// How often we look whether everything still runs.
const LOOK: Duration = Duration::from_millis(50);

/// All that was started so far.
#[derive(Debug)]
pub(crate) struct Running {
    servers: Servers,
    persisters: Vec<Service>,
    gateways: Vec<Service>,
    signals: Signals,
    url: String,
}

impl Running {
    pub(crate) fn new(servers: Servers, signals: &Signals) -> Self {
        let (persisters, gateways) = (Vec::new(), Vec::new());
        Self { servers, persisters, gateways, signals: signals.clone(), url: String::new() }
    }

    /// Starts everything and says so once all of it takes work.
    pub(crate) fn start(
        &mut self,
        machine: &Machine,
        settings: &Settings,
        options: &Options,
        programs: &Programs,
        home: &Home,
    ) -> Result<()> {
        self.servers.start(home)?;
        let maker = Maker { machine, settings, programs, servers: &self.servers, home };
        for number in 1..=options.persisters {
            self.persisters.push(maker.persister(number)?);
        }
        for (number, port) in (1..).zip(settings.ports(options)) {
            self.gateways.push(maker.gateway(number, port)?);
        }
        for service in self.persisters.iter().chain(&self.gateways) {
            service.wait_ready(|| self.signals.check().and_then(|()| self.check()))?;
        }
        self.url = format!("http://{}", settings.address(settings.port));
        self.announce(settings, options, home);
        for service in self.persisters.iter().chain(&self.gateways) {
            eprintln!("{}", service.metrics());
        }
        Ok(())
    }

    fn announce(&self, settings: &Settings, options: &Options, home: &Home) {
        let more = match settings.ports(options).last() {
            Some(last) if last > settings.port => format!(" and on, up to port {last}"),
            _ => String::new(),
        };
        let fate = if home.is_fresh() { " (removed at the end)" } else { "" };
        let line = format!("ready: {}{more}, data in {}{fate}", self.url, home.path().display());
        if options.command.is_empty() {
            println!("{line}, Ctrl-C stops");
        } else {
            // Standard output is the command's.
            eprintln!("{line}");
        }
    }

    /// Waits until we are asked to stop; an error if something ends before.
    pub(crate) fn until_stopped(&self) -> Result<ExitCode> {
        while !self.signals.stopping() {
            self.check()?;
            thread::sleep(LOOK);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// An error if something ended that should not.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some((name, status)) = self.servers.ended()? {
            bail!("{name} ended ({status})");
        }
        for service in self.persisters.iter().chain(&self.gateways) {
            if let Some(status) = service.ended()? {
                bail!("{} ended ({status})", service.name());
            }
        }
        Ok(())
    }

    /// Where the first gateway answers.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Stops everything, from the clients' side to the data.
    pub(crate) fn stop(&mut self) {
        eprintln!("stopping …");
        services::stop(&mut self.gateways);
        services::stop(&mut self.persisters);
        self.servers.stop();
        eprintln!("stopped");
    }
}
