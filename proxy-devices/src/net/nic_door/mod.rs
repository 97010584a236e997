//! A guest's NIC as an interface of the host's kernel: what the kernel sends goes to the NIC, and the other way.

mod translate;

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use tokio::time::sleep;
use vmbus_core::network::ndis::{ChecksumV4, ChecksumV6};
use vmbus_partition::reactor::{self, Watching};
use vmbus_partition::tap::{Tap, TapOffload};
use vmbus_vsc::{Nic, NicError, NicInfo, NicOptions, ReceivedFrame};
use vmbus_vsp::network::switch::{Batch, MAX_FRAME};

use self::translate::{Outgoing, incoming};
use super::tap_port::{Kernel, read_burst};
use super::vnet;

/// How often the interface's MTU is looked at.
const MTU_CHECK: Duration = Duration::from_secs(1);

/// Why a NIC is no interface any more, or never was.
#[derive(Debug, thiserror::Error)]
pub enum NicDoorError {
    /// The NIC's side.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// The kernel's side: the interface was removed, say.
    #[error("the interface {name}: {source}")]
    Interface {
        /// Which.
        name: String,
        /// What the system says.
        source: io::Error,
    },
}

/// A guest's NIC joined with a TAP interface. The interface has the NIC's address and MTU, and its carrier is the NIC's
/// link. Checksums and segmentation are left undone on both ways where the NIC's provider does them. When the
/// interface's MTU is changed, the NIC's is too.
#[derive(Debug)]
pub struct NicDoor {
    nic: Nic,
    tap: Tap,
}

impl NicDoor {
    /// How a NIC for this is best opened: long frames come whole.
    pub fn nic_options() -> NicOptions {
        NicOptions::new().coalescing().receive_bytes(8 << 20).large_frames(32)
    }

    /// Joins a NIC with an interface, and sets that up. Where this is for its owner to do, it is as it is.
    ///
    /// # Errors
    /// [`NicDoorError::Interface`].
    pub fn new(nic: Nic, mut tap: Tap) -> Result<Self, NicDoorError> {
        let info = nic.info();
        let set = tap.set_mac(info.address).and_then(|()| tap.set_offload(offload(&info)));
        set.map_err(|source| failed(&tap, source))?;
        let mtu = u16::try_from(info.mtu).unwrap_or(u16::MAX);
        // Not permitted: then `run` makes the NIC's MTU the interface's.
        let _ = tap.set_mtu(mtu);
        let _ = tap.set_up();
        Ok(Self { nic, tap })
    }

    /// The NIC.
    pub fn nic(&self) -> &Nic {
        &self.nic
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        self.tap.name()
    }

    /// Carries frames until one of the two is gone; says which. Needs a tokio runtime.
    pub async fn run(&self) -> NicDoorError {
        match self.carry().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn carry(&self) -> Result<std::convert::Infallible, NicDoorError> {
        let watching = reactor::readable(self.tap.as_fd()).map_err(|source| failed(&self.tap, source))?;
        let mut known = self.nic.info().mtu;
        loop {
            let mtu = tokio::select! {
                never = self.outward(&watching) => match never? {},
                never = self.inward() => match never? {},
                never = self.follow_link() => match never? {},
                mtu = self.mtu_changed(known) => mtu?,
            };
            // Frames on their way are lost, as when a cable is changed.
            let taken = self.nic.set_mtu(mtu).await?;
            tracing::info!(interface = self.tap.name(), mtu, taken, "the MTU has changed");
            if taken != mtu {
                // More than the provider takes. It may be for others to say so to the interface.
                let _ = self.tap.set_mtu(u16::try_from(taken).unwrap_or(u16::MAX));
            }
            known = self.mtu()?;
        }
    }

    /// From the kernel to the NIC.
    async fn outward(&self, watching: &Watching) -> Result<std::convert::Infallible, NicDoorError> {
        let info = self.nic.info();
        let (mut batch, mut outgoing) = (Batch::new(), Outgoing::new(&info));
        loop {
            let mut ready = watching.readable().await.map_err(|source| failed(&self.tap, source))?;
            let burst = read_burst(&self.tap, &mut batch).map_err(|source| failed(&self.tap, source))?;
            match burst {
                Kernel::HasMore => ready.retain_ready(),
                Kernel::HasNoMore => ready.clear_ready(),
            }
            outgoing.translate(&batch);
            batch.clear();
            self.send(&outgoing).await?;
            // The other way wants its turn, too.
            tokio::task::yield_now().await;
        }
    }

    async fn send(&self, outgoing: &Outgoing) -> Result<(), NicDoorError> {
        let frames = outgoing.frames();
        if frames.is_empty() {
            return Ok(());
        }
        match self.nic.send_batch(&frames).await {
            // The NIC's MTU, or what its provider does, may have changed since we looked.
            Err(NicError::FrameLength { .. } | NicError::NotOffered(_)) => {
                tracing::debug!(interface = self.tap.name(), "a frame that the NIC does not take");
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// From the NIC to the kernel.
    async fn inward(&self) -> Result<std::convert::Infallible, NicDoorError> {
        let (mut frames, mut buffer) = (Vec::<ReceivedFrame>::new(), vec![0; MAX_FRAME]);
        loop {
            self.nic.recv(&mut frames).await?;
            for frame in frames.drain(..) {
                // One of a root that is gone has changed since it came: `None`.
                if let Some((frame, offload)) = incoming(&frame, &mut buffer) {
                    // What the kernel has no room for, or makes no sense of, is lost as on a wire.
                    let _ = self.tap.write(&vnet::emit(frame, offload), frame);
                }
            }
            tokio::task::yield_now().await;
        }
    }

    async fn follow_link(&self) -> Result<std::convert::Infallible, NicDoorError> {
        let mut link = self.nic.link();
        loop {
            // A kernel that cannot do this has the carrier always.
            let _ = self.tap.set_carrier(link.up);
            link = self.nic.link_changed(link).await?;
        }
    }

    /// Returns when the interface has another MTU than it had.
    async fn mtu_changed(&self, known: u32) -> Result<u32, NicDoorError> {
        loop {
            match self.mtu()? {
                mtu if mtu != known => return Ok(mtu),
                _ => sleep(MTU_CHECK).await,
            }
        }
    }

    fn mtu(&self) -> Result<u32, NicDoorError> {
        let mtu = self.tap.mtu().map_err(|source| failed(&self.tap, source))?;
        Ok(u32::try_from(mtu).unwrap_or(u32::MAX))
    }
}

/// What the kernel may leave undone: all of it or nothing.
fn offload(info: &NicInfo) -> TapOffload {
    let offloads = &info.offloads;
    let checksums = offloads.transmit_v4.contains(ChecksumV4::TCP | ChecksumV4::UDP)
        && offloads.transmit_v6.contains(ChecksumV6::TCP | ChecksumV6::UDP);
    if checksums && offloads.large_send_v4 > 0 && offloads.large_send_v6 > 0 {
        TapOffload::ChecksumAndTcp
    } else {
        TapOffload::Nothing
    }
}

fn failed(tap: &Tap, source: io::Error) -> NicDoorError {
    NicDoorError::Interface { name: tap.name().to_owned(), source }
}
