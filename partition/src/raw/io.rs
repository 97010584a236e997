//! File input and output straight into mapped memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use smallvec::SmallVec;

use super::View;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    FromFile,
    ToFile,
}

/// Some bytes of a view.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) view: &'a View,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// As many parts as one system call takes.
const MAX_PARTS: usize = 1024;

/// One `preadv2` or `pwritev2` at `offset` over the first parts; tells how many bytes went.
pub(crate) fn transfer<'a>(
    file: BorrowedFd<'_>,
    offset: i64,
    direction: Direction,
    flags: i32,
    parts: impl Iterator<Item = Part<'a>>,
) -> io::Result<usize> {
    let vectors: SmallVec<[libc::iovec; 16]> = parts
        .take(MAX_PARTS)
        .map(|part| libc::iovec {
            iov_base: part.view.address(part.offset, part.len).as_ptr().cast(),
            iov_len: part.len,
        })
        .collect();
    let count = i32::try_from(vectors.len()).unwrap_or(0);
    let file = file.as_raw_fd();
    let done = match direction {
        // SAFETY: each vector was checked to lie in a mapping that outlives the call, and is writable.
        Direction::FromFile => unsafe { libc::preadv2(file, vectors.as_ptr(), count, offset, flags) },
        // SAFETY: each vector was checked to lie in a mapping that outlives the call.
        Direction::ToFile => unsafe { libc::pwritev2(file, vectors.as_ptr(), count, offset, flags) },
    };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}
