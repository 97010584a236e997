//! Reads, writes and durability of one open image, as the kernel offers them.
//!
//! [`Image`] is the logic, [`Calls`] the few system calls beneath it; the seam lets a test see which calls a promise
//! of durability costs, and lets it fail them.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FallocateFlags, fallocate};
use vmbus_partition::GuestPages;
use vmbus_partition::io::{self as guest_io, Patience};

use super::Durability;

/// Bytes written at a time where the file system can neither punch a hole nor zero a range.
const ZERO_CHUNK: usize = 1 << 20;

/// The system calls of an image.
pub(super) trait Calls: Send + Sync + 'static {
    /// Reads into guest pages; bytes read, fewer than asked at the end of the file or where it would block.
    fn read_at(&self, offset: u64, into: &GuestPages, patience: Patience) -> io::Result<usize>;
    /// Writes from guest pages; bytes written.
    fn write_at(&self, offset: u64, from: &GuestPages, patience: Patience) -> io::Result<usize>;
    /// Writes private bytes, all of them.
    fn write_all_at(&self, offset: u64, from: &[u8]) -> io::Result<()>;
    /// `fdatasync`.
    fn sync_data(&self) -> io::Result<()>;
    /// `fallocate` that keeps the size.
    fn allocate(&self, mode: FallocateFlags, range: &Range<u64>) -> io::Result<()>;
}

impl Calls for File {
    fn read_at(&self, offset: u64, into: &GuestPages, patience: Patience) -> io::Result<usize> {
        guest_io::read_at(self.as_fd(), offset, into, patience)
    }

    fn write_at(&self, offset: u64, from: &GuestPages, patience: Patience) -> io::Result<usize> {
        guest_io::write_at(self.as_fd(), offset, from, patience, guest_io::Durability::Cached)
    }

    fn write_all_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        FileExt::write_all_at(self, from, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn allocate(&self, mode: FallocateFlags, range: &Range<u64>) -> io::Result<()> {
        let signed = |value: u64| i64::try_from(value).map_err(io::Error::other);
        Ok(fallocate(self, mode, signed(range.start)?, signed(range.end - range.start)?)?)
    }
}

/// Which calls finish at once on this file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    /// A disk: what is not in the page cache waits for it.
    Disk,
    /// The host's memory (tmpfs, a memfd): plain calls never wait for a device.
    Memory,
}

impl Medium {
    /// How long a call may take on the thread that serves a ring.
    fn inline(self) -> Patience {
        match self {
            Self::Disk => Patience::NoWait,
            Self::Memory => Patience::Wait,
        }
    }
}

/// An open image.
#[derive(Debug)]
pub(super) struct Image<C> {
    calls: C,
    medium: Medium,
    /// Set when a sync has failed. The kernel then forgets which pages were not written, and the next sync would
    /// succeed without them: nothing may be called stable any more until the image is opened anew.
    lost_writes: AtomicBool,
}

impl<C: Calls> Image<C> {
    pub(super) fn new(calls: C, medium: Medium) -> Self {
        Self { calls, medium, lost_writes: AtomicBool::new(false) }
    }

    /// Reads what needs no waiting; `None` when some of it does.
    pub(super) fn try_read(&self, offset: u64, into: &GuestPages) -> Option<io::Result<()>> {
        complete(self.calls.read_at(offset, into, self.medium.inline()), into.len())
    }

    /// Writes to the cache what needs no waiting; `None` when some of it does. A stable write always waits.
    pub(super) fn try_write(
        &self,
        offset: u64,
        from: &GuestPages,
        durability: Durability,
    ) -> Option<io::Result<()>> {
        match durability {
            Durability::Stable => None,
            Durability::Visible => {
                complete(self.calls.write_at(offset, from, self.medium.inline()), from.len())
            }
        }
    }

    /// Reads all of it. Blocks.
    pub(super) fn read(&self, offset: u64, into: &GuestPages) -> io::Result<()> {
        match self.calls.read_at(offset, into, Patience::Wait)? {
            done if done == into.len() => Ok(()),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Writes all of it. Blocks.
    pub(super) fn write(&self, offset: u64, from: &GuestPages, durability: Durability) -> io::Result<()> {
        match self.calls.write_at(offset, from, Patience::Wait)? {
            done if done == from.len() => self.settle(durability),
            _ => Err(ErrorKind::WriteZero.into()),
        }
    }

    /// Makes completed writes stable. Blocks.
    pub(super) fn flush(&self) -> io::Result<()> {
        if self.lost_writes.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync of this image failed: writes may be missing"));
        }
        self.calls.sync_data().inspect_err(|_| self.lost_writes.store(true, Ordering::Release))
    }

    /// Makes a range read as zeroes, giving its space back. Blocks.
    pub(super) fn discard(&self, range: &Range<u64>) -> io::Result<()> {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match self.calls.allocate(punch, range) {
            Err(error) if unsupported(&error) => self.write_zeroes(range, Durability::Visible),
            done => done,
        }
    }

    /// Makes a range read as zeroes, keeping its space. Blocks.
    pub(super) fn write_zeroes(&self, range: &Range<u64>, durability: Durability) -> io::Result<()> {
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match self.calls.allocate(zero, range) {
            Err(error) if unsupported(&error) => self.write_zero_bytes(range)?,
            done => done?,
        }
        self.settle(durability)
    }

    fn write_zero_bytes(&self, range: &Range<u64>) -> io::Result<()> {
        let zeroes = vec![0; ZERO_CHUNK];
        let mut at = range.start;
        while at < range.end {
            let length = usize::try_from(range.end - at).unwrap_or(ZERO_CHUNK).min(ZERO_CHUNK);
            self.calls.write_all_at(at, &zeroes[..length])?;
            at += length as u64;
        }
        Ok(())
    }

    fn settle(&self, durability: Durability) -> io::Result<()> {
        match durability {
            Durability::Visible => Ok(()),
            Durability::Stable => self.flush(),
        }
    }
}

impl Image<File> {
    /// Size in bytes, at this moment.
    pub(super) fn size(&self) -> io::Result<u64> {
        // Unlike the size in the metadata this is also that of a block device.
        (&self.calls).seek(SeekFrom::End(0))
    }
}

/// What a transfer that must not wait has brought. Anything but complete success is left to the waiting form, which
/// repeats the whole transfer and reports what is wrong with it.
fn complete(transferred: io::Result<usize>, length: usize) -> Option<io::Result<()>> {
    transferred.is_ok_and(|done| done == length).then_some(Ok(()))
}

/// The kernel or the file system does not know this call; others do.
fn unsupported(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Unsupported) || error.raw_os_error() == Some(nix::libc::ENOSYS)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::storage::scratch::Scratch;

