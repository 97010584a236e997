//! TAP: an Ethernet interface of the host kernel whose cable ends in this process.
//!
//! Each frame has a virtio header of [`HEADER`] bytes before it, by which the kernel leaves checksums and segmentation to
//! us and we to the kernel. What the header says is the business of who reads and writes it, not of this module.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;

use nix::libc;
use nix::sys::uio::{readv, writev};

use crate::raw::tap as raw;

/// Bytes of virtio header before each frame.
pub const HEADER: usize = 10;

/// What the kernel may leave undone in the frames that it gives us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapOffload {
    /// Nothing: each frame is as long as the MTU allows at most and has all its checksums.
    Nothing,
    /// Checksums, and cutting TCP over IPv4 and IPv6 into segments: frames of up to 64 KiB.
    ChecksumAndTcp,
}

/// One TAP interface. Dropping it removes the interface unless `ip tuntap` made it.
#[derive(Debug)]
pub struct Tap {
    device: File,
    name: String,
    offload: TapOffload,
    /// For the requests that the kernel takes on any socket.
    socket: UnixDatagram,
}

impl Tap {
    /// Takes the interface `name`, and makes it if there is none; a `%d` in the name is made a number by the kernel.
    /// Neither reading nor writing waits.
    ///
    /// # Errors
    /// The system's: no `/dev/net/tun`; not permitted, as neither root nor the user to whom `ip tuntap add NAME mode
    /// tap user USER` has given the interface; busy, as another process has it.
    pub fn open(name: &str) -> io::Result<Self> {
        let device =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let name = raw::attach(device.as_fd(), name, flags)?;
        raw::set_header_size(device.as_fd(), HEADER)?;
        let mut tap = Self { device, name, offload: TapOffload::Nothing, socket: UnixDatagram::unbound()? };
        tap.set_offload(TapOffload::Nothing)?;
        Ok(tap)
    }

    /// Its name, complete.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel leaves undone.
    pub fn offload(&self) -> TapOffload {
        self.offload
    }

    /// Sets what the kernel may leave undone; nothing in the beginning.
    ///
    /// # Errors
    /// The system's: a kernel that cannot.
    pub fn set_offload(&mut self, offload: TapOffload) -> io::Result<()> {
        let bits = match offload {
            TapOffload::Nothing => 0,
            TapOffload::ChecksumAndTcp => {
                libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN
            }
        };
        raw::set_offload(self.device.as_fd(), bits)?;
        self.offload = offload;
        Ok(())
    }

    /// Plugs the cable in (`true`, as in the beginning) or out.
    ///
    /// # Errors
    /// The system's: a kernel before 5.0.
    pub fn set_carrier(&self, up: bool) -> io::Result<()> {
        raw::set_carrier(self.device.as_fd(), up)
    }

    /// Gives the interface an Ethernet address.
    ///
    /// # Errors
    /// The system's: an address that no interface can have, such as a multicast one.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        raw::set_mac(self.device.as_fd(), &self.name, mac)
    }

    /// Longest IP packet, in bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn mtu(&self) -> io::Result<usize> {
        raw::mtu(self.socket.as_fd(), &self.name)
    }

    /// Sets the longest IP packet, in bytes.
    ///
    /// # Errors
    /// The system's: not permitted without CAP_NET_ADMIN; an MTU that no interface can have.
    pub fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        raw::set_mtu(self.socket.as_fd(), &self.name, mtu)
    }

    /// Sets the interface up, as `ip link set NAME up` does.
    ///
    /// # Errors
    /// The system's: not permitted without CAP_NET_ADMIN.
    pub fn set_up(&self) -> io::Result<()> {
        raw::set_up(self.socket.as_fd(), &self.name)
    }

    /// Takes the next frame that the kernel sends; its length, or `None` if there is none at present. What does not fit
    /// into `frame` is cut off. Never waits.
    ///
    /// # Errors
    /// The system's: the interface has been removed.
    #[inline]
    pub fn read(&self, header: &mut [u8; HEADER], frame: &mut [u8]) -> io::Result<Option<usize>> {
        let mut parts = [IoSliceMut::new(header), IoSliceMut::new(frame)];
        match readv(&self.device, &mut parts) {
            Ok(len) => Ok(Some(len.saturating_sub(HEADER))),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the kernel a frame. Never waits.
    ///
    /// # Errors
    /// The system's: [`io::ErrorKind::WouldBlock`] if it has too many already; a header that makes no sense; the
    /// interface is down or removed.
    #[inline]
    pub fn write(&self, header: &[u8; HEADER], frame: &[u8]) -> io::Result<()> {
        writev(&self.device, &[IoSlice::new(header), IoSlice::new(frame)])?;
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
