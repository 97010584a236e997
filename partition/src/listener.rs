//! The root's listening socket, the one name it has in a file system.
//!
//! A root that was killed leaves the path behind; the next one takes it over. Whether the old one lives is found out
//! by connecting, and the directory is locked (`flock`) from that question until the new socket listens: two roots
//! that start at once cannot both find the path dead, and there is no lock file to be left behind in turn.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};

/// How long another process may hold the lock of the directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Why a root cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another root answers at this path.
    #[error("another root is listening at {0}: stop it, or choose another socket path")]
    InUse(PathBuf),
    /// There is something else than a socket.
    #[error("{0} exists and is not a socket: remove it, or choose another socket path")]
    NotASocket(PathBuf),
    /// Somebody keeps the directory locked.
    #[error("the directory of {0} is locked by another process")]
    Locked(PathBuf),
    /// The system refused.
    #[error("{what} {path}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A socket at which partitions attach. Dropping it removes the path.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the path, so that nobody else's socket is removed.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`; a dead root's path is taken over.
    ///
    /// # Errors
    /// [`ListenError`], each saying what to do.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, ListenError> {
        let path = path.as_ref().to_owned();
        let failed = |what| {
            let path = path.clone();
            move |source| ListenError::System { what, path, source }
        };
        let _lock = lock_directory(&path)?;
        match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("looking at")(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenError::NotASocket(path)),
            Ok(_) if is_alive(&path).map_err(failed("asking who listens at"))? => {
                return Err(ListenError::InUse(path));
            }
            Ok(_) => std::fs::remove_file(&path).map_err(failed("taking over"))?,
        }
        let socket = UnixListener::bind(&path).map_err(failed("listening at"))?;
        socket.set_nonblocking(true).map_err(failed("listening at"))?;
        let identity = identity(&path).map_err(failed("looking at"))?;
        Ok(Self { socket, path, identity })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection, for [`Attaching::new`](crate::attach::Attaching::new); `None` when nobody is waiting.
    ///
    /// # Errors
    /// The system's: out of descriptors, say. Connections that were given up meanwhile are none.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        loop {
            match self.socket.accept() {
                Ok((socket, _)) => return Ok(Some(socket)),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

impl AsFd for Listener {
    /// Readable when somebody waits to be accepted.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Ok(_lock) = lock_directory(&self.path) else { return };
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Connects without waiting; [`io::ErrorKind::WouldBlock`] means that somebody listens and is busy.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

fn is_alive(path: &Path) -> io::Result<bool> {
    match connect(path) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Ok(false),
            io::ErrorKind::WouldBlock => Ok(true),
            _ => Err(error),
        },
    }
}

fn lock_directory(path: &Path) -> Result<Flock<File>, ListenError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed =
        |source| ListenError::System { what: "opening the directory of", path: path.to_owned(), source };
    let mut directory = File::open(parent).map_err(failed)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, nix::Error::EWOULDBLOCK | nix::Error::EINTR)) if Instant::now() < deadline => {
                directory = file;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err((_, nix::Error::EWOULDBLOCK)) => return Err(ListenError::Locked(path.to_owned())),
            Err((_, error)) => return Err(failed(error.into())),
        }
    }
}
