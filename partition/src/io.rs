//! File input and output straight into and out of guest pages: no copy of ours in between.

use std::io;
use std::os::fd::BorrowedFd;

use nix::libc;

use crate::gpa::GuestPages;
use crate::memory::Mapping;
use crate::raw::{Direction, Part, transfer};

/// Whether a call may wait for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Only what the page cache gives at once; else [`io::ErrorKind::WouldBlock`].
    NoWait,
    /// Until it is done.
    Wait,
}

/// What a finished write promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Readers see the data; a power cut may lose it.
    Cached,
    /// The data is on stable storage (`RWF_DSYNC`).
    Stable,
}

/// Reads from `offset` of the file until the pages are full; fewer bytes mean that the file ended, or, with
/// [`Patience::NoWait`], that the rest would have to wait.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when nothing could be had without waiting, or the file cannot tell; otherwise what
/// the system says of the file. Never the guest's fault: its pages were checked when they were made.
pub fn read_at(
    file: BorrowedFd<'_>,
    offset: u64,
    pages: &GuestPages,
    patience: Patience,
) -> io::Result<usize> {
    run(file, offset, pages, Direction::FromFile, flags(patience, Durability::Cached))
}

/// Writes all the pages to `offset` of the file; fewer bytes mean, with [`Patience::NoWait`], that the rest would have
/// to wait.
///
/// # Errors
/// As [`read_at`].
pub fn write_at(
    file: BorrowedFd<'_>,
    offset: u64,
    pages: &GuestPages,
    patience: Patience,
    durability: Durability,
) -> io::Result<usize> {
    run(file, offset, pages, Direction::ToFile, flags(patience, durability))
}

fn flags(patience: Patience, durability: Durability) -> i32 {
    let patience = match patience {
        Patience::NoWait => libc::RWF_NOWAIT,
        Patience::Wait => 0,
    };
    let durability = match durability {
        Durability::Cached => 0,
        Durability::Stable => libc::RWF_DSYNC,
    };
    patience | durability
}

fn run(
    file: BorrowedFd<'_>,
    offset: u64,
    pages: &GuestPages,
    direction: Direction,
    flags: i32,
) -> io::Result<usize> {
    let mut done = 0;
    while done < pages.len() {
        let at = offset.checked_add(done as u64).and_then(|at| i64::try_from(at).ok());
        let at = at.ok_or(io::ErrorKind::InvalidInput)?;
        match transfer(file, at, direction, flags, parts_from(pages, done)) {
            Ok(0) if direction == Direction::ToFile => return Err(io::ErrorKind::WriteZero.into()),
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if would_wait(&error) && done > 0 => break,
            Err(error) if would_wait(&error) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A file system that does not know `RWF_NOWAIT` says "not supported".
fn would_wait(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

fn parts_from(pages: &GuestPages, skip: usize) -> impl Iterator<Item = Part<'_>> {
    let mut skip = skip;
    pages.runs().filter_map(move |(mapping, range): (&Mapping, _)| {
        let skipped = skip.min(range.len());
        skip -= skipped;
        let (offset, len) = (range.start + skipped, range.len() - skipped);
        (len > 0).then_some(Part { view: mapping.view(), offset, len })
    })
}
