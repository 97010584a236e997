//! The file system with one file.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::unistd::{getegid, geteuid};
use tokio::runtime::Handle;
use vmbus_vsc::{Disk, DiskError};

use super::errno::errno;
use super::pool::{Loan, Pool};
use super::sectors::{Sectors, Zeroing};

/// Name of the file.
pub(super) const FILE_NAME: &str = "disk";
/// Inode of the directory.
const DIRECTORY: INodeNo = INodeNo::ROOT;
/// Inode of the file.
const FILE: INodeNo = INodeNo(2);
/// How long the kernel may remember what we said of the file: nothing of it ever changes.
const FOREVER: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest request in bytes. The kernel cuts what programs ask for into pieces of this size.
const LONGEST: usize = 1 << 20;
/// Longest request, in bytes, that does not need a large space.
const SMALL: usize = 64 << 10;
/// Asynchronous requests, such as those of `losetup --direct-io=on`, that the kernel has in flight at a time.
const IN_FLIGHT: u16 = 64;
/// Large and small spaces to try for, most first: a guest with little memory gets fewer requests in flight.
const SPACES: [(usize, usize); 4] = [(8, 64), (4, 32), (2, 8), (1, 1)];

/// `fallocate` flags of the system (`linux/falloc.h`).
mod falloc {
    pub(super) const KEEP_SIZE: i32 = 0x01;
    pub(super) const PUNCH_HOLE: i32 = 0x02;
    pub(super) const ZERO_RANGE: i32 = 0x10;
}

/// A directory with one file in it, the disk. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub(super) struct DiskFile {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sectors: Arc<Sectors>,
    small: Arc<Pool>,
    large: Arc<Pool>,
    runtime: Handle,
    directory: FileAttr,
    file: FileAttr,
    read_only: bool,
}

impl DiskFile {
    pub(super) fn new(disk: Disk, runtime: Handle) -> Result<Self, DiskError> {
        let (small, large) = pools(&disk)?;
        let info = disk.info();
        let (directory, file) = (attributes(DIRECTORY, 4096, 0o555), {
            let permissions = if info.read_only { 0o444 } else { 0o600 };
            attributes(FILE, info.size(), permissions)
        });
        let sectors = Arc::new(Sectors::new(disk));
        let read_only = info.read_only;
        Ok(Self { inner: Arc::new(Inner { sectors, small, large, runtime, directory, file, read_only }) })
    }

    pub(super) fn disk(&self) -> &Disk {
        self.inner.sectors.disk()
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// Blocks the thread until no request that moves data is in flight.
    pub(super) fn wait_until_idle(&self) {
        self.inner.small.wait_until_idle();
        self.inner.large.wait_until_idle();
    }

    fn attributes(&self, inode: INodeNo) -> Option<&FileAttr> {
        match inode {
            DIRECTORY => Some(&self.inner.directory),
            FILE => Some(&self.inner.file),
            _ => None,
        }
    }

    /// Room for a request of `len` bytes. Waits if too many are in flight: the disk's answers do not need this thread.
    fn space(&self, len: usize) -> Loan {
        if len <= SMALL { self.inner.small.take() } else { self.inner.large.take() }
    }

    /// The part of a request of `len` bytes at `offset` that is within the disk and not too long.
    fn within(&self, offset: u64, len: usize) -> Range<u64> {
        let size = self.inner.file.size;
        let start = offset.min(size);
        let len = len.min(self.inner.large.longest()) as u64;
        start..start.saturating_add(len).min(size)
    }

    /// Runs `work`, which replies: up to where it waits at once, so that its request is on its way to the disk without
    /// waking another thread, and then on the runtime.
    fn start(&self, work: impl Future<Output = ()> + Send + 'static) {
        let _entered = self.inner.runtime.enter();
        let mut work = Box::pin(work);
        // Nobody has to be woken: the runtime asks again itself.
        if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.inner.runtime.spawn(work);
        }
    }

