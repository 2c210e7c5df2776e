//! Starts programs that die with us, however we die.
//!
//! On Linux the kernel sees to it (`PR_SET_PDEATHSIG`). The setting belongs between fork and exec,
//! where Rust runs nothing of ours without `unsafe`; so the child is first the `stack` program itself
//! (`stack __exec …`), which makes the setting and becomes the real program. Two things to know:
//!
//! - The signal comes when the parent *thread* ends, so all children are started from one thread that
//!   lives as long as the process.
//! - A change of user clears the setting, so `__exec` changes first, through `/proc/self/exe`, which
//!   that user can start wherever the file lies, and makes the setting then.
//!
//! Elsewhere a file per child is written, and the next start ends what its owner left running.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use anyhow::{Context, Result};

use crate::child::Child;
use crate::machine::Machine;
use crate::prefix::{self, LastWords, Lines};
use crate::user::User;

/// The hidden subcommand that turns into another program.
pub const EXEC: &str = "__exec";

/// What happens to a child when its parent is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Orphaned {
    /// SIGKILL.
    #[default]
    Killed,
    /// SIGQUIT: Postgres ends its own children, at once.
    Quits,
}

/// Where what a child prints goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Where ours goes.
    #[default]
    Ours,
    /// To the end of a file.
    File(PathBuf),
    /// Standard output to a new file, errors where ours go.
    Report(PathBuf),
    /// To our standard error, each line behind the program's name.
    Prefixed(Lines),
}

/// A program to start.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// What to call it in logs and errors.
    pub name: String,
    /// The file to run.
    pub file: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its environment, beside ours.
    pub env: Vec<(OsString, OsString)>,
    /// Whether our environment is kept from it.
    pub clean_env: bool,
    /// Its working directory; ours if none is given.
    pub folder: Option<PathBuf>,
    /// Who runs it; the present user if none is given.
    pub user: Option<User>,
    /// What happens to it when we die.
    pub orphaned: Orphaned,
    /// Where what it prints goes.
    pub output: Output,
    /// Whether it stays in our process group, and so gets the terminal's input and Ctrl-C.
    pub foreground: bool,
    /// Where to note its process id, for systems that do not end it with us.
    pub pid_folder: Option<PathBuf>,
}

impl Program {
    /// A program by its file; the rest is set by field.
    pub fn new(name: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), file: file.into(), ..Self::default() }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts it.
    pub fn start(&self, machine: &Machine) -> Result<Child> {
        let mut command = self.command(machine);
        self.describe(&mut command)?;
        let mut child = from_lasting_thread(command)
            .with_context(|| format!("cannot start {} ({})", self.name, self.file.display()))?;
        let words = match self.output {
            Output::Prefixed(lines) => prefix::forward(&self.name, &mut child, lines),
            _ => LastWords::default(),
        };
        self.note_pid(&child)?;
        Ok(Child::new(&self.name, child, words))
    }

    #[cfg(target_os = "linux")]
    fn command(&self, machine: &Machine) -> Command {
        let mut command = Command::new(machine.stack_binary());
        command.arg(EXEC).arg(process::id().to_string()).arg(self.orphaned.word());
        let (uid, gid) = self.user.as_ref().map_or(("-".into(), "-".into()), ids_as_text);
        command.arg(uid).arg(gid).arg(&self.file).args(&self.args);
        command
    }

    #[cfg(not(target_os = "linux"))]
    fn command(&self, _machine: &Machine) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&self.file);
        command.args(&self.args);
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    fn describe(&self, command: &mut Command) -> Result<()> {
        use std::os::unix::process::CommandExt;
        if self.clean_env {
            command.env_clear();
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        if !self.foreground {
            command.stdin(Stdio::null()).process_group(0);
        }
        self.connect_output(command)
    }

    fn connect_output(&self, command: &mut Command) -> Result<()> {
        match &self.output {
            Output::Ours => {}
            Output::File(path) => {
                let file = append_to(path)?;
                command.stdout(file.try_clone()?).stderr(file);
            }
            Output::Report(path) => {
                let file = File::create(path);
                command.stdout(file.with_context(|| format!("cannot write {}", path.display()))?);
            }
            Output::Prefixed(_) => {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
        }
        Ok(())
    }

    fn note_pid(&self, child: &process::Child) -> Result<()> {
        let folder = self.pid_folder.as_ref().filter(|_| !cfg!(target_os = "linux"));
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder)?;
            std::fs::write(
                folder.join(child.id().to_string()),
                self.file.as_os_str().as_encoded_bytes(),
            )?;
        }
        Ok(())
    }
}

