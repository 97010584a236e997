//! Parsing and emitting frames.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    FrameError, GiveFrame, GuestFrame, HEADER_SIZE, Hello, IGNORABLE, MAGIC, MAX_DIRTY_RANGES, MAX_MESSAGE,
    MAX_NAME, MAX_PAYLOAD, MAX_REASON, MAX_REGIONS, MemoryRange, RefusedWhat, RootFrame, VERSION,
};

/// Header of every frame.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    kind: U32,
    len: U32,
    vp: U32,
    arg: U32,
}

mod kind {
    pub(super) const HELLO: u32 = 0x01;
    pub(super) const POST_MESSAGE: u32 = 0x02;
    pub(super) const SIGNAL_EVENT: u32 = 0x03;
    pub(super) const MSR_WRITE: u32 = 0x04;
    pub(super) const RESET: u32 = 0x05;
    pub(super) const CRASH: u32 = 0x06;
    pub(super) const PONG: u32 = 0x07;
    pub(super) const DELIVER_MESSAGE: u32 = 0x81;
    pub(super) const SET_EVENT_FLAG: u32 = 0x82;
    pub(super) const MEM_DIRTY: u32 = 0x83;
    pub(super) const SET_CONN_STATUS: u32 = 0x84;
    pub(super) const PING: u32 = 0x85;
    pub(super) const SYSTEM_RESET: u32 = 0x86;
    pub(super) const SYSTEM_QUIT: u32 = 0x87;
    pub(super) const EXT_OFFER: u32 = 0x4000_0001;
    pub(super) const MEMORY_ADD: u32 = 0x4000_0002;
    pub(super) const MEMORY_REMOVE: u32 = 0x4000_0003;
    pub(super) const GIVE_TO_ROOT: u32 = 0x4000_0004;
    pub(super) const EXT_ACCEPT: u32 = 0x4000_0081;
    pub(super) const REFUSED: u32 = 0x4000_0082;
    pub(super) const GIVE_TO_GUEST: u32 = 0x4000_0083;
}

/// How long the frame at the start of `bytes` is, or `None` while its header is incomplete.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Ok((header, _)) = Header::ref_from_prefix(bytes) else { return Ok(None) };
    let len = header.len.get();
    match usize::try_from(len) {
        Ok(payload) if payload <= MAX_PAYLOAD => Ok(Some(HEADER_SIZE + payload)),
        _ => Err(FrameError::TooLong { len }),
    }
}

impl<'a> GuestFrame<'a> {
    /// Reads one whole frame, as long as [`frame_len`] says.
    ///
    /// # Errors
    /// [`FrameError`], the sender's fault.
    pub fn parse(frame: &'a [u8]) -> Result<Self, FrameError> {
        let (kind, vp, arg, payload) = split(frame)?;
        match kind {
            kind::HELLO => parse_hello(payload).map(Self::Hello),
            kind::POST_MESSAGE => {
                let (head, data) = take::<[U32; 2]>(kind, payload)?;
                let data = usize::try_from(head[1].get()).ok().and_then(|size| data.get(..size));
                let data = data.filter(|data| data.len() <= MAX_MESSAGE);
                let data = data.ok_or(FrameError::Length { kind, len: payload.len() })?;
                Ok(Self::PostMessage { vp, connection_id: arg, message_type: head[0].get(), data })
            }
            kind::SIGNAL_EVENT => {
                let flag = exactly::<U32>(kind, payload)?.get();
                Ok(Self::SignalEvent { vp, connection_id: arg, flag })
            }
            kind::MSR_WRITE => {
                Ok(Self::MsrWrite { vp, msr: arg, value: exactly::<U64>(kind, payload)?.get() })
            }
            kind::RESET => Ok(Self::Reset),
            kind::CRASH => {
                let words = exactly::<[U64; 6]>(kind, payload)?.map(U64::get);
                let [p0, p1, p2, p3, p4, control] = words;
                Ok(Self::Crash { vp, parameters: [p0, p1, p2, p3, p4], control })
            }
            kind::PONG => Ok(Self::Pong { vp, arg }),
            kind::EXT_OFFER => {
                let (head, name) = take::<ExtOfferHead>(kind, payload)?;
                let name_len = usize::try_from(head.name_len.get()).unwrap_or(usize::MAX);
                let name = text(name, name_len, MAX_NAME)?;
                Ok(Self::ExtOffer { features: head.features.get(), version: head.version.get(), name })
            }
            kind::MEMORY_ADD => {
                let (range, domain) = parse_memory(kind, payload)?;
                Ok(Self::MemoryAdd { range, domain })
            }
            kind::MEMORY_REMOVE => {
                let (range, domain) = parse_memory(kind, payload)?;
                Ok(Self::MemoryRemove { range, domain })
            }
            kind::GIVE_TO_ROOT => Ok(Self::Give(parse_give(kind, arg, payload)?)),
            kind if kind & IGNORABLE != 0 => Ok(Self::Ignored),
            kind => Err(FrameError::Unknown { kind }),
        }
    }

