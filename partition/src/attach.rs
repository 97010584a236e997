//! The attachment of a partition over a socket: introduction, memory, extensions (`docs/src/protocol/attach.md`,
//! "Attaching").

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use vmbus_core::memory::SharedMemory;

use crate::base::BaseRoot;
use crate::control_area::{ControlArea, End};
use crate::control_link::{ControlLink, WireIn, WireOut, lock};
use crate::doorbell::{Bell, BellKind, BellReceiver};
use crate::frame::{GuestFrame, Hello, MAX_NAME, MemoryRange, RefusedWhat, RootFrame};
use crate::gpa::{GpaSpace, Region};
use crate::guest_link::{ControlGuest, GuestMemory, GuestOptions, KeptMemory};
use crate::link::{Credentials, GuestInfo, LinkError, PartitionInfo, RootEnd};
use crate::listener;
use crate::local::bells;
use crate::memory::Memfd;
use crate::raw;
use crate::root_link::ControlRoot;
use crate::stream::{FrameReader, FrameWriter, Read};

/// Signals and messages go through a control area.
pub const FEATURE_CONTROL_AREA: u64 = 1;
/// Memory may be added and removed, and belongs to sharing domains.
pub const FEATURE_MEMORY_DOMAINS: u64 = 2;
/// Nobody needs to be told which memory was written.
pub const FEATURE_NO_MEM_DIRTY: u64 = 4;
/// Memory may be given away.
pub const FEATURE_GIFTS: u64 = 8;
/// The version of the extensions.
const EXT_VERSION: u32 = 1;
/// What this root grants, and what our guests want.
const GRANTED: u64 = FEATURE_CONTROL_AREA | FEATURE_MEMORY_DOMAINS | FEATURE_NO_MEM_DIRTY | FEATURE_GIFTS;
/// Without these there is no extended link.
const NEEDED: u64 = FEATURE_CONTROL_AREA;

/// What a root lets an attaching partition have.
#[derive(Clone, Copy, Debug)]
pub struct AttachLimits {
    /// Virtual processors of a base VMM.
    pub vps: u32,
    /// Event areas of the root's workers; each takes a descriptor.
    pub workers: u16,
    /// Event areas of the partition's own; each takes a descriptor of the root.
    pub areas: u16,
    /// Messages to a partition that wait beyond those in its ring.
    pub messages: usize,
    /// Bytes of memory in HELLO.
    pub memory: u64,
    /// Kernel mappings that its rings may take.
    pub ring_maps: usize,
    /// What the guest's bells are made of. A hostile guest can make whoever rings an eventfd wait: only for guests that
    /// are trusted not to.
    pub bells: BellKind,
    /// Posts of a base VMM that may wait unread before it is told to slow down.
    pub posts: u32,
}

impl Default for AttachLimits {
    /// 256 processors, three workers, 16 event areas, 4096 messages, 1 TiB, bells that nobody can block, and what the parts say themselves.
    fn default() -> Self {
        Self {
            vps: 256,
            workers: 3,
            areas: 16,
            messages: crate::control_link::DEFAULT_BACKLOG,
            memory: 1 << 40,
            ring_maps: crate::gpa::DEFAULT_RING_MAPS,
            bells: BellKind::Pipe,
            posts: 1024,
        }
    }
}

/// A connection that has not said yet who it is: the root's side.
///
/// Call [`Attaching::advance`] whenever the socket is readable. A partition that speaks the extensions says so right
/// after HELLO; one whose second frame is another is a base VMM. Drop it to refuse, or [`Attaching::refuse`].
#[derive(Debug)]
pub struct Attaching {
    socket: Arc<OwnedFd>,
    credentials: Option<Credentials>,
    /// Gone once the partition is attached or refused.
    conversation: Option<Conversation>,
}

#[derive(Debug)]
struct Conversation {
    reader: FrameReader,
    writer: FrameWriter,
    limits: AttachLimits,
    credentials: Option<Credentials>,
    peer: Option<Arc<OwnedFd>>,
    default_name: String,
    id: u32,
    hello: Option<(Hello, Arc<GpaSpace>)>,
}

