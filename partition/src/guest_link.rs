//! A guest's end of its attachment, over a socket or in this process.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use vmbus_core::memory::SharedMemory;
use vmbus_core::synic::ChannelConnection;

use crate::allocator::{AllocError, PageAllocator, SharedPages};
use crate::control_link::{ControlLink, Incoming, lock};
use crate::event::{GuestEvent, RootEvent};
use crate::frame::MemoryRange;
use crate::gift::SealedGift;
use crate::gpa::{DEFAULT_RING_MAPS, GpaSpace, Region};
use crate::link::{
    FromRoot, GuestEnd, GuestInfo, LinkError, MAX_ROOT_REGIONS, MessageBytes, ROOT_MEMORY,
    ROOT_MEMORY_DOMAIN, Watched,
};
use crate::memory::Memfd;
use crate::root_link::CHANNEL_MESSAGE;

/// Where a guest's first memory is: not at 0, so that page number 0 is always a mistake.
pub(crate) const FIRST_GPA: u64 = 0x10_0000;

/// What a guest wants when it attaches.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Its name, 1 to 64 bytes.
    pub name: String,
    /// Bytes of memory shared with the root from the start, and of each further sharing domain.
    pub memory: u64,
    /// Event areas of its own, 1 to 64: 0 is shared, each other can be one channel's alone.
    pub vps: u16,
    /// Event areas that it would like the root's workers to have, 1 to 64.
    pub workers: u16,
    /// Seconds that the root has to answer.
    pub patience: u64,
}

impl GuestOptions {
    /// 64 MiB, three event areas each way, ten seconds.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), memory: 64 << 20, vps: 3, workers: 3, patience: 10 }
    }
}

/// The guest's end of a control area.
#[derive(Debug)]
pub struct ControlGuest {
    link: ControlLink<RootEvent, GuestEvent>,
    info: GuestInfo,
    memory: KeptMemory,
    /// Which of the attachments with this memory it is: memory comes and goes by the last alone.
    attachment: u32,
    peer: Option<Arc<OwnedFd>>,
    domain_size: u64,
}

/// A guest's memory, which may live longer than one attachment.
pub(crate) type KeptMemory = Arc<Mutex<GuestMemory>>;

/// The memory a guest has made, by sharing domain.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    space: Arc<GpaSpace>,
    domains: BTreeMap<u32, PageAllocator>,
    next_gpa: u64,
    /// Attachments so far.
    attachments: u32,
}

impl GuestMemory {
    /// The memory of domain 0, and its file to hand to the root.
    pub(crate) fn new(size: u64) -> Result<(Self, Memfd), LinkError> {
        let file = Memfd::new("vmbus-shared", size)?;
        let mapping = file.map_all()?;
        let region = Region { gpa: FIRST_GPA, domain: 0, mapping: mapping.clone() };
        let space = Arc::new(GpaSpace::new(vec![region], DEFAULT_RING_MAPS)?);
        let domains = BTreeMap::from([(0, PageAllocator::new(FIRST_GPA, 0, mapping))]);
        Ok((Self { space, domains, next_gpa: FIRST_GPA + file.size(), attachments: 0 }, file))
    }

    /// Forgets what was the last root's own.
    pub(crate) fn forget_root(&mut self) -> Result<(), LinkError> {
        let of_root = |region: &&Region| region.domain == ROOT_MEMORY_DOMAIN;
        let gone: Vec<(u64, u64)> =
            self.space.regions().iter().filter(of_root).map(|region| (region.gpa, region.size())).collect();
        for (gpa, size) in gone {
            self.space = Arc::new(self.space.without(gpa, size)?);
        }
        Ok(())
    }

    /// The memory of domain 0, as HELLO describes it, and that of the other domains.
    pub(crate) fn regions(&self) -> (Vec<&Region>, Vec<&Region>) {
        let own = |region: &&Region| self.domains.contains_key(&region.domain);
        self.space.regions().iter().filter(own).partition(|region| region.domain == 0)
    }
}