    /// A file that is all promises: it notes what it is asked, and fails what it is told to.
    #[derive(Default)]
    struct Recorder {
        calls: Mutex<Vec<&'static str>>,
        sync_fails: AtomicBool,
        no_fallocate: bool,
        cached: Option<usize>,
    }

    impl Recorder {
        fn note(&self, call: &'static str) {
            self.calls.lock().unwrap().push(call);
        }
    }

    impl Calls for Recorder {
        fn read_at(&self, _: u64, into: &GuestPages, patience: Patience) -> io::Result<usize> {
            self.note(if patience == Patience::NoWait { "try read" } else { "read" });
            Ok(into.len().min(self.cached.unwrap_or(usize::MAX)))
        }

        fn write_at(&self, _: u64, from: &GuestPages, patience: Patience) -> io::Result<usize> {
            self.note(if patience == Patience::NoWait { "try write" } else { "write" });
            Ok(from.len().min(self.cached.unwrap_or(usize::MAX)))
        }

        fn write_all_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            self.note("write zeroes");
            Ok(())
        }

        fn sync_data(&self) -> io::Result<()> {
            self.note("sync");
            match self.sync_fails.load(Ordering::Relaxed) {
                true => Err(io::Error::other("the disk is on fire")),
                false => Ok(()),
            }
        }

        fn allocate(&self, mode: FallocateFlags, _: &Range<u64>) -> io::Result<()> {
            self.note(if mode.contains(FallocateFlags::FALLOC_FL_PUNCH_HOLE) {
                "punch"
            } else {
                "zero range"
            });
            match self.no_fallocate {
                true => Err(nix::errno::Errno::EOPNOTSUPP.into()),
                false => Ok(()),
            }
        }
    }

    fn image(recorder: Recorder) -> Image<Recorder> {
        Image::new(recorder, Medium::Disk)
    }

    fn calls(image: &Image<Recorder>) -> Vec<&'static str> {
        std::mem::take(&mut image.calls.calls.lock().unwrap())
    }

    fn pages(length: usize) -> GuestPages {
        Scratch::new(length).unwrap().pages(length).unwrap()
    }

    #[test]
    fn a_flush_is_one_sync_and_a_stable_write_syncs_after_it_has_written() {
        let image = image(Recorder::default());
        image.write(0, &pages(512), Durability::Visible).unwrap();
        assert_eq!(calls(&image), ["write"]);
        image.flush().unwrap();
        assert_eq!(calls(&image), ["sync"]);
        assert!(image.try_write(0, &pages(512), Durability::Stable).is_none(), "syncing waits for the disk");
        image.write(0, &pages(512), Durability::Stable).unwrap();
        assert_eq!(calls(&image), ["write", "sync"]);
        image.write_zeroes(&(0..512), Durability::Stable).unwrap();
        assert_eq!(calls(&image), ["zero range", "sync"]);
    }

    #[test]
    fn after_a_failed_sync_nothing_is_called_stable_again() {
        let image = image(Recorder { sync_fails: AtomicBool::new(true), ..Recorder::default() });
        image.flush().unwrap_err();
        image.calls.sync_fails.store(false, Ordering::Relaxed);
        image.flush().unwrap_err();
        image.write(0, &pages(512), Durability::Stable).unwrap_err();
        image.write(0, &pages(512), Durability::Visible).unwrap();
        assert_eq!(calls(&image), ["sync", "write", "write"]);
    }

    #[test]
    fn what_the_cache_lacks_is_left_to_those_who_may_wait() {
        let image = image(Recorder { cached: Some(4096), ..Recorder::default() });
        assert!(image.try_read(0, &pages(4096)).unwrap().is_ok());
        assert!(image.try_read(0, &pages(8192)).is_none());
        assert!(image.try_write(0, &pages(8192), Durability::Visible).is_none());
        assert_eq!(calls(&image), ["try read", "try read", "try write"]);
        assert_eq!(image.read(0, &pages(8192)).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(
            image.write(0, &pages(8192), Durability::Visible).unwrap_err().kind(),
            ErrorKind::WriteZero
        );
    }

    #[test]
    fn a_file_system_without_holes_gets_zeroes() {
        let image = image(Recorder { no_fallocate: true, ..Recorder::default() });
        image.discard(&(0..(2 << 20) + 1)).unwrap();
        assert_eq!(calls(&image), ["punch", "zero range", "write zeroes", "write zeroes", "write zeroes"]);
    }
}
