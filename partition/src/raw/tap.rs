//! The requests that make and steer a TAP interface. They are `ioctl`s, which take addresses and numbers of any kind.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc::{self, c_char, c_int, c_short};

// The third argument of these is no pointer to what the request's number says: the header declares an `int` for all.
nix::ioctl_write_ptr_bad!(tun_set_iff, nix::request_code_write!(b'T', 202, size_of::<c_int>()), libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_offload, nix::request_code_write!(b'T', 208, size_of::<c_int>()));
nix::ioctl_write_ptr!(tun_set_header_size, b'T', 216, c_int);
nix::ioctl_write_ptr!(tun_set_carrier, b'T', 226, c_int);
nix::ioctl_write_ptr_bad!(set_hardware_address, libc::SIOCSIFHWADDR, libc::ifreq);
nix::ioctl_write_ptr_bad!(read_mtu, libc::SIOCGIFMTU, libc::ifreq);
nix::ioctl_write_ptr_bad!(write_mtu, libc::SIOCSIFMTU, libc::ifreq);
nix::ioctl_write_ptr_bad!(read_flags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(write_flags, libc::SIOCSIFFLAGS, libc::ifreq);

/// Makes an open `/dev/net/tun` the other end of the interface `name`, which is made if there is none; gives its name,
/// which the kernel completes where it has a `%d`.
pub(crate) fn attach(tun: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<String> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = low_half(flags);
    // SAFETY: the request is complete, private and outlives the call, which writes the name into it and nothing else.
    unsafe { tun_set_iff(tun.as_raw_fd(), &raw mut request) }?;
    let bytes: Vec<u8> =
        request.ifr_name.iter().map(|byte| byte.to_ne_bytes()[0]).take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Says which of the kernel's offloads (`TUN_F_...`) the reader of the descriptor finishes.
pub(crate) fn set_offload(tun: BorrowedFd<'_>, offloads: u32) -> io::Result<()> {
    let offloads = c_int::try_from(offloads).map_err(io::Error::other)?;
    // SAFETY: the request takes a number.
    unsafe { tun_set_offload(tun.as_raw_fd(), offloads) }?;
    Ok(())
}

/// Sets how many bytes of virtio header stand before each frame.
pub(crate) fn set_header_size(tun: BorrowedFd<'_>, size: usize) -> io::Result<()> {
    let size = c_int::try_from(size).map_err(io::Error::other)?;
    // SAFETY: the request reads one int.
    unsafe { tun_set_header_size(tun.as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// Plugs the cable in or out.
pub(crate) fn set_carrier(tun: BorrowedFd<'_>, up: bool) -> io::Result<()> {
    let up = c_int::from(up);
    // SAFETY: the request reads one int.
    unsafe { tun_set_carrier(tun.as_raw_fd(), &raw const up) }?;
    Ok(())
}

/// Gives the interface an Ethernet address. The tun descriptor takes this without any privilege.
pub(crate) fn set_mac(tun: BorrowedFd<'_>, name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut request = request(name)?;
    let mut data: [c_char; 14] = [0; 14];
    for (to, from) in data.iter_mut().zip(mac) {
        *to = c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
    // SAFETY: the request is complete, private and outlives the call.
    unsafe { set_hardware_address(tun.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Longest IP packet of the interface, in bytes. `socket` may be any socket.
pub(crate) fn mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<usize> {
    let mut request = request(name)?;
    // SAFETY: the request is complete and private, and the call writes no further than its end.
    unsafe { read_mtu(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the call that succeeded has written this member, and any bits are an integer.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    usize::try_from(mtu).map_err(io::Error::other)
}

/// Sets the longest IP packet of the interface, in bytes. Needs CAP_NET_ADMIN.
pub(crate) fn set_mtu(socket: BorrowedFd<'_>, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = c_int::from(mtu);
    // SAFETY: the request is complete, private and outlives the call.
    unsafe { write_mtu(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Sets the interface up, as `ip link set up` does. Needs CAP_NET_ADMIN.
pub(crate) fn set_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    // SAFETY: the request is complete and private, and the call writes no further than its end.
    unsafe { read_flags(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the call that succeeded has written this member, and any bits are an integer.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | low_half(libc::IFF_UP);
    // SAFETY: the request is complete, private and outlives the call.
    unsafe { write_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// A request about the interface `name`, and zeros.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: plain data for which all zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays for the zero at the end.
    if name.len() >= request.ifr_name.len() || name.contains(['\0', '/']) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface's name has 1 to 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Flags as the structure holds them: its field has half the size of the constants.
fn low_half(flags: c_int) -> c_short {
    let [a, b, ..] = flags.to_le_bytes();
    c_short::from_le_bytes([a, b])
}
