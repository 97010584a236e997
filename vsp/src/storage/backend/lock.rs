//! Keeps two writers, or a writer and a reader, off one image.
//!
//! The lock belongs to the open file description, so it ends with the process however that ends, and threads of one
//! process conflict like strangers do. It covers the whole file: programs that lock single bytes of images in use
//! (QEMU does) are refused, and refuse us, as well.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::Access;

/// Takes the lock that `access` calls for: exclusive for a writer, shared among readers. `Ok(false)` when somebody
/// else holds one that conflicts.
pub(super) fn lock(file: &File, access: Access) -> io::Result<bool> {
    let kind = match access {
        Access::ReadWrite => libc::F_WRLCK,
        Access::ReadOnly => libc::F_RDLCK,
    };
    let whole_file = libc::flock {
        l_type: i16::try_from(kind).map_err(io::Error::other)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(io::Error::other)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file)) {
        Ok(_) => Ok(true),
        Err(Errno::EACCES | Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
