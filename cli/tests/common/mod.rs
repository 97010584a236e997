//! Processes of the command, as tests run them.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses a part; a test that panics has failed"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long any one step may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `vmbus` to its end.
pub(crate) fn vmbus(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmbus")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What a failed command says.
pub(crate) fn complaint(arguments: &[&str]) -> String {
    let output = vmbus(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

/// A process that ends when it is dropped, and whose lines can be waited for.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vmbus"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let output = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let stdin = child.stdin.take();
        Self { child, stdin, lines }
    }

    /// Waits for a line with `words` in it.
    pub(crate) fn says(&self, words: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(words) => return line,
                Ok(_) => {}
                Err(error) => panic!("waiting for {words:?}: {error}"),
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Closes standard input and waits for a good end.
    pub(crate) fn end(mut self) {
        drop(self.stdin.take());
        eventually("the process ends", || self.child.try_wait().unwrap().is_some());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory with a socket path and images.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    pub(crate) fn image(&self, name: &str, size: u64) -> String {
        std::fs::File::create(self.path(name)).unwrap().set_len(size).unwrap();
        self.text(name)
    }

    pub(crate) fn socket(&self) -> String {
        self.text("bus.sock")
    }

    /// A root that listens here, with these disks.
    pub(crate) fn root(&self, disks: &[&str]) -> Process {
        let socket = self.socket();
        let mut arguments = vec!["root", "--until-stdin-ends", "--json", "--socket", &socket];
        for disk in disks {
            arguments.extend(["--disk", disk]);
        }
        let root = Process::start(&arguments);
        root.says("listening");
        root
    }

    pub(crate) fn names(&self) -> Vec<String> {
        names_in(self.0.path())
    }
}

pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Descriptors and shared mappings of a process.
pub(crate) fn holdings(pid: u32) -> (usize, usize) {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    (descriptors, maps.lines().filter(|line| line.contains("memfd:")).count())
}

/// Context switches of all threads of a process so far, of both kinds.
pub(crate) fn context_switches(pid: u32) -> u64 {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let counts = status.lines().filter(|line| line.contains("_ctxt_switches:"));
        sum +=
            counts.map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap()).sum::<u64>();
    }
    sum
}
