//! Descriptors: received over a socket, read without waiting, named by the kernel.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The kernel passes no more descriptors in one message.
const MAX_DESCRIPTORS: usize = 253;

/// What one receive brought.
pub(crate) struct Received {
    /// Bytes; 0 means that the peer has gone.
    pub(crate) len: usize,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Some descriptors were lost: we have too many open, or the peer sent more than there is room for.
    pub(crate) truncated: bool,
}

/// Receives bytes and descriptors without waiting. Descriptors are closed on exec from their first moment.
pub(crate) fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Received> {
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(into)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            for number in numbers {
                // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    let truncated = message.flags.contains(MsgFlags::MSG_CTRUNC);
    Ok(Received { len: message.bytes, descriptors, truncated })
}

/// Reads without waiting, whatever others have made of the descriptor's flags.
pub(crate) fn read_nowait(file: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    let vector = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: one vector, over private memory that outlives the call; -1 means the file's own position.
    let count = unsafe { libc::preadv2(file.as_raw_fd(), &raw const vector, 1, -1, libc::RWF_NOWAIT) };
    match usize::try_from(count).map_err(|_| io::Error::last_os_error()) {
        // A kernel before 6.4 on a pipe: its maker has made it non-blocking.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(nix::unistd::read(file, into)?),
        result => result,
    }
}

/// The process at the other end of a Unix socket, as a descriptor that becomes readable when it ends.
pub(crate) fn peer_process(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut number: libc::c_int = -1;
    let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    // SAFETY: the value is an int and len says so.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut number).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A process by number, as a descriptor that becomes readable when it ends.
pub(crate) fn process(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let number = RawFd::try_from(number).ok().filter(|number| *number >= 0);
    let number = number.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
