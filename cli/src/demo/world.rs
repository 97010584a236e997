//! The processes of the demonstration, and the directory that they share.
//!
//! Every process ends when its standard input does, so none outlives the demonstration however that ends; and one of
//! them, the janitor, removes the directory then.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::figures::Line;

/// How long nobody may say anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a process may take to end once it was told to.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Root,
    /// By its place among the guests.
    Guest(usize),
}

/// What somebody says.
#[derive(Debug)]
pub(super) enum Said {
    /// The root, about the bus.
    Bus(serde_json::Value),
    /// A guest, about its work.
    Work(Line),
    /// Nothing any more: standard output is closed.
    Ended,
}

/// One thing that was said.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) who: Who,
    pub(super) at: Instant,
    pub(super) said: Said,
}

/// Directory, ears, and the way to start processes.
pub(super) struct World {
    directory: PathBuf,
    /// Removes the directory; absent where it is to be kept.
    janitor: Option<Process>,
    sender: Sender<Message>,
    messages: Receiver<Message>,
}

impl World {
    /// A world in `kept`, or in a temporary directory that goes with it.
    pub(super) fn new(kept: Option<&Path>) -> Result<Self> {
        let (sender, messages) = channel();
        let (directory, janitor) = match kept {
            Some(directory) => {
                std::fs::create_dir_all(directory)
                    .with_context(|| format!("cannot make the directory {}", directory.display()))?;
                (directory.canonicalize()?, None)
            }
            None => {
                let temporary =
                    tempfile::Builder::new().prefix("vmbus-demo-").tempdir().with_context(|| {
                        let place = std::env::temp_dir();
                        format!(
                            "cannot make a directory in {}: set TMPDIR or use --keep DIR",
                            place.display()
                        )
                    })?;
                let mut command = this_command("demo-janitor")?;
                command.arg(temporary.path()).stdout(Stdio::null());
                let janitor = Process::start(command)?;
                (temporary.keep(), Some(janitor))
            }
        };
        Ok(Self { directory, janitor, sender, messages })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// An image of zeros.
    pub(super) fn image(&self, name: &str, size: u64) -> Result<PathBuf> {
        let path = self.path(name);
        let image = File::create(&path).and_then(|file| file.set_len(size));
        image.with_context(|| {
            format!("cannot make an image of {} at {}", crate::size::show(size), path.display())
        })?;
        Ok(path)
    }

    /// Starts `vmbus SUBCOMMAND ARGUMENTS` and listens to it.
    pub(super) fn start<'a>(
        &self,
        who: Who,
        subcommand: &str,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Result<Process> {
        let mut command = this_command(subcommand)?;
        command.args(arguments).stdout(Stdio::piped());
        let mut process = Process::start(command)?;
        let output = process.child.stdout.take().context("a process without standard output")?;
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let at = Instant::now();
                let said = match who {
                    Who::Root => serde_json::from_str(&line).map(Said::Bus),
                    Who::Guest(_) => serde_json::from_str(&line).map(Said::Work),
                };
                let said = said.unwrap_or_else(|error| {
                    Said::Work(Line::Failed {
                        message: format!("said what is not understood ({error}): {line}"),
                    })
                });
                let _ = sender.send(Message { who, at, said });
            }
            let _ = sender.send(Message { who, at: Instant::now(), said: Said::Ended });
        });
        Ok(process)
    }

    /// The next thing that anybody says.
    pub(super) fn listen(&self) -> Result<Message> {
        match self.messages.recv_timeout(PATIENCE) {
            Ok(message) => Ok(message),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                bail!("nobody said anything for {} s: something hangs", PATIENCE.as_secs())
            }
        }
    }

    /// Removes the directory, unless it is to be kept.
    pub(super) fn end(&mut self) -> Result<()> {
        match self.janitor.take() {
            Some(janitor) => janitor.end().map(drop),
            None => Ok(()),
        }
    }
}

fn this_command(subcommand: &str) -> Result<Command> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    // A group of its own: an interrupt from the terminal ends the demonstration, which ends all others in order.
    command.arg(subcommand).stdin(Stdio::piped()).process_group(0);
    Ok(command)
}

/// A process that ends when it is dropped.
pub(super) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Process {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.spawn().context("cannot start a process")?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin })
    }

    /// Tells it to do something.
    pub(super) fn order(&mut self, order: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("it listens no more")?;
        writeln!(stdin, "{order}").context("it does not listen")
    }

    /// SIGKILL; returns when it is gone.
    pub(super) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Closes its standard input and waits for its end.
    pub(super) fn end(mut self) -> Result<ExitStatus> {
        drop(self.stdin.take());
        let deadline = Instant::now() + END_PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("process {} does not end", self.child.id());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Arguments of `vmbus demo-janitor`.
#[derive(Args)]
pub(crate) struct JanitorArguments {
    directory: PathBuf,
}

/// Removes the directory when standard input ends.
pub(crate) fn clean_up_after(arguments: &JanitorArguments) -> Result<()> {
    let mut sink = [0; 64];
    while std::io::stdin().read(&mut sink).is_ok_and(|read| read > 0) {}
    let directory = &arguments.directory;
    std::fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
}
