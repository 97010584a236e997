//! A TAP interface at a port of a switch.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::libc;
use vmbus_partition::tap::{HEADER, Tap, TapOffload};
use vmbus_vsp::network::switch::{
    Batch, Capabilities, Connection, Delivered, Frames, MAX_FRAME, Port, PortSettings, Switch,
};

use super::wake::{Interest, Wake};
use super::{PortError, vnet};

/// Frames that are taken from the kernel at a time: it may have more, but others want their turn.
const BURST: usize = 64;

/// A TAP interface that is a port of a switch: what the host's kernel sends there enters the switch. Checksums and
/// segmentation are left to whoever can do them, the kernel's and the guests' alike. Dropping it disconnects the port.
#[derive(Debug)]
pub struct TapPort {
    name: String,
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl TapPort {
    /// Connects an interface to a switch.
    ///
    /// # Errors
    /// [`PortError::Connect`] if the switch does not want it, [`PortError::System`] for want of threads or descriptors.
    pub fn connect(switch: &Switch, mut tap: Tap, settings: PortSettings) -> Result<Self, PortError> {
        // A kernel that cannot do this finishes its frames itself.
        let _ = tap.set_offload(TapOffload::ChecksumAndTcp);
        let name = tap.name().to_owned();
        let tap = Arc::new(tap);
        let connection = switch.connect(Cable(Arc::clone(&tap)), settings)?;
        let wake = Arc::new(Wake::new()?);
        let thread = thread::Builder::new().name(format!("tap {name}")).spawn({
            let wake = Arc::clone(&wake);
            move || match carry(&tap, &connection, &wake) {
                Ok(()) => {}
                Err(error) => tracing::warn!(tap = tap.name(), %error, "the interface is gone"),
            }
        })?;
        Ok(Self { name, wake, thread: Some(thread) })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for TapPort {
    fn drop(&mut self) {
        self.wake.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// From the kernel into the switch, until the interface or the port is gone.
fn carry(tap: &Tap, connection: &Connection, wake: &Wake) -> io::Result<()> {
    let mut batch = Batch::new();
    while !wake.is_stopped() {
        read_burst(tap, &mut batch)?;
        if batch.is_empty() {
            wake.wait(Some(tap.as_fd()), Interest::Readable, None)?;
        } else {
            connection.send(&mut batch);
        }
    }
    Ok(())
}

/// Whether there may be more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    HasMore,
    HasNoMore,
}

/// Reads what the kernel has, up to a bound.
pub(super) fn read_burst(tap: &Tap, batch: &mut Batch) -> io::Result<Kernel> {
    let mut header = [0; HEADER];
    while batch.len() < BURST {
        let Ok(mut slot) = batch.slot(MAX_FRAME) else { break };
        let Some(len) = tap.read(&mut header, slot.bytes_mut())? else { return Ok(Kernel::HasNoMore) };
        // A header that we did not agree to cannot come; its frame would be wrong without it.
        if let Some(offload) = vnet::parse(&header) {
            slot.commit(len, offload);
        }
    }
    Ok(Kernel::HasMore)
}

/// The switch's end.
struct Cable(Arc<Tap>);

impl Port for Cable {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        write_all(&self.0, frames)
    }

    fn capabilities(&self) -> Capabilities {
        // The kernel takes these from whoever writes, whatever it may leave to who reads.
        Capabilities::CHECKSUM | Capabilities::SEGMENTATION_V4 | Capabilities::SEGMENTATION_V6
    }
}

/// Gives the kernel frames.
pub(super) fn write_all(tap: &Tap, frames: Frames<'_>) -> Delivered {
    let mut delivered = Delivered::default();
    for frame in frames {
        match tap.write(&vnet::emit(frame.bytes, frame.offload), frame.bytes) {
            Ok(()) => {
                delivered.frames += 1;
                delivered.bytes += frame.bytes.len();
            }
            // No room, which is what all count for that are not counted here.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Not up, or removed.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EBADFD)) => {
                delivered.link_down += 1;
            }
            // What it makes no sense of.
            Err(_) => delivered.filtered += 1,
        }
    }
    delivered
}
