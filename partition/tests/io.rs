//! File input and output straight into guest pages.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that fails may panic")]

use std::os::fd::AsFd;
use std::sync::Arc;

use vmbus_partition::io::{Durability, Patience, read_at, write_at};
use vmbus_partition::{GpaSpace, GuestPages, Mapping, Region};

fn scattered(pages: usize) -> GuestPages {
    let region = Region { gpa: 0, domain: 0, mapping: Mapping::anonymous(2 * pages * 4096).unwrap() };
    let space = Arc::new(GpaSpace::new(vec![region], 0).unwrap());
    let pfns: Vec<u64> = (0..pages as u64).map(|page| page * 2).collect();
    space.pages_of(512, (pages * 4096 - 512) as u32, pfns.into_iter()).unwrap()
}

#[test]
fn what_is_written_from_scattered_pages_is_read_back_into_others() {
    let file = tempfile::tempfile().unwrap();
    // More runs than one system call takes, so that the call must be repeated.
    let pages = scattered(1500);
    let content: Vec<u8> = (0..pages.len()).map(|index| (index / 7) as u8).collect();
    pages.write(0, &content).unwrap();
    assert_eq!(
        write_at(file.as_fd(), 1000, &pages, Patience::Wait, Durability::Cached).unwrap(),
        content.len()
    );

    let other = scattered(1500);
    assert_eq!(read_at(file.as_fd(), 1000, &other, Patience::Wait).unwrap(), content.len());
    let mut back = vec![0; content.len()];
    other.read(0, &mut back).unwrap();
    assert!(back == content);
}

#[test]
fn a_file_that_ends_gives_a_short_count() {
    let file = tempfile::tempfile().unwrap();
    let pages = scattered(2);
    write_at(file.as_fd(), 0, &pages, Patience::Wait, Durability::Stable).unwrap();
    assert_eq!(read_at(file.as_fd(), 5000, &pages, Patience::Wait).unwrap(), pages.len() - 5000);
    assert_eq!(read_at(file.as_fd(), 1 << 40, &pages, Patience::Wait).unwrap(), 0);
}

#[test]
fn impatience_is_answered_at_once() {
    let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let error = read_at(end.as_fd(), 0, &scattered(1), Patience::NoWait).unwrap_err();
    // A socket has no positions at all; what matters is that nobody waited.
    assert_eq!(error.raw_os_error(), Some(nix::libc::ESPIPE));

    let file = tempfile::tempfile().unwrap();
    let pages = scattered(1);
    write_at(file.as_fd(), 0, &pages, Patience::Wait, Durability::Cached).unwrap();
    match read_at(file.as_fd(), 0, &pages, Patience::NoWait) {
        Ok(count) => assert_eq!(count, pages.len()),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
    }
}

#[test]
fn positions_beyond_the_end_of_files_are_an_error() {
    let file = tempfile::tempfile().unwrap();
    assert!(read_at(file.as_fd(), u64::MAX - 10, &scattered(1), Patience::Wait).is_err());
    assert!(write_at(file.as_fd(), u64::MAX, &scattered(1), Patience::Wait, Durability::Cached).is_err());
}
