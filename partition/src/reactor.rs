//! Descriptors for tokio's reactor, for programs that use that runtime.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::raw;

/// A descriptor that tells when it is readable, or writable too.
pub type Watching = AsyncFd<Arc<OwnedFd>>;

/// Tells when a duplicate of `fd` is readable.
///
/// # Errors
/// The system's, when descriptors run out. Outside of a runtime this panics.
pub fn readable(fd: BorrowedFd<'_>) -> io::Result<Watching> {
    raw::register(Arc::new(fd.try_clone_to_owned()?), Interest::READABLE)
}

/// Tells when `fd` itself is readable. A descriptor can be watched once at a time.
///
/// # Errors
/// The system's, when it is watched already. Outside of a runtime this panics.
pub fn watch_readable(fd: Arc<OwnedFd>) -> io::Result<Watching> {
    raw::register(fd, Interest::READABLE)
}

/// As [`watch_readable`], and when it is writable too.
///
/// # Errors
/// As [`watch_readable`].
pub fn watch(fd: Arc<OwnedFd>) -> io::Result<Watching> {
    raw::register(fd, Interest::READABLE | Interest::WRITABLE)
}