impl Attaching {
    /// Takes over a connection, accepted or made. `default_name` is for a base VMM, which has none of its own; `id` is
    /// the root's number for the partition.
    ///
    /// # Errors
    /// The system's.
    pub fn new(
        socket: UnixStream,
        default_name: impl Into<String>,
        id: u32,
        limits: AttachLimits,
    ) -> Result<Self, LinkError> {
        socket.set_nonblocking(true).map_err(LinkError::system("preparing a connection"))?;
        let (credentials, peer) = identify(&socket);
        let socket = Arc::new(OwnedFd::from(socket));
        let conversation = Conversation {
            reader: FrameReader::new(Arc::clone(&socket)),
            writer: FrameWriter::new(Arc::clone(&socket)),
            limits,
            credentials,
            peer,
            default_name: default_name.into(),
            id,
            hello: None,
        };
        Ok(Self { socket, credentials, conversation: Some(conversation) })
    }

    /// Readable when [`Attaching::advance`] may get further.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Who connected, as the kernel vouches for it.
    pub fn credentials(&self) -> Option<Credentials> {
        self.credentials
    }

    /// Reads on. `Some`: the partition is attached; `None`: more must come. Never waits.
    ///
    /// # Errors
    /// The partition is refused; where it can show a reason, it was sent. [`LinkError::Gone`]: it left, or this was
    /// called again after the end.
    pub fn advance(&mut self) -> Result<Option<Arc<dyn RootEnd>>, LinkError> {
        let mut conversation = self.conversation.take().ok_or(LinkError::Gone)?;
        let decision = match conversation.step() {
            Ok(None) => {
                self.conversation = Some(conversation);
                return Ok(None);
            }
            Ok(Some(Decision::Base { early })) => return Ok(Some(Arc::new(conversation.into_base(early)?))),
            Ok(Some(Decision::Extended(offer))) => conversation.accept(offer),
            Err(error) => Err(error),
        };
        match decision {
            Ok(parts) => Ok(Some(Arc::new(conversation.into_extended(parts)?))),
            Err(error) => {
                conversation.refuse(&error.to_string());
                Err(error)
            }
        }
    }

    /// Sends the reason, as far as the socket takes it, and hangs up.
    pub fn refuse(self, reason: &str) {
        if let Some(conversation) = self.conversation {
            conversation.refuse(reason);
        }
    }
}

impl Conversation {
    fn refuse(mut self, reason: &str) {
        let mut bytes = Vec::new();
        RootFrame::Refused { what: RefusedWhat::Attach, code: 0, reason }.emit(&mut bytes);
        let _ = self.writer.push(bytes, Vec::new(), None);
        let _ = self.writer.flush(|_| ());
    }

    fn step(&mut self) -> Result<Option<Decision>, LinkError> {
        if self.hello.is_none() {
            let limits = self.limits;
            let hello = self.reader.next(|frame, claim| match GuestFrame::parse(frame)? {
                GuestFrame::Hello(hello) => {
                    let file = claim().into_iter().next();
                    let space = memory_of(&hello, file, &limits)?;
                    Ok((hello, Arc::new(space)))
                }
                _ => Err(LinkError::Protocol("did not begin with HELLO")),
            })?;
            match hello {
                Read::Frame(hello) => self.hello = Some(hello?),
                Read::Nothing => return Ok(None),
                Read::Gone => return Err(LinkError::Gone),
            }
        }
        let second = self.reader.next(|frame, claim| match GuestFrame::parse(frame)? {
            GuestFrame::ExtOffer { features, version, name } => {
                let offer = Offer { features, version, name: name.to_owned(), descriptors: claim() };
                Ok(Decision::Extended(offer))
            }
            GuestFrame::Hello(_) => Err(LinkError::Protocol("introduced itself twice")),
            GuestFrame::PostMessage { .. }
            | GuestFrame::SignalEvent { .. }
            | GuestFrame::MsrWrite { .. }
            | GuestFrame::Reset
            | GuestFrame::Crash { .. }
            | GuestFrame::Pong { .. }
            | GuestFrame::MemoryAdd { .. }
            | GuestFrame::MemoryRemove { .. }
            | GuestFrame::Give(_)
            | GuestFrame::Ignored => Ok(Decision::Base { early: frame.to_vec() }),
        })?;
        match second {
            Read::Frame(decision) => decision.map(Some),
            Read::Nothing => Ok(None),
            Read::Gone => Err(LinkError::Gone),
        }
    }

