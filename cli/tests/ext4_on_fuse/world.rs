//! Processes, loop devices and mounts that end with the test, however it ends.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How long anything may take before it counts as a hang. Busy build machines are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with an image, a place for the bus and one for the file.
pub(crate) struct Folder {
    folder: TempDir,
}

impl Folder {
    pub(crate) fn new(image_size: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::File::create(folder.path().join("image")).unwrap().set_len(image_size).unwrap();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.path().join("image")
    }

    /// The file that the guest shows.
    pub(crate) fn disk(&self) -> PathBuf {
        self.path().join("mnt/disk")
    }

    /// A root that offers the image, and listens.
    pub(crate) fn root(&self) -> Process {
        let disk = format!("{},for=alice", self.image().display());
        let socket = self.path().join("bus.sock");
        let mut command = vmbus();
        // Ends with the test even if that is killed, and the guest ends with it.
        command.arg("root").arg("--until-stdin-ends").arg("--socket").arg(socket).args(["--disk", &disk]);
        Process::start(command, "listening at")
    }

    /// A guest that shows its disk as a file, and ends with its root.
    pub(crate) fn guest(&self) -> Process {
        self.guest_for("0")
    }

    /// A guest that shows its disk as a file, and waits for another root.
    pub(crate) fn guest_that_resumes(&self) -> Process {
        self.guest_for("60")
    }

    fn guest_for(&self, seconds: &str) -> Process {
        let mut command = vmbus();
        command
            .args(["guest", "--name", "alice", "--resume", seconds, "--socket"])
            .arg(self.path().join("bus.sock"));
        command.arg("--fuse").arg(self.path().join("mnt"));
        Process::start(command, "is a disk of")
    }

    pub(crate) fn is_mentioned_in(&self, text: &str) -> bool {
        text.contains(self.path().to_str().unwrap())
    }

    /// Names of what is in the folder.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Waits until no mount, loop device or process has to do with the folder any more.
    pub(crate) fn assert_nothing_is_left(&self) {
        until("mounts, loop devices and processes are gone", || self.leftovers().is_empty().then_some(()));
    }

    fn leftovers(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let loops = glob("/sys/block", "loop/backing_file");
        let processes = glob("/proc", "cmdline");
        let all = mounts.lines().map(str::to_owned).chain(loops).chain(processes);
        all.filter(|text| self.is_mentioned_in(text)).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Only where a test fails: it is about nothing being mounted any more.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = |at: &&Path| mounts.contains(at.to_str().unwrap_or_default());
        for at in [self.path().join("fs"), self.path().join("mnt")].iter().map(PathBuf::as_path).filter(ours)
        {
            let _ = program("umount").arg("-l").arg(at).status();
        }
    }
}

/// The contents of `file` in each folder of `parent` that has it.
fn glob(parent: &str, file: &str) -> Vec<String> {
    let folders = fs::read_dir(parent).unwrap().filter_map(Result::ok);
    folders
        .filter_map(|folder| fs::read(folder.path().join(file)).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect()
}

/// Asks again and again until there is an answer.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn vmbus() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vmbus"))
}

/// A process that is killed when dropped.
pub(crate) struct Process {
    child: Child,
    /// Kept open, so that it does not fail to print.
    _output: mpsc::Receiver<String>,
}

impl Process {
    /// Starts it and waits until it prints `ready`.
    fn start(mut command: Command, ready: &str) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = lines(child.stdout.take().unwrap());
        let process = Self { child, _output: output };
        loop {
            let line = process._output.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("{command:?} ended or hangs before it said {ready:?}"));
            if line.contains(ready) {
                return process;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        until("a process has ended", || self.child.try_wait().unwrap())
    }

    /// Asks it to end, as its user would.
    pub(crate) fn end(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(output: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Runs a program to its end, which must be a good one.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {error}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A program of the system administrator's, wherever `PATH` leads.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// A loop device; given back when dropped.
pub(crate) struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    pub(crate) fn new(file: &Path, options: &[&str]) -> Self {
        let mut command = program("losetup");
        let device = run(command.args(["--find", "--show"]).args(options).arg(file));
        Self { path: device.trim().into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = program("losetup").arg("-d").arg(&self.path).status();
    }
}

/// A mounted file system; unmounted when dropped, with force if need be.
pub(crate) struct Mounted {
    at: Option<PathBuf>,
}

impl Mounted {
    pub(crate) fn new(device: &LoopDevice, at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        run(program("mount").args(["-t", "ext4", "-o", options]).arg(device.path()).arg(at));
        Self { at: Some(at.into()) }
    }

    pub(crate) fn unmount(mut self) {
        run(program("umount").arg(self.at.take().unwrap()));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(at) = &self.at {
            let _ = program("umount").arg("-l").arg(at).status();
        }
    }
}
