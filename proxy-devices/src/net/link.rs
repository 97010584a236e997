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
        let wake = Arc::new(Wake::new()?);
        let thread = thread::Builder::new().name("switch link".into()).spawn({
            let (socket, wake) = (Arc::clone(&socket), Arc::clone(&wake));
            move || {
                if let Err(error) = carry(&socket, &connection, &wake) {
                    tracing::warn!(%error, "the link to another switch has ended");
                }
            }
        })?;
        Ok(Self { socket, wake, thread: Some(thread) })
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

fn carry(socket: &Socket, connection: &Connection, wake: &Wake) -> io::Result<()> {
    let mut batch = Batch::new();
    while !wake.is_stopped() {
        let mut empty = false;
        while batch.len() < BURST && !empty {
            let Ok(mut slot) = batch.slot(MAX_FRAME) else { break };
            match socket.receive(slot.bytes_mut()) {
                Ok(len) => slot.commit(len, Offload::NONE),
                Err(Errno::EAGAIN) => empty = true,
                // The other end is not there, or not yet: the network says so here.
                Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {}
                Err(error) => return Err(error.into()),
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