    /// Runs `work` and replies with its result.
    fn answer_later(
        &self,
        reply: ReplyEmpty,
        work: impl Future<Output = Result<(), DiskError>> + Send + 'static,
    ) {
        self.start(async move {
            match work.await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn flush_later(&self, reply: ReplyEmpty) {
        let sectors = Arc::clone(&self.inner.sectors);
        self.answer_later(reply, async move { sectors.disk().flush().await });
    }
}

impl Filesystem for DiskFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP];
        for capability in wanted {
            // What an older kernel does not know we do without.
            let _ = config.add_capabilities(capability);
        }
        let refused = |_| io::Error::from(io::ErrorKind::InvalidInput);
        config.set_max_write(u32::try_from(LONGEST).unwrap_or(u32::MAX)).map_err(refused)?;
        config.set_max_background(IN_FLIGHT).map_err(|_| io::ErrorKind::InvalidInput)?;
        config.set_congestion_threshold(IN_FLIGHT).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == DIRECTORY && name == FILE_NAME {
            reply.entry(&FOREVER, &self.inner.file, Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&FOREVER, attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// A disk keeps its size, its owner and its permissions. New times are taken, and forgotten.
    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some(attributes) = self.attributes(inode) else { return reply.error(Errno::ENOENT) };
        match size {
            _ if self.inner.read_only => reply.error(Errno::EROFS),
            Some(size) if size > attributes.size => reply.error(Errno::EFBIG),
            Some(size) if size < attributes.size => reply.error(Errno::EPERM),
            Some(_) | None if mode.or(uid).or(gid).is_some() => reply.error(Errno::EPERM),
            Some(_) | None => reply.attr(&FOREVER, attributes),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writable = flags.acc_mode() != OpenAccMode::O_RDONLY;
        if inode != FILE {
            reply.error(Errno::EISDIR);
        } else if writable && self.inner.read_only {
            reply.error(Errno::EROFS);
        } else {
            let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
            reply.opened(handle(writable), direct);
        }
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if inode != FILE {
            return reply.error(Errno::EISDIR);
        }
        let range = self.within(offset, size as usize);
        if range.is_empty() {
            return reply.data(&[]);
        }
        let sectors = Arc::clone(&self.inner.sectors);
        let mut space = self.space(size as usize);
        self.start(async move {
            match sectors.read(range, &mut space).await {
                Ok(()) => reply.data(&space.private),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if inode != FILE {
            return reply.error(Errno::EISDIR);
        }
        if self.inner.read_only {
            return reply.error(Errno::EROFS);
        }
        let range = self.within(offset, data.len());
        let len = usize::try_from(range.end - range.start).unwrap_or(data.len());
        let data = &data[..len];
        match u32::try_from(data.len()) {
            Ok(0) if self.inner.file.size <= offset => reply.error(Errno::ENOSPC),
            Ok(0) => reply.written(0),
            Ok(written) => {
                let sectors = Arc::clone(&self.inner.sectors);
                let space = self.space(data.len());
                sectors.place(&range, &space, data);
                self.start(async move {
                    match sectors.write(range, &space).await {
                        Ok(()) => reply.written(written),
                        Err(error) => reply.error(errno(&error)),
                    }
                });
            }
            Err(_) => reply.error(Errno::EINVAL),
        }
    }

    /// On each close: whoever has written and closed may expect to hear of errors, and what `cp` wrote is safe.
    fn flush(&self, _: &Request, _: INodeNo, opened: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        if opened == handle(true) { self.flush_later(reply) } else { reply.ok() }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        if self.inner.read_only { reply.ok() } else { self.flush_later(reply) }
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let how = match mode & !falloc::KEEP_SIZE {
            falloc::PUNCH_HOLE => Zeroing::Punch,
            falloc::ZERO_RANGE => Zeroing::Keep,
            // Not even the disk knows whether there will be room.
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let size = self.inner.file.size;
        let end = offset.saturating_add(length);
        if inode != FILE {
            return reply.error(Errno::EISDIR);
        }
        if self.inner.read_only {
            return reply.error(Errno::EROFS);
        }
        if end > size && mode & falloc::KEEP_SIZE == 0 {
            return reply.error(Errno::EFBIG);
        }
        let range = offset.min(size)..end.min(size);
        let sectors = Arc::clone(&self.inner.sectors);
        let space = self.inner.small.take();
        self.answer_later(reply, async move {
            if range.is_empty() { Ok(()) } else { sectors.zero(range, how, &space).await }
        });
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if inode != DIRECTORY {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (DIRECTORY, FileType::Directory, "."),
            (DIRECTORY, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, FILE_NAME),
        ];
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for ((inode, kind, name), next) in entries.into_iter().zip(1..).skip(from) {
            if reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

/// What `flush` is told of how the file was opened.
fn handle(writable: bool) -> FileHandle {
    FileHandle(writable.into())
}

fn pools(disk: &Disk) -> Result<(Arc<Pool>, Arc<Pool>), DiskError> {
    let mut result = Err(DiskError::NoSuchDisk(0));
    for (large, small) in SPACES {
        result =
            Pool::new(disk, small, SMALL).and_then(|small| Ok((small, Pool::new(disk, large, LONGEST)?)));
        if result.is_ok() {
            break;
        }
    }
    result
}

fn attributes(inode: INodeNo, size: u64, permissions: u16) -> FileAttr {
    let now = SystemTime::now();
    FileAttr {
        ino: inode,
        size,
        blocks: size.div_ceil(512),
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind: if inode == DIRECTORY { FileType::Directory } else { FileType::RegularFile },
        perm: permissions,
        nlink: 1,
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
