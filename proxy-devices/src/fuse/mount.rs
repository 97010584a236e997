//! A mount that ends with its process.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{Config, MountOption, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::unistd::geteuid;
use tracing::warn;

use super::DoorError;
use super::file::DiskFile;

/// Threads that take requests from the kernel. They only copy, so few are enough.
const THREADS: usize = 2;
/// How long a mount point may be unusable, or in use, before it counts: a mount of a killed process may be on its way
/// out, and programs such as udev open a file for a moment when it appears.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often to look meanwhile.
const PAUSE: Duration = Duration::from_millis(10);

/// A FUSE mount and the threads that serve it.
#[derive(Debug)]
pub(super) struct Mount {
    mountpoint: PathBuf,
    /// `None` once nothing is mounted any more.
    server: Option<JoinHandle<io::Result<()>>>,
    watcher: Watcher,
}

impl Mount {
    pub(super) fn new(content: &DiskFile, mountpoint: &Path) -> Result<Self, DoorError> {
        let unusable = |source| DoorError::Mountpoint { path: mountpoint.into(), source };
        let failed = |source| DoorError::Mount { path: mountpoint.into(), source };
        let mountpoint = directory(mountpoint).map_err(unusable)?;
        let name = unique_name();
        // First, so that there is no moment in which a killed process would leave the mount.
        let watcher = Watcher::start(&mountpoint, &name).map_err(failed)?;
        let session = session(content, &mountpoint, name).map_err(failed)?;
        let server =
            thread::Builder::new().name("fuse".into()).spawn(move || session.run()).map_err(failed)?;
        Ok(Self { mountpoint, server: Some(server), watcher })
    }

    pub(super) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Unmounts and waits until the kernel has its last answer.
    pub(super) fn unmount(&mut self, file: &Path) -> Result<(), DoorError> {
        let Some(server) = self.server.take() else { return Ok(()) };
        let started = Instant::now();
        loop {
            match unmount(&self.mountpoint, Wait::ForUsers) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    if started.elapsed() > PATIENCE {
                        let detached = unmount(&self.mountpoint, Wait::ForNobody);
                        detached.map_err(|source| self.not_unmounted(source))?;
                        self.watcher.dismiss();
                        return Err(DoorError::Busy { file: file.into() });
                    }
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err(self.not_unmounted(error)),
            }
        }
        self.watcher.dismiss();
        match server.join() {
            Ok(result) => result.map_err(|source| self.not_unmounted(source)),
            Err(_) => Err(self.not_unmounted(io::Error::other("a thread that served the file panicked"))),
        }
    }

    fn not_unmounted(&self, source: io::Error) -> DoorError {
        DoorError::Unmount { path: self.mountpoint.clone(), source }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.server.is_none() {
            return;
        }
        match unmount(&self.mountpoint, Wait::ForNobody) {
            Ok(()) => self.watcher.dismiss(),
            // The watcher tries again.
            Err(error) => warn!("cannot unmount {}: {error}", self.mountpoint.display()),
        }
    }
}

/// The mount point with its real path. One that is still dead from a killed process gets a moment.
fn directory(mountpoint: &Path) -> io::Result<PathBuf> {
    let started = Instant::now();
    let real = loop {
        match mountpoint.canonicalize() {
            Err(error) if error.kind() == io::ErrorKind::NotConnected && started.elapsed() < PATIENCE => {
                thread::sleep(PAUSE);
            }
            result => break result?,
        }
    };
    if real.is_dir() { Ok(real) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// What the mount is called in the list of mounts; no other has this name.
fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("vmbus-disk-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn session(content: &DiskFile, mountpoint: &Path, name: String) -> io::Result<Session<DiskFile>> {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.mount_options =
        vec![MountOption::FSName(name), MountOption::NoExec, MountOption::DefaultPermissions];
    if content.is_read_only() {
        config.mount_options.push(MountOption::RO);
    }
    if geteuid().is_root() {
        return Session::new(content.clone(), mountpoint, &config);
    }
    // A user's disk is of more use if root may make a loop device of it.
    config.acl = SessionACL::RootAndOwner;
    match Session::new(content.clone(), mountpoint, &config) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            config.acl = SessionACL::Owner;
            Session::new(content.clone(), mountpoint, &config)
        }
        result => result,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// Fails with "busy" while somebody has a file open.
    ForUsers,
    /// Takes the mount out of sight at once; it ends with its last user.
    ForNobody,
}

fn unmount(mountpoint: &Path, wait: Wait) -> io::Result<()> {
    let flags = match wait {
        Wait::ForUsers => MntFlags::UMOUNT_NOFOLLOW,
        Wait::ForNobody => MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH,
    };
    match umount2(mountpoint, flags) {
        Ok(()) => Ok(()),
        // Somebody else has unmounted it.
        Err(Errno::EINVAL) => Ok(()),
        Err(Errno::EPERM) => by_fusermount(mountpoint, wait),
        Err(error) => Err(error.into()),
    }
}

/// The way of users other than root.
fn by_fusermount(mountpoint: &Path, wait: Wait) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if wait == Wait::ForNobody {
        command.arg("-z");
    }
    let output = command.arg("--").arg(mountpoint).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    let reason = reason.trim();
    let kind = match reason {
        // It says so in English whatever the user speaks.
        busy if busy.contains("busy") => io::ErrorKind::ResourceBusy,
        gone if gone.contains("not found") => return Ok(()),
        _ => io::ErrorKind::Other,
    };
    Err(io::Error::new(kind, reason.to_owned()))
}

/// A process that outlives ours for as long as it takes to unmount.
#[derive(Debug)]
struct Watcher {
    child: Child,
}

impl Watcher {
    /// Waits for a line or the end of its input, and at the end, which is ours, unmounts what has the name `$2`.
    /// The built-in `read` is all that runs before. Our terminal's signals are not its business.
    const SCRIPT: &str = r#"
        trap '' HUP INT QUIT TERM
        read -r dismissed && exit
        grep -q -F " - fuse $2 " /proc/self/mountinfo || exit
        umount -l -- "$1" || fusermount3 -u -z -- "$1"
    "#;

    fn start(mountpoint: &Path, name: &str) -> io::Result<Self> {
        let child = Command::new("/bin/sh")
            .args(["-c", Self::SCRIPT, "vmbus-unmount"])
            .arg(mountpoint)
            .arg(name)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child })
    }

    /// There is nothing to unmount any more.
    fn dismiss(&mut self) {
        if let Some(mut input) = self.child.stdin.take() {
            let _ = input.write_all(b"dismissed\n");
        }
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Closes its input, if it was not dismissed: then it unmounts.
        drop(self.child.stdin.take());
        let _ = self.wait();
    }
}