    /// Appends the frame to `out`. A message or name that is too long is cut: callers check before.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => {
                let mut payload = Vec::with_capacity(32 + hello.regions.len() * 24);
                let count = u32::try_from(hello.regions.len()).unwrap_or(u32::MAX);
                payload.extend_from_slice([MAGIC, VERSION, hello.num_vps, count].map(U32::new).as_bytes());
                payload.extend_from_slice([hello.tsc_hz, hello.ref_time].map(U64::new).as_bytes());
                for region in &hello.regions {
                    let words = [region.gpa, region.size, region.fd_offset];
                    payload.extend_from_slice(words.map(U64::new).as_bytes());
                }
                put(out, kind::HELLO, 0, 0, &[&payload]);
            }
            Self::PostMessage { vp, connection_id, message_type, data } => {
                let data = &data[..data.len().min(MAX_MESSAGE)];
                let head = [*message_type, u32::try_from(data.len()).unwrap_or(0)].map(U32::new);
                put(out, kind::POST_MESSAGE, *vp, *connection_id, &[head.as_bytes(), data]);
            }
            Self::SignalEvent { vp, connection_id, flag } => {
                put(out, kind::SIGNAL_EVENT, *vp, *connection_id, &[&flag.to_le_bytes()]);
            }
            Self::MsrWrite { vp, msr, value } => {
                put(out, kind::MSR_WRITE, *vp, *msr, &[&value.to_le_bytes()])
            }
            Self::Reset => put(out, kind::RESET, 0, 0, &[]),
            Self::Crash { vp, parameters, control } => {
                let words = parameters.map(U64::new);
                put(out, kind::CRASH, *vp, 0, &[words.as_bytes(), &control.to_le_bytes()]);
            }
            Self::Pong { vp, arg } => put(out, kind::PONG, *vp, *arg, &[]),
            Self::ExtOffer { features, version, name } => {
                let head = ExtOfferHead {
                    features: U64::new(*features),
                    version: U32::new(*version),
                    name_len: U32::new(u32::try_from(name.len()).unwrap_or(0)),
                };
                put(out, kind::EXT_OFFER, 0, 0, &[head.as_bytes(), name.as_bytes()]);
            }
            Self::MemoryAdd { range, domain } => put_memory(out, kind::MEMORY_ADD, range, *domain),
            Self::MemoryRemove { range, domain } => put_memory(out, kind::MEMORY_REMOVE, range, *domain),
            Self::Give(give) => put_give(out, kind::GIVE_TO_ROOT, *give),
            Self::Ignored => put(out, IGNORABLE | 0x00ff_ffff, 0, 0, &[]),
        }
    }
}