    /// Checks an offer, takes its descriptors and sends the answer.
    fn accept(&mut self, offer: Offer) -> Result<Accepted, LinkError> {
        let Offer { features, version, name, descriptors } = offer;
        if version == 0 || features & NEEDED != NEEDED {
            return Err(LinkError::Protocol("offers no control area"));
        }
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(LinkError::Protocol("gave a name that is empty, too long or unprintable"));
        }
        let mut descriptors = descriptors.into_iter();
        let file = descriptors.next().ok_or(LinkError::Protocol("passed no control area"))?;
        let area = ControlArea::from_peer(Memfd::from_peer(file)?)?;
        if area.vps() > self.limits.areas {
            return Err(LinkError::Protocol("has more event areas than it may"));
        }
        // One bell per worker that the guest offers; of those the root uses what it grants.
        let offered = area.workers();
        if descriptors.len() < usize::from(offered) {
            return Err(LinkError::Protocol("passed fewer bells than it has areas for workers"));
        }
        let workers = offered.min(self.limits.workers).max(1);
        let mut own_bells = Vec::new();
        for descriptor in descriptors.take(usize::from(workers)) {
            let bell = BellReceiver::from_peer(descriptor, BellKind::Event);
            own_bells.push(bell.map_err(LinkError::system("taking over a bell"))?);
        }
        let (bells, theirs) = bells(self.limits.bells, area.vps())?;
        let theirs = descriptors_of(theirs)?;
        let mut bytes = Vec::new();
        let accept = RootFrame::ExtAccept {
            features: features & GRANTED,
            partition: self.id,
            workers,
            vps: area.vps(),
        };
        accept.emit(&mut bytes);
        self.writer.push(bytes, theirs, None)?;
        self.writer.flush(|_| ())?;
        self.writer.restart_count();
        self.reader.restart_count();
        let takes_gifts = features & FEATURE_GIFTS != 0;
        Ok(Accepted { name, takes_gifts, area, workers, bells, own_bells })
    }

    fn into_extended(self, accepted: Accepted) -> Result<ControlRoot, LinkError> {
        let Accepted { name, takes_gifts, area, workers, bells, own_bells } = accepted;
        let (_, memory) = self.hello.ok_or(LinkError::Protocol("did not begin with HELLO"))?;
        let info = PartitionInfo {
            name,
            id: self.id,
            vps: area.vps().into(),
            workers: workers.into(),
            extended: true,
            takes_gifts,
            credentials: self.credentials,
        };
        let wires = (WireIn::Socket(self.reader), WireOut::Socket(self.writer));
        let link =
            ControlLink::new(End::Root, area, bells, own_bells, wires).with_backlog(self.limits.messages);
        Ok(ControlRoot::new(link, info, memory, self.peer))
    }

    fn into_base(self, early: Vec<u8>) -> Result<BaseRoot, LinkError> {
        let (hello, memory) = self.hello.ok_or(LinkError::Protocol("did not begin with HELLO"))?;
        let info = PartitionInfo {
            name: self.default_name,
            id: self.id,
            vps: hello.num_vps,
            workers: 1,
            extended: false,
            takes_gifts: false,
            credentials: self.credentials,
        };
        Ok(BaseRoot::new(info, memory, (self.reader, self.writer), self.peer, early, self.limits.posts))
    }
}

enum Decision {
    /// The frame that decided is a base frame: it still has to be heard.
    Base {
        early: Vec<u8>,
    },
    Extended(Offer),
}

struct Offer {
    features: u64,
    version: u32,
    name: String,
    descriptors: Vec<OwnedFd>,
}

struct Accepted {
    name: String,
    takes_gifts: bool,
    area: ControlArea,
    workers: u16,
    bells: Vec<Bell>,
    own_bells: Vec<BellReceiver>,
}

