//! A stack while it runs.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use stack::build::Programs;
use stack::machine::Machine;
use stack::style::{Paint, Style};

use super::home::Home;
use super::options::Options;
use super::servers::Servers;
use super::services::{self, Maker, Service};
use super::settings::Settings;
use super::signals::Signals;

/// How often we look whether everything still runs.
const LOOK: Duration = Duration::from_millis(50);

/// As wide as the longest name of the closing block.
const NAME_WIDTH: usize = 8;

/// All that was started so far.
#[derive(Debug)]
pub(crate) struct Running {
    servers: Servers,
    persisters: Vec<Service>,
    gateways: Vec<Service>,
    /// As [`Maker::client_files`].
    client_files: Option<Result<PathBuf>>,
    signals: Signals,
    url: String,
}

impl Running {
    pub(crate) fn new(
        servers: Servers,
        client_files: Option<Result<PathBuf>>,
        signals: &Signals,
    ) -> Self {
        let (persisters, gateways) = (Vec::new(), Vec::new());
        let signals = signals.clone();
        Self { servers, persisters, gateways, client_files, signals, url: String::new() }
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
        let maker = Maker {
            machine,
            settings,
            programs,
            servers: &self.servers,
            home,
            client_files: &self.client_files,
        };
        for number in 1..=options.persisters {
            self.persisters.push(maker.persister(number)?);
        }
        for (number, port) in (1..).zip(settings.ports(options)) {
            self.gateways.push(maker.gateway(number, port)?);
        }
        for service in self.services() {
            service.wait_ready(|| self.signals.check().and_then(|()| self.check()))?;
        }
        self.url = format!("http://{}", settings.address(settings.port));
        self.announce(settings, options, home);
        Ok(())
    }

    fn services(&self) -> impl Iterator<Item = &Service> {
        self.gateways.iter().chain(&self.persisters)
    }

    /// Standard output is the command's, if one is to run.
    fn announce(&self, settings: &Settings, options: &Options, home: &Home) {
        if options.command.is_empty() {
            println!("{}", self.block(settings, options, home, Style::of_output()));
        } else {
            eprintln!("{}", self.block(settings, options, home, Style::of_errors()));
        }
    }

    /// Everything that one wants to know of what runs now, a line each.
    fn block(&self, settings: &Settings, options: &Options, home: &Home, style: Style) -> String {
        let place = home.path().display();
        let chats: Vec<_> = settings
            .ports(options)
            .map(|port| format!("http://{}", settings.address(port)))
            .collect();
        let fate = if home.is_fresh() { "  (removed at the end)" } else { "" };
        let port = if settings.is_default_port() {
            String::new()
        } else {
            format!(" --port {}", settings.port)
        };
        let database = match self.servers.database() {
            shown if home.is_fresh() => shown,
            shown => format!("{shown}  cargo up{port} psql, or {place}/urls.env"),
        };
        let stop = if options.command.is_empty() { "Ctrl-C" } else { "with the command" };
        let metrics: Vec<_> = self.services().map(Service::metrics).collect();
        let entries = [
            ("Chat", chats.join("\n")),
            ("Try it", self.pages()),
            ("Docs", format!("{}/docs", self.url)),
            ("Database", database),
            ("Metrics", metrics.join("\n")),
            ("Data", format!("{place}{fate}")),
            ("Stop", stop.to_owned()),
        ];
        let mut block = format!("\n  {}\n", style.paint(Paint::Good, "ready"));
        for (name, values) in entries {
            let mut name = style.paint(Paint::Strong, &format!("{name:NAME_WIDTH$}"));
            for value in values.lines() {
                // Writing to memory cannot fail.
                let _ = writeln!(block, "  {name}  {value}");
                name = " ".repeat(NAME_WIDTH);
            }
        }
        block
    }

    /// Where the pages to try the chat are, if there are any, or what they lack.
    fn pages(&self) -> String {
        if !self.gateways.first().is_some_and(|gateway| gateway.serves("/agent")) {
            return String::new();
        }
        match &self.client_files {
            Some(Err(error)) => format!("not yet: {error:#}"),
            Some(Ok(_)) | None => format!("{0}/  as a visitor\n{0}/agent  the inbox", self.url),
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
        self.services().try_for_each(Service::check)
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