impl<'a> RootFrame<'a> {
    /// Reads one whole frame, as long as [`frame_len`] says.
    ///
    /// # Errors
    /// [`FrameError`], the sender's fault.
    pub fn parse(frame: &'a [u8]) -> Result<Self, FrameError> {
        let (kind, vp, arg, payload) = split(frame)?;
        let wrong = FrameError::Length { kind, len: payload.len() };
        match kind {
            kind::DELIVER_MESSAGE => {
                let (head, data) = take::<DeliverHead>(kind, payload)?;
                let sint = u8::try_from(arg).ok().filter(|sint| *sint < 16).ok_or(wrong)?;
                if data.len() > MAX_MESSAGE {
                    return Err(wrong);
                }
                Ok(Self::DeliverMessage { vp, sint, message_type: head.message_type.get(), data })
            }
            kind::SET_EVENT_FLAG => {
                let flag = exactly::<U32>(kind, payload)?.get();
                let flag = u16::try_from(flag).ok().filter(|flag| *flag < 2048).ok_or(wrong)?;
                let sint = u8::try_from(arg).ok().filter(|sint| *sint < 16).ok_or(wrong)?;
                Ok(Self::SetEventFlag { vp, sint, flag })
            }
            kind::MEM_DIRTY if payload.len().is_multiple_of(16) => Ok(Self::MemDirtyRaw(payload)),
            kind::MEM_DIRTY => Err(wrong),
            kind::SET_CONN_STATUS => {
                Ok(Self::SetConnStatus { connection_id: arg, status: exactly::<U32>(kind, payload)?.get() })
            }
            kind::PING => Ok(Self::Ping { vp, arg }),
            kind::SYSTEM_RESET => Ok(Self::SystemReset),
            kind::SYSTEM_QUIT => Ok(Self::SystemQuit),
            kind::EXT_ACCEPT => {
                let accept = exactly::<ExtAccept>(kind, payload)?;
                let areas = accept.areas.get().to_le_bytes();
                Ok(Self::ExtAccept {
                    features: accept.features.get(),
                    partition: accept.partition.get(),
                    workers: u16::from_le_bytes([areas[0], areas[1]]),
                    vps: u16::from_le_bytes([areas[2], areas[3]]),
                })
            }
            kind::REFUSED => {
                let (head, reason) = take::<[U32; 3]>(kind, payload)?;
                let what = RefusedWhat::from_wire(head[0].get(), head[1].get());
                Ok(Self::Refused {
                    what,
                    code: head[2].get(),
                    reason: text(reason, reason.len(), MAX_REASON)?,
                })
            }
            kind::MEMORY_ADD => {
                let (range, domain) = parse_memory(kind, payload)?;
                Ok(Self::MemoryAdd { range, domain })
            }
            kind::GIVE_TO_GUEST => Ok(Self::Give(parse_give(kind, arg, payload)?)),
            kind if kind & IGNORABLE != 0 => Ok(Self::Ignored),
            kind => Err(FrameError::Unknown { kind }),
        }
    }

    /// Appends the frame to `out`. A message or text that is too long is cut: callers check before.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::DeliverMessage { vp, sint, message_type, data } => {
                let head =
                    DeliverHead { message_type: U32::new(*message_type), zero: U32::ZERO, origin: U64::ZERO };
                let data = &data[..data.len().min(MAX_MESSAGE)];
                put(out, kind::DELIVER_MESSAGE, *vp, (*sint).into(), &[head.as_bytes(), data]);
            }
            Self::SetEventFlag { vp, sint, flag } => {
                put(out, kind::SET_EVENT_FLAG, *vp, (*sint).into(), &[&u32::from(*flag).to_le_bytes()]);
            }
            Self::MemDirty(ranges) => {
                for part in ranges.chunks(MAX_DIRTY_RANGES) {
                    let words: Vec<U64> =
                        part.iter().flat_map(|&(gpa, len)| [U64::new(gpa), U64::new(len)]).collect();
                    put(out, kind::MEM_DIRTY, 0, 0, &[words.as_bytes()]);
                }
            }
            Self::MemDirtyRaw(bytes) => put(out, kind::MEM_DIRTY, 0, 0, &[bytes]),
            Self::SetConnStatus { connection_id, status } => {
                put(out, kind::SET_CONN_STATUS, 0, *connection_id, &[&status.to_le_bytes()]);
            }
            Self::Ping { vp, arg } => put(out, kind::PING, *vp, *arg, &[]),
            Self::SystemReset => put(out, kind::SYSTEM_RESET, 0, 0, &[]),
            Self::SystemQuit => put(out, kind::SYSTEM_QUIT, 0, 0, &[]),
            Self::ExtAccept { features, partition, workers, vps } => {
                let accept = ExtAccept {
                    features: U64::new(*features),
                    partition: U32::new(*partition),
                    areas: U32::new(u32::from(*workers) | u32::from(*vps) << 16),
                };
                put(out, kind::EXT_ACCEPT, 0, 0, &[accept.as_bytes()]);
            }
            Self::Refused { what, code, reason } => {
                let (what, id) = what.to_wire();
                let head = [what, id, *code].map(U32::new);
                put(out, kind::REFUSED, 0, 0, &[head.as_bytes(), cut(reason, MAX_REASON).as_bytes()]);
            }
            Self::MemoryAdd { range, domain } => put_memory(out, kind::MEMORY_ADD, range, *domain),
            Self::Give(give) => put_give(out, kind::GIVE_TO_GUEST, *give),
            Self::Ignored => put(out, IGNORABLE | 0x00ff_ffff, 0, 0, &[]),
        }
    }
}

impl RefusedWhat {
    fn from_wire(what: u32, id: u32) -> Self {
        match what {
            1 => Self::Open(id),
            2 => Self::Share(id),
            3 => Self::Attach,
            other => Self::Other(other, id),
        }
    }