fn append_to(path: &PathBuf) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("cannot write the log {}", path.display()))
}

#[cfg(target_os = "linux")]
fn ids_as_text(user: &User) -> (String, String) {
    (user.uid.to_string(), user.gid.to_string())
}

type Order = (Command, SyncSender<io::Result<process::Child>>);

/// Starts `command` from the one thread that lasts.
fn from_lasting_thread(command: Command) -> io::Result<process::Child> {
    static ORDERS: OnceLock<Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, incoming) = channel();
        thread::spawn(move || serve(&incoming));
        orders
    });
    let (answer, answered) = sync_channel(1);
    orders.send((command, answer)).map_err(io::Error::other)?;
    answered.recv().map_err(io::Error::other)?
}

fn serve(incoming: &Receiver<Order>) {
    for (mut command, answer) in incoming {
        // The caller waits for the answer; if it is gone, so is the child's handle.
        let _ = answer.send(command.spawn());
    }
}

#[cfg(target_os = "linux")]
pub use linux::exec;

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::OsString;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use anyhow::{Context, Error, Result, bail};
    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

    use super::{EXEC, Orphaned};

    /// Always this process, even for a user who cannot reach the file, and when it was replaced.
    const SELF: &str = "/proc/self/exe";

    impl Orphaned {
        pub(super) fn word(self) -> &'static str {
            match self {
                Self::Killed => "kill",
                Self::Quits => "quit",
            }
        }

        fn signal(word: &str) -> Signal {
            if word == "quit" { Signal::QUIT } else { Signal::KILL }
        }
    }

    /// `__exec PARENT SIGNAL UID GID PROGRAM ARGS…`: becomes PROGRAM. Returns only if that failed.
    pub fn exec(args: &[OsString]) -> Result<()> {
        let [parent, signal, uid, gid, program, rest @ ..] = args else {
            bail!("{EXEC} is for internal use");
        };
        if uid != "-" {
            return become_user(parent, signal, number(uid)?, number(gid)?, &args[4..]);
        }
        let parent_signal = Orphaned::signal(&signal.to_string_lossy());
        set_parent_process_death_signal(Some(parent_signal))?;
        refuse_orphans(number(parent)?)?;
        Err(Error::from(Command::new(program).args(rest).exec()))
            .context(program.to_string_lossy().into_owned())
    }

    /// Once more, as that user; the process stays the same.
    fn become_user(
        parent: &OsString,
        signal: &OsString,
        uid: u32,
        gid: u32,
        program: &[OsString],
    ) -> Result<()> {
        let mut command = Command::new(SELF);
        command.arg(EXEC).args([parent, signal]).args(["-", "-"]).args(program);
        Err(Error::from(command.uid(uid).gid(gid).exec()).context("cannot change the user"))
    }

    /// The parent may have died before the setting was made.
    fn refuse_orphans(parent: u32) -> Result<()> {
        if getppid().map(Pid::as_raw_nonzero).map(std::num::NonZero::get)
            != i32::try_from(parent).ok()
        {
            bail!("the starting process is gone");
        }
        Ok(())
    }

    fn number(text: &OsString) -> Result<u32> {
        text.to_string_lossy().parse().with_context(|| format!("{EXEC} is for internal use"))
    }
}
