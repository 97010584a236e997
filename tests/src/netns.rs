//! Network namespaces for tests, each the business of one thread: nothing is named, so nothing is left behind and tests
//! run side by side.

use std::io;
use std::process::{Child, Command, Output};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of its own, with its loopback up. It goes with whatever was started in it last.
#[derive(Debug)]
pub struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// A new one. Needs root.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (made, made_or_not) = channel();
        let thread = thread::Builder::new().name("network namespace".into()).spawn(move || {
            let unshared = unshare(CloneFlags::CLONE_NEWNET);
            let fine = unshared.is_ok();
            let _ = made.send(unshared);
            if fine {
                queue.into_iter().for_each(|job| job());
            }
        })?;
        made_or_not.recv().map_err(io::Error::other)??;
        let namespace = Self { jobs: Some(jobs), thread: Some(thread) };
        namespace.command("ip link set lo up");
        Ok(namespace)
    }

    /// Does something within.
    ///
    /// # Panics
    /// If that panics.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job: Job = Box::new(move || {
            let _ = done.send(job());
        });
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        assert!(sent, "the namespace's thread has panicked");
        result.recv().unwrap_or_else(|_| panic!("the job in the namespace has panicked"))
    }

    /// Starts a process within.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(&self, mut command: Command) -> Child {
        self.run(move || command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Runs a program to its end, its words parted by spaces.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn output(&self, line: &str) -> Output {
        let mut words = line.split_whitespace().map(str::to_owned);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        self.run(move || command.output().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Runs a program that is to succeed; gives what it says.
    ///
    /// # Panics
    /// If it does not.
    pub fn command(&self, line: &str) -> String {
        let output = self.output(line);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {}\n{said}{complaint}", output.status);
        said
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
