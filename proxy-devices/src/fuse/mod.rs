//! A disk as a file, by FUSE: what works on disk images works on it, `losetup` and `mkfs` among it.
//!
//! The kernel's requests come to two threads that only copy and pass on; all that the kernel has in flight is in
//! flight at the disk. Data are copied once between the kernel's buffer and shared memory.
//!
//! # Caching
//!
//! The file is opened for direct I/O: what is read comes from the disk and what is written is with the disk when the
//! call returns, at any offset and length. Who mounts a file system on it has the cache of that file system above it
//! already; a second one here would hold everything twice, and stale where somebody else writes to the disk.
//! Several writes run at a time, also by `losetup --direct-io=on`, and the file can be mapped.
//!
//! # No mount outlives its process
//!
//! A process that is killed cannot unmount, and a dead FUSE mount answers "Transport endpoint is not connected" until
//! somebody does. So each door has a small shell beside it that waits for the end of its standard input, which is the
//! death of the process however it came, and then unmounts what carries the door's own name, and nothing else.
//! `fusermount3 -o auto_unmount` would do alike, but not for users other than root as Debian comes.

mod errno;
mod file;
mod mount;
mod pool;
mod range_lock;
mod sectors;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use tokio::runtime::Handle;
use vmbus_vsc::{Disk, DiskError};

use self::file::{DiskFile, FILE_NAME};
use self::mount::Mount;

/// Why a door could not be opened, or not be closed in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoorError {
    /// There is no tokio runtime: the caller's fault.
    #[error("a door needs a tokio runtime to run the disk's requests")]
    NoRuntime,
    /// The guest has too little memory for requests, or the disk is gone.
    #[error("no shared memory for the file's requests")]
    Memory(#[source] DiskError),
    /// The mount point cannot be used.
    #[error("cannot use {} as a mount point", path.display())]
    Mountpoint {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel or `fusermount3` refused.
    #[error("cannot mount by FUSE at {}", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is still open. It is out of sight, and serves those who have it open until this process ends.
    #[error("{} is still in use: what its users have not written yet is lost when this process ends", file.display())]
    Busy {
        /// The file.
        file: PathBuf,
    },
    /// Unmounting failed for another reason.
    #[error("cannot unmount {}", path.display())]
    Unmount {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is unmounted, but the last flush failed: writes may be lost.
    #[error("the disk could not be flushed")]
    Flush(#[source] DiskError),
}

/// A disk shown as a file of its size. Dropping it unmounts without waiting for anything;
/// [`unmount`](Self::unmount) is the orderly way.
#[derive(Debug)]
pub struct DiskDoor {
    mount: Mount,
    content: DiskFile,
    runtime: Handle,
    file: PathBuf,
}

impl DiskDoor {
    /// Shows `disk` as the file `disk` in the directory `mountpoint`, to the user that runs this process and, where
    /// `/etc/fuse.conf` permits it, to root.
    ///
    /// Sets aside up to 13 MiB of the guest's memory for requests, less of a small one. The requests run on the
    /// current tokio runtime, which has to run for as long as the file is in use.
    ///
    /// # Errors
    /// [`DoorError::NoRuntime`], [`DoorError::Memory`], [`DoorError::Mountpoint`]: the caller's fault;
    /// [`DoorError::Mount`].
    pub fn mount(disk: Disk, mountpoint: &Path) -> Result<Self, DoorError> {
        let runtime = Handle::try_current().map_err(|_| DoorError::NoRuntime)?;
        let content = DiskFile::new(disk, runtime.clone()).map_err(DoorError::Memory)?;
        let mount = Mount::new(&content, mountpoint)?;
        let file = mount.mountpoint().join(FILE_NAME);
        Ok(Self { mount, content, runtime, file })
    }

    /// Path of the file.
    pub fn file(&self) -> PathBuf {
        self.file.clone()
    }

    /// Unmounts, waits for requests in flight, and flushes the disk. Blocks the thread meanwhile, which must not be
    /// the only one of its runtime.
    ///
    /// # Errors
    /// [`DoorError::Busy`] if somebody has the file open, [`DoorError::Unmount`], [`DoorError::Flush`].
    /// The file is out of sight in every case but [`DoorError::Unmount`].
    pub fn unmount(mut self) -> Result<(), DoorError> {
        let unmounted = self.mount.unmount(&self.file);
        if unmounted.is_ok() {
            self.content.wait_until_idle();
        }
        let flushed = self.flush();
        unmounted.and(flushed)
    }

    fn flush(&self) -> Result<(), DoorError> {
        let disk = self.content.disk().clone();
        if disk.info().read_only {
            return Ok(());
        }
        let (done, result) = mpsc::sync_channel(1);
        self.runtime.spawn(async move { drop(done.send(disk.flush().await)) });
        match result.recv() {
            Ok(result) => result.map_err(DoorError::Flush),
            Err(mpsc::RecvError) => Err(DoorError::NoRuntime),
        }
    }
}
