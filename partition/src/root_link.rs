//! The root's end of a partition that speaks the extensions, over a socket or in this process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use crate::control_link::{ControlLink, Incoming, lock};
use crate::event::{GuestEvent, RootEvent};
use crate::frame::{MAX_REGIONS, MemoryRange};
use crate::gift::SealedGift;
use crate::gpa::{GpaError, GpaSpace, Region};
use crate::link::{
    FromGuest, LinkError, MessageBytes, PartitionInfo, ROOT_MEMORY, ROOT_MEMORY_DOMAIN, Refusal, RootEnd,
    Watched,
};
use crate::memory::Memfd;

/// The root's end of an extended partition.
#[derive(Debug)]
pub struct ControlRoot {
    link: ControlLink<GuestEvent, RootEvent>,
    info: PartitionInfo,
    memory: Mutex<Arc<GpaSpace>>,
    peer: Option<Arc<OwnedFd>>,
}

impl ControlRoot {
    pub(crate) fn new(
        link: ControlLink<GuestEvent, RootEvent>,
        info: PartitionInfo,
        memory: Arc<GpaSpace>,
        peer: Option<Arc<OwnedFd>>,
    ) -> Self {
        Self { link, info, memory: Mutex::new(memory), peer }
    }

    fn heard(&self, event: GuestEvent) -> Result<FromGuest, LinkError> {
        match event {
            GuestEvent::MemoryAdd { range, domain, file } => {
                let mut memory = lock(&self.memory);
                if memory.regions().len() >= MAX_REGIONS {
                    return Err(LinkError::Protocol("has more than 64 regions of memory"));
                }
                let mapping = file.map(range.fd_offset, range.size)?;
                *memory = Arc::new(memory.with(Region { gpa: range.gpa, domain, mapping })?);
                Ok(FromGuest::MemoryChanged)
            }
            GuestEvent::MemoryRemove { range } => {
                let mut memory = lock(&self.memory);
                *memory = Arc::new(memory.without(range.gpa, range.size)?);
                Ok(FromGuest::MemoryChanged)
            }
            GuestEvent::Signal { connection_id, flag } => Ok(FromGuest::Signal { connection_id, flag }),
            GuestEvent::Give { id, gift } => Ok(FromGuest::Given { id, gift }),
            GuestEvent::Reset => Ok(FromGuest::Reset),
            GuestEvent::Crash { vp, parameters, control } => Ok(FromGuest::Crash { vp, parameters, control }),
        }
    }
}

impl RootEnd for ControlRoot {
    fn info(&self) -> &PartitionInfo {
        &self.info
    }

    fn memory(&self) -> Arc<GpaSpace> {
        Arc::clone(&lock(&self.memory))
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.link.socket()
    }

    fn watch(&self, what: Watched) -> io::Result<Option<Arc<OwnedFd>>> {
        Ok(self.link.shared(what, self.peer.as_ref()))
    }

    fn peer_process(&self) -> Option<BorrowedFd<'_>> {
        self.peer.as_deref().map(AsFd::as_fd)
    }

    fn hang_up(&self) {
        self.link.hang_up();
    }

    fn receive(&self) -> Result<Option<FromGuest>, LinkError> {
        match self.link.receive()? {
            None => Ok(None),
            Some(Incoming::HungUp) => Ok(Some(FromGuest::HungUp)),
            Some(Incoming::Event(event)) => self.heard(event).map(Some),
            Some(Incoming::Message(slot)) => {
                let payload = slot.data.get(..slot.size.get().into()).and_then(MessageBytes::new);
                Ok(Some(FromGuest::Message {
                    vp: slot.vp.get().into(),
                    connection_id: slot.target.get(),
                    message_type: slot.message_type.get(),
                    payload: payload.ok_or(LinkError::Protocol("posted an oversized message"))?,
                }))
            }
        }
    }

    fn flush(&self) -> Result<bool, LinkError> {
        self.link.flush()
    }

    fn wants_write(&self) -> bool {
        self.link.wants_write()
    }

    fn deliver(&self, vp: u32, sint: u8, payload: &[u8]) -> Result<(), LinkError> {
        self.link.send(sint.into(), vp, CHANNEL_MESSAGE, payload)
    }

    fn queued(&self) -> usize {
        self.link.queued()
    }

    #[inline]
    fn signal(&self, vp: u32, flag: u16) {
        self.link.signal(vp, flag);
    }

    fn worker_bell(&self, worker: u32) -> Option<BorrowedFd<'_>> {
        self.link.bell(worker)
    }

    fn clear_bell(&self, worker: u32) {
        self.link.clear_bell(worker);
    }

    fn take_flags(&self, worker: u32, each: &mut dyn FnMut(u16)) {
        self.link.take_flags(worker, each);
    }

    fn arm(&self, worker: u32) -> bool {
        self.link.arm(worker)
    }

    fn disarm(&self, worker: u32) {
        self.link.disarm(worker);
    }

    fn memory_written(&self, _ranges: &[(u64, u64)]) -> Option<u32> {
        None
    }

    fn set_connection_status(&self, connection_id: u32, status: u32) -> Result<(), LinkError> {
        self.link.send_event(RootEvent::ConnectionStatus { connection_id, status })
    }

    fn add_memory(&self, gpa: u64, file: &Memfd) -> Result<(), LinkError> {
        if !self.info.takes_gifts {
            return Err(LinkError::NoGifts);
        }
        if gpa < ROOT_MEMORY {
            return Err(LinkError::Gpa(GpaError::NoSuchRegion { gpa, size: file.size() }));
        }
        let region = Region { gpa, domain: ROOT_MEMORY_DOMAIN, mapping: file.map_all()? };
        let mut memory = lock(&self.memory);
        let space = memory.with(region)?;
        let range = MemoryRange { gpa, size: file.size(), fd_offset: 0 };
        self.link.send_event(RootEvent::MemoryAdd {
            range,
            domain: ROOT_MEMORY_DOMAIN,
            file: file.clone(),
        })?;
        *memory = Arc::new(space);
        Ok(())
    }

    fn give(&self, id: u32, gift: SealedGift) -> Result<(), LinkError> {
        if !self.info.takes_gifts {
            return Err(LinkError::NoGifts);
        }
        self.link.send_event(RootEvent::Give { id, gift })
    }

    fn refuse(&self, refusal: &Refusal) -> Result<(), LinkError> {
        self.link.send_event(RootEvent::Refused(refusal.clone()))
    }

    fn system_reset(&self) -> Result<(), LinkError> {
        self.link.send_event(RootEvent::SystemReset)
    }

    fn system_quit(&self) -> Result<(), LinkError> {
        self.link.send_event(RootEvent::SystemQuit)
    }
}

/// The message type of all that the bus says.
pub(crate) const CHANNEL_MESSAGE: u32 = 1;