/// Checks what HELLO says of the memory and maps it.
fn memory_of(hello: &Hello, file: Option<OwnedFd>, limits: &AttachLimits) -> Result<GpaSpace, LinkError> {
    if hello.num_vps == 0 || hello.num_vps > limits.vps {
        return Err(LinkError::Protocol("has no virtual processor, or too many"));
    }
    let total = hello.regions.iter().try_fold(0u64, |sum, region| sum.checked_add(region.size));
    if total.is_none_or(|total| total > limits.memory) {
        return Err(LinkError::Protocol("has more memory than it may"));
    }
    let file = Memfd::from_peer(file.ok_or(LinkError::Protocol("passed no memory"))?)?;
    let mut regions = Vec::with_capacity(hello.regions.len());
    for &MemoryRange { gpa, size, fd_offset } in &hello.regions {
        regions.push(Region { gpa, domain: 0, mapping: file.map(fd_offset, size)? });
    }
    Ok(GpaSpace::new(regions, limits.ring_maps)?)
}

/// Who is at the other end, and a descriptor that becomes readable when that process ends.
fn identify(socket: &UnixStream) -> (Option<Credentials>, Option<Arc<OwnedFd>>) {
    let Ok(peer) = getsockopt(socket, PeerCredentials) else { return (None, None) };
    let credentials = Credentials { pid: peer.pid(), uid: peer.uid(), gid: peer.gid() };
    // By number only where the kernel cannot tell directly: the number might be another's by now, in which case the
    // socket tells of the end.
    let process = raw::peer_process(socket.as_fd()).or_else(|_| raw::process(credentials.pid));
    (Some(credentials), process.ok().map(Arc::new))
}

/// Attaches a process as a guest to the root that listens at `path`. Waits for the root's answer as long as
/// `options.patience` says, and never after that.
///
/// # Errors
/// [`LinkError::Refused`] with the root's reason; [`LinkError::NoAnswer`]; the system's where nobody listens.
pub fn connect(path: impl AsRef<Path>, options: &GuestOptions) -> Result<ControlGuest, LinkError> {
    attach(connection(path.as_ref(), options)?, options)
}

/// Attaches a guest again whose root has gone, with the memory that it has: all that is allocated of it stays, at the
/// guest-physical addresses where it is (`docs/src/protocol/attach.md`, "Attaching again").
///
/// The memory must not be in the hands of the old root any more, which is so once `before.peer_process()` is readable:
/// a socket that has hung up does not say as much.
///
/// # Errors
/// As [`connect`].
pub fn reconnect(
    path: impl AsRef<Path>,
    options: &GuestOptions,
    before: &ControlGuest,
) -> Result<ControlGuest, LinkError> {
    let socket = connection(path.as_ref(), options)?;
    introduce(socket, options, Arc::clone(before.kept_memory()), before.domain_size())
}