    fn to_wire(self) -> (u32, u32) {
        match self {
            Self::Open(id) => (1, id),
            Self::Share(id) => (2, id),
            Self::Attach => (3, 0),
            Self::Other(what, id) => (what, id),
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ExtOfferHead {
    features: U64,
    version: U32,
    name_len: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ExtAccept {
    features: U64,
    partition: U32,
    areas: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DeliverHead {
    message_type: U32,
    zero: U32,
    origin: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct MemoryPayload {
    gpa: U64,
    size: U64,
    fd_offset: U64,
    domain: U32,
    flags: U32,
}

fn split(frame: &[u8]) -> Result<(u32, u32, u32, &[u8]), FrameError> {
    let (header, payload) =
        Header::ref_from_prefix(frame).map_err(|_| FrameError::Length { kind: 0, len: frame.len() })?;
    let kind = header.kind.get();
    if usize::try_from(header.len.get()) != Ok(payload.len()) {
        return Err(FrameError::Length { kind, len: payload.len() });
    }
    Ok((kind, header.vp.get(), header.arg.get(), payload))
}

fn take<T: FromBytes + Immutable + KnownLayout>(kind: u32, payload: &[u8]) -> Result<(T, &[u8]), FrameError> {
    T::read_from_prefix(payload).map_err(|_| FrameError::Length { kind, len: payload.len() })
}

fn exactly<T: FromBytes + Immutable + KnownLayout>(kind: u32, payload: &[u8]) -> Result<T, FrameError> {
    T::read_from_bytes(payload).map_err(|_| FrameError::Length { kind, len: payload.len() })
}

fn text(bytes: &[u8], len: usize, most: usize) -> Result<&str, FrameError> {
    let bytes = bytes.get(..len).filter(|bytes| bytes.len() <= most).ok_or(FrameError::Text)?;
    str::from_utf8(bytes).map_err(|_| FrameError::Text)
}

/// As much of a text as fits `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

fn parse_hello(payload: &[u8]) -> Result<Hello, FrameError> {
    let wrong = FrameError::Length { kind: kind::HELLO, len: payload.len() };
    let (head, rest) = take::<[U32; 4]>(kind::HELLO, payload)?;
    let [magic, version, num_vps, num_regions] = head.map(U32::get);
    if magic != MAGIC || version != VERSION {
        return Err(FrameError::Foreign { magic, version });
    }
    let (times, rest) = take::<[U64; 2]>(kind::HELLO, rest)?;
    let regions = <[[U64; 3]]>::ref_from_bytes(rest).map_err(|_| wrong)?;
    if usize::try_from(num_regions) != Ok(regions.len()) || regions.len() > MAX_REGIONS {
        return Err(wrong);
    }
    let regions = regions.iter().map(|words| {
        let [gpa, size, fd_offset] = words.map(U64::get);
        MemoryRange { gpa, size, fd_offset }
    });
    Ok(Hello { num_vps, tsc_hz: times[0].get(), ref_time: times[1].get(), regions: regions.collect() })
}

fn parse_memory(kind: u32, payload: &[u8]) -> Result<(MemoryRange, u32), FrameError> {
    let memory = exactly::<MemoryPayload>(kind, payload)?;
    let range =
        MemoryRange { gpa: memory.gpa.get(), size: memory.size.get(), fd_offset: memory.fd_offset.get() };
    Ok((range, memory.domain.get()))
}

fn put_memory(out: &mut Vec<u8>, kind: u32, range: &MemoryRange, domain: u32) {
    let memory = MemoryPayload {
        gpa: U64::new(range.gpa),
        size: U64::new(range.size),
        fd_offset: U64::new(range.fd_offset),
        domain: U32::new(domain),
        flags: U32::ZERO,
    };
    put(out, kind, 0, 0, &[memory.as_bytes()]);
}

fn parse_give(kind: u32, id: u32, payload: &[u8]) -> Result<GiveFrame, FrameError> {
    Ok(GiveFrame { id, len: exactly::<U64>(kind, payload)?.get() })
}

fn put_give(out: &mut Vec<u8>, kind: u32, give: GiveFrame) {
    put(out, kind, 0, give.id, &[&give.len.to_le_bytes()]);
}

fn put(out: &mut Vec<u8>, kind: u32, vp: u32, arg: u32, payload: &[&[u8]]) {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    out.extend_from_slice([kind, len, vp, arg].map(U32::new).as_bytes());
    for part in payload {
        out.extend_from_slice(part);
    }
}
