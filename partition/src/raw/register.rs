//! Registration with tokio's reactor.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor that nobody can close meanwhile.
pub(crate) fn register(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, nobody takes it out of an `Arc` that
    // is shared, and `AsyncFd` owns its share until it has deregistered it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
