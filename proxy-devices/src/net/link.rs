//! A cable to another switch: a datagram socket, each datagram one frame, as QEMU's "dgram" network has it.
//!
//! Nothing is encrypted or signed. Over UDP whoever can send from the other end's address is on the network.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use vmbus_vsp::network::switch::{
    Batch, Capabilities, Connection, Delivered, Frames, MAX_FRAME, Offload, Port, PortSettings, Switch,
};

use super::PortError;
use super::wake::{Interest, Wake};

/// Frames that are taken at a time.
const BURST: usize = 64;

/// Where the two ends of a cable are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEnds {
    /// UDP. An IPv6 tunnel over the Internet wants an MTU of at most 1280 within, or fragments.
    Udp {
        /// Our end.
        local: SocketAddr,
        /// The other switch.
        remote: SocketAddr,
    },
    /// Unix sockets of one host.
    Unix {
        /// Our end, a path that is made and removed.
        local: PathBuf,
        /// The other switch's path.
        remote: PathBuf,
    },
}

/// A switch's port whose other end is a port of another switch. Dropping it disconnects the port.
#[derive(Debug)]
pub struct LinkPort {
    socket: Arc<Socket>,
    wake: Arc<Wake>,
    lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl LinkPort {
    /// Connects a cable to a switch. The other end may come later, and come and go.
    ///
    /// # Errors
    /// [`PortError::Connect`] if the switch does not want it, [`PortError::System`] if the address or the path is in use
    /// or cannot be had.
    pub fn connect(switch: &Switch, ends: &LinkEnds, settings: PortSettings) -> Result<Self, PortError> {
        let socket = Arc::new(Socket::open(ends)?);
        let connection = switch.connect(Cable(Arc::clone(&socket)), settings)?;
        let (wake, lost) = (Arc::new(Wake::new()?), Arc::new(AtomicU64::new(0)));
        let thread = thread::Builder::new().name("switch link".into()).spawn({
            let (socket, wake, lost) = (Arc::clone(&socket), Arc::clone(&wake), Arc::clone(&lost));
            move || {
                if let Err(error) = carry(&socket, &connection, &wake, &lost) {
                    tracing::warn!(%error, "the link to another switch has ended");
                }
            }
        })?;
        Ok(Self { socket, wake, lost, thread: Some(thread) })
    }

    /// How often the network has said, after the fact, that it has lost a frame.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Our end's address, where it is UDP.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &*self.socket {
            Socket::Udp(socket) => socket.local_addr().ok(),
            Socket::Unix { .. } => None,
        }
    }
}

impl Drop for LinkPort {
    fn drop(&mut self) {
        self.wake.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
enum Socket {
    Udp(UdpSocket),
    Unix { socket: UnixDatagram, local: PathBuf, remote: PathBuf },
}

impl Socket {
    fn open(ends: &LinkEnds) -> io::Result<Self> {
        match ends {
            LinkEnds::Udp { local, remote } => {
                let socket = UdpSocket::bind(local)?;
                // From nobody else, then.
                socket.connect(remote)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Udp(socket))
            }
            LinkEnds::Unix { local, remote } => {
                remove_dead(local)?;
                let socket = UnixDatagram::bind(local)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Unix { socket, local: local.clone(), remote: remote.clone() })
            }
        }
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => {
                send(socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?;
            }
            Self::Unix { socket, remote, .. } => {
                socket.send_to(frame, remote)?;
            }
        }
        Ok(())
    }

    fn receive(&self, into: &mut [u8]) -> Result<usize, Errno> {
        recv(self.as_fd().as_raw_fd(), into, MsgFlags::MSG_DONTWAIT)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Udp(socket) => socket.as_fd(),
            Self::Unix { socket, .. } => socket.as_fd(),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        match self {
            Self::Udp(_) => {}
            Self::Unix { local, .. } => {
                let _ = std::fs::remove_file(local);
            }
        }
    }
}

/// Removes a socket that a dead process left: nobody can send to it any more.
fn remove_dead(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    match UnixDatagram::unbound()?.connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The switch's end.
struct Cable(Arc<Socket>);

impl Port for Cable {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        let mut delivered = Delivered::default();
        for frame in frames {
            match self.0.send(frame.bytes) {
                Ok(()) => {
                    delivered.frames += 1;
                    delivered.bytes += frame.bytes.len();
                }
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    // No room, which is what all count for that are not counted here.
                    Some(Errno::EAGAIN | Errno::ENOBUFS) => {}
                    Some(Errno::EMSGSIZE) => delivered.too_long += 1,
                    // Nobody is there.
                    Some(_) | None => delivered.link_down += 1,
                },
            }
        }
        delivered
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }
}

/// Whether an error of receiving is about the socket and stays. All others are what the network says of one datagram that
/// we have sent: nobody is there, or not yet, or the way does not take so long ones. It says so once, and the socket goes
/// on.
fn ends_the_socket(error: Errno) -> bool {
    matches!(error, Errno::EBADF | Errno::ENOTSOCK | Errno::ENOTCONN | Errno::EFAULT | Errno::EINVAL)
}

fn carry(socket: &Socket, connection: &Connection, wake: &Wake, lost: &AtomicU64) -> io::Result<()> {
    let mut batch = Batch::new();
    while !wake.is_stopped() {
        let (mut empty, mut refusals) = (false, 0);
        while batch.len() < BURST && !empty {
            let Ok(mut slot) = batch.slot(MAX_FRAME) else { break };
            match socket.receive(slot.bytes_mut()) {
                Ok(len) => slot.commit(len, Offload::NONE),
                Err(Errno::EAGAIN) => empty = true,
                Err(Errno::EINTR) => {}
                Err(error) if ends_the_socket(error) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(%error, "the network says that it has lost a frame of the link");
                    lost.fetch_add(1, Ordering::Relaxed);
                    refusals += 1;
                    // Whoever can make the network say so again and again keeps no frames from going on.
                    empty = refusals == BURST;
                }
            }
        }
        if batch.is_empty() {
            wake.wait(Some(socket.as_fd()), Interest::Readable, None)?;
        } else {
            connection.send(&mut batch);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_of_the_network_about_a_datagram_ends_a_link() {
        let words = [
            Errno::ECONNREFUSED,
            Errno::EHOSTUNREACH,
            Errno::ENETUNREACH,
            Errno::EMSGSIZE,
            Errno::EPROTO,
            Errno::ENOPROTOOPT,
            Errno::EHOSTDOWN,
            Errno::ENONET,
            Errno::EOPNOTSUPP,
            Errno::EACCES,
            Errno::ENOBUFS,
            Errno::ENOMEM,
        ];
        assert_eq!(words.into_iter().find(|word| ends_the_socket(*word)), None);
        assert!(ends_the_socket(Errno::EBADF) && ends_the_socket(Errno::ENOTSOCK));
    }
}