impl ControlGuest {
    pub(crate) fn new(
        link: ControlLink<RootEvent, GuestEvent>,
        info: GuestInfo,
        memory: KeptMemory,
        peer: Option<Arc<OwnedFd>>,
        domain_size: u64,
    ) -> Result<Self, LinkError> {
        let mut kept = lock(&memory);
        kept.forget_root()?;
        for region in kept.regions().1 {
            link.send_event(GuestEvent::MemoryAdd {
                range: MemoryRange {
                    gpa: region.gpa,
                    size: region.mapping.size() as u64,
                    fd_offset: region.mapping.file_offset(),
                },
                domain: region.domain,
                file: region.mapping.file().clone(),
            })?;
        }
        kept.attachments += 1;
        let attachment = kept.attachments;
        drop(kept);
        Ok(Self { link, info, memory, attachment, peer, domain_size })
    }

    /// Takes memory of the root's own into the address space.
    fn memory_of_root(&self, range: MemoryRange, domain: u32, file: &Memfd) -> Result<FromRoot, LinkError> {
        let mut memory = lock(&self.memory);
        self.check_attached(&memory)?;
        let regions = memory.space.regions();
        let of_root = regions.iter().filter(|region| region.domain == ROOT_MEMORY_DOMAIN).count();
        if range.gpa < ROOT_MEMORY || domain != ROOT_MEMORY_DOMAIN || of_root >= MAX_ROOT_REGIONS {
            return Err(LinkError::Protocol("added memory where it has none"));
        }
        let mapping = file.map(range.fd_offset, range.size)?;
        let space = memory.space.with(Region { gpa: range.gpa, domain, mapping })?;
        memory.space = Arc::new(space);
        Ok(FromRoot::MemoryChanged)
    }

    /// This guest's memory, for an attachment that takes this one's place.
    pub(crate) fn kept_memory(&self) -> &KeptMemory {
        &self.memory
    }

    pub(crate) fn domain_size(&self) -> u64 {
        self.domain_size
    }

    /// Memory is added and removed by the last attachment alone: others would tell a root that is gone.
    fn check_attached(&self, memory: &GuestMemory) -> Result<(), LinkError> {
        if self.attachment == memory.attachments { Ok(()) } else { Err(LinkError::Gone) }
    }

    /// The allocator of a domain; a new domain gets a file of its own, of which the root hears before any message that
    /// could speak of it.
    fn allocator(&self, memory: &mut GuestMemory, domain: u32) -> Result<PageAllocator, AllocError> {
        if let Some(allocator) = memory.domains.get(&domain) {
            return Ok(allocator.clone());
        }
        self.check_attached(memory)?;
        let file = Memfd::new("vmbus-domain", self.domain_size)?;
        let mapping = file.map_all()?;
        let gpa = memory.next_gpa;
        let region = Region { gpa, domain, mapping: mapping.clone() };
        let space = memory.space.with(region).map_err(LinkError::from)?;
        let range = MemoryRange { gpa, size: file.size(), fd_offset: 0 };
        self.link.send_event(GuestEvent::MemoryAdd { range, domain, file })?;
        memory.space = Arc::new(space);
        memory.next_gpa = gpa + range.size;
        let allocator = PageAllocator::new(gpa, domain, mapping);
        memory.domains.insert(domain, allocator.clone());
        Ok(allocator)
    }

    /// Gives up the memory of a sharing domain, which the root forgets as well. A descriptor that others hold stays
    /// theirs.
    ///
    /// # Errors
    /// [`AllocError::InUse`]: pages of it are allocated, or it is domain 0; [`AllocError::Link`].
    pub fn release_domain(&self, domain: u32) -> Result<(), AllocError> {
        let mut memory = lock(&self.memory);
        let in_use = AllocError::InUse { domain };
        if domain == 0 || !memory.domains.get(&domain).is_some_and(PageAllocator::is_unused) {
            return Err(in_use);
        }
        let Some(region) = memory.space.regions().iter().find(|region| region.domain == domain) else {
            return Err(in_use);
        };
        self.check_attached(&memory)?;
        let range = MemoryRange { gpa: region.gpa, size: region.mapping.file().size(), fd_offset: 0 };
        let space = memory.space.without(range.gpa, range.size).map_err(LinkError::from)?;
        self.link.send_event(GuestEvent::MemoryRemove { range })?;
        memory.space = Arc::new(space);
        memory.domains.remove(&domain);
        Ok(())
    }