/// A connection to the root that listens at `path`.
fn connection(path: &Path, options: &GuestOptions) -> Result<UnixStream, LinkError> {
    let deadline = Instant::now() + Duration::from_secs(options.patience);
    loop {
        match listener::connect(path) {
            Ok(socket) => return Ok(socket),
            // Somebody listens, and more want to attach than its queue holds.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(source) => return Err(LinkError::System { what: "connecting to the root", source }),
        }
        if Instant::now() >= deadline {
            return Err(LinkError::NoAnswer { seconds: options.patience });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// As [`connect`], over a connection that is there already.
///
/// # Errors
/// As [`connect`].
pub fn attach(socket: UnixStream, options: &GuestOptions) -> Result<ControlGuest, LinkError> {
    let (memory, _file) = GuestMemory::new(options.memory)?;
    introduce(socket, options, Arc::new(Mutex::new(memory)), options.memory)
}

fn introduce(
    socket: UnixStream,
    options: &GuestOptions,
    memory: KeptMemory,
    domain_size: u64,
) -> Result<ControlGuest, LinkError> {
    socket.set_nonblocking(true).map_err(LinkError::system("preparing a connection"))?;
    let (_, peer) = identify(&socket);
    let socket = Arc::new(OwnedFd::from(socket));
    let mut writer = FrameWriter::new(Arc::clone(&socket));
    let mut reader = FrameReader::new(socket);
    let area = ControlArea::create(options.workers, options.vps)?;
    let (bells, theirs) = bells(BellKind::Event, options.workers)?;

    let copy =
        |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(LinkError::system("duplicating a descriptor"));
    let (regions, file) = described(&memory)?;
    let hello = Hello { num_vps: options.vps.into(), tsc_hz: 0, ref_time: 0, regions };
    let mut bytes = Vec::new();
    GuestFrame::Hello(hello).emit(&mut bytes);
    writer.push(bytes, vec![copy(file.as_fd())?], None)?;

    let mut bytes = Vec::new();
    GuestFrame::ExtOffer { features: GRANTED, version: EXT_VERSION, name: &options.name }.emit(&mut bytes);
    let mut descriptors = vec![copy(area.file().as_fd())?];
    descriptors.extend(descriptors_of(theirs)?);
    writer.push(bytes, descriptors, None)?;

    let answer = wait_for_answer(&mut reader, &mut writer, options)?;
    if answer.features & NEEDED != NEEDED
        || answer.vps != area.vps()
        || answer.descriptors.len() < answer.vps.into()
    {
        return Err(LinkError::Protocol("granted less than a guest needs"));
    }
    writer.restart_count();
    reader.restart_count();
    let mut own_bells = Vec::new();
    for descriptor in answer.descriptors {
        // Of a pipe, or of an eventfd where the root trusts us.
        let bell = BellReceiver::from_root(descriptor);
        own_bells.push(bell.map_err(LinkError::system("taking over a bell"))?);
    }
    let workers = answer.workers.min(area.workers());
    let bells = bells.into_iter().take(workers.into()).collect();
    let info = GuestInfo {
        name: options.name.clone(),
        id: answer.partition,
        vps: area.vps().into(),
        workers: workers.into(),
        takes_gifts: answer.features & FEATURE_GIFTS != 0,
    };
    let wires = (WireIn::Socket(reader), WireOut::Socket(writer));
    let link = ControlLink::new(End::Guest, area, bells, own_bells, wires);
    ControlGuest::new(link, info, memory, peer, domain_size)
}

/// The memory of domain 0 as HELLO describes it.
fn described(memory: &KeptMemory) -> Result<(Vec<MemoryRange>, Memfd), LinkError> {
    let memory = lock(memory);
    let (regions, _) = memory.regions();
    let file = regions.first().map(|region| region.mapping.file().clone());
    let ranges = regions.iter().map(|region| MemoryRange {
        gpa: region.gpa,
        size: region.mapping.size() as u64,
        fd_offset: region.mapping.file_offset(),
    });
    Ok((ranges.collect(), file.ok_or(LinkError::Protocol("has no memory"))?))
}

/// What is handed over of bells whose other ends we ring.
fn descriptors_of(bells: Vec<BellReceiver>) -> Result<Vec<OwnedFd>, LinkError> {
    let descriptors: io::Result<_> = bells.into_iter().map(BellReceiver::into_descriptor).collect();
    descriptors.map_err(LinkError::system("duplicating a descriptor"))
}

struct Answer {
    features: u64,
    partition: u32,
    workers: u16,
    vps: u16,
    descriptors: Vec<OwnedFd>,
}

fn wait_for_answer(
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    options: &GuestOptions,
) -> Result<Answer, LinkError> {
    let deadline = Instant::now() + Duration::from_secs(options.patience);
    loop {
        let all_out = writer.flush(|_| ())?;
        let answer = reader.next(|frame, claim| match RootFrame::parse(frame)? {
            RootFrame::ExtAccept { features, partition, workers, vps } => {
                Ok(Some(Answer { features, partition, workers, vps, descriptors: claim() }))
            }
            RootFrame::Refused { reason, .. } => Err(LinkError::Refused { reason: reason.to_owned() }),
            // A root that knows base frames only may say anything; what it says is not for us.
            _ => Ok(None),
        })?;
        match answer {
            Read::Frame(Ok(Some(answer))) => return Ok(answer),
            Read::Frame(Ok(None)) if Instant::now() < deadline => continue,
            Read::Frame(Ok(None)) => {}
            Read::Frame(Err(error)) => return Err(error),
            Read::Gone => return Err(LinkError::Gone),
            Read::Nothing => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LinkError::NoAnswer { seconds: options.patience });
        }
        let wanted = if all_out { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let socket = Arc::clone(reader.socket());
        match poll(&mut [PollFd::new(socket.as_fd(), wanted)], timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => {
                return Err(LinkError::System { what: "waiting for the root", source: error.into() });
            }
        }
    }
}
