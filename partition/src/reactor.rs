//! Descriptors for tokio's reactor, for programs that use that runtime.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::raw;

/// A duplicate of `fd` that tells when it is readable.
///
/// # Errors
/// The system's, when descriptors run out. Outside of a runtime this panics.
pub fn readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    raw::register(fd.try_clone_to_owned()?, Interest::READABLE)
}

/// A duplicate of `fd` that tells when it is readable and when it is writable.
///
/// # Errors
/// As [`readable`].
pub fn read_write(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    raw::register(fd.try_clone_to_owned()?, Interest::READABLE | Interest::WRITABLE)
}