    /// Tells the root that this guest starts anew: its channels are closed, its queues empty.
    ///
    /// # Errors
    /// [`LinkError::Backlog`].
    pub fn reset(&self) -> Result<(), LinkError> {
        self.link.send_event(GuestEvent::Reset)
    }

    /// Tells the root that this guest has crashed, as a virtual machine does.
    ///
    /// # Errors
    /// [`LinkError::Backlog`].
    pub fn crash(&self, parameters: [u64; 5], control: u64) -> Result<(), LinkError> {
        self.link.send_event(GuestEvent::Crash { vp: 0, parameters, control })
    }
}

impl GuestEnd for ControlGuest {
    fn info(&self) -> &GuestInfo {
        &self.info
    }

    fn memory(&self) -> Arc<GpaSpace> {
        Arc::clone(&lock(&self.memory).space)
    }

    fn allocate(&self, domain: u32, len: usize) -> Result<SharedPages, AllocError> {
        // Under the lock, so that the domain is not given up in between.
        let mut memory = lock(&self.memory);
        self.allocator(&mut memory, domain)?.allocate(len)
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

    fn receive(&self) -> Result<Option<FromRoot>, LinkError> {
        match self.link.receive()? {
            None => Ok(None),
            Some(Incoming::HungUp) => Ok(Some(FromRoot::HungUp)),
            Some(Incoming::Event(event)) => Ok(Some(match event {
                RootEvent::ConnectionStatus { connection_id, status } => {
                    FromRoot::ConnectionStatus { connection_id, status }
                }
                RootEvent::Refused(refusal) => FromRoot::Refused(refusal),
                RootEvent::SystemReset => FromRoot::SystemReset,
                RootEvent::SystemQuit => FromRoot::SystemQuit,
                RootEvent::Give { id, gift } => FromRoot::Given { id, gift },
                RootEvent::MemoryAdd { range, domain, file } => self.memory_of_root(range, domain, &file)?,
            })),
            Some(Incoming::Message(slot)) => {
                let payload = slot.data.get(..slot.size.get().into()).and_then(MessageBytes::new);
                Ok(Some(FromRoot::Message {
                    vp: slot.vp.get().into(),
                    sint: u8::try_from(slot.target.get())
                        .map_err(|_| LinkError::Protocol("named no SINT"))?,
                    message_type: slot.message_type.get(),
                    payload: payload.ok_or(LinkError::Protocol("sent an oversized message"))?,
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

    fn post(&self, connection_id: u32, payload: &[u8]) -> Result<(), LinkError> {
        self.link.send(connection_id, 0, CHANNEL_MESSAGE, payload)
    }

    fn give(&self, id: u32, gift: SealedGift) -> Result<(), LinkError> {
        if !self.info.takes_gifts {
            return Err(LinkError::NoGifts);
        }
        self.link.send_event(GuestEvent::Give { id, gift })
    }

    #[inline]
    fn signal(&self, connection_id: u32) {
        match ChannelConnection::of(connection_id) {
            Some(channel) if channel.worker < self.info.workers => {
                self.link.signal(channel.worker, channel.flag());
            }
            Some(_) | None => {
                // A link that is finished says so when it is read.
                let _ = self.link.send_event(GuestEvent::Signal { connection_id, flag: 0 });
            }
        }
    }

    fn vp_bell(&self, vp: u32) -> Option<BorrowedFd<'_>> {
        self.link.bell(vp)
    }

    fn clear_bell(&self, vp: u32) {
        self.link.clear_bell(vp);
    }

    fn take_flags(&self, vp: u32, each: &mut dyn FnMut(u16)) {
        self.link.take_flags(vp, each);
    }

    fn arm(&self, vp: u32) -> bool {
        self.link.arm(vp)
    }

    fn disarm(&self, vp: u32) {
        self.link.disarm(vp);
    }
}
