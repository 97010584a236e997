//! The frames of the attach socket, byte for byte (`docs/src/protocol/attach.md`, "Frames").
//!
//! Parsing and emitting are symmetrical: each frame is a plain enum variant. Descriptors that ride along, and whether
//! a frame is welcome now, are for the link.

mod wire;

pub use wire::frame_len;

/// Bytes of the header in front of each payload.
pub const HEADER_SIZE: usize = 16;
/// The longest payload; a longer one ends the connection.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// The longest message that POST_MESSAGE and DELIVER_MESSAGE carry.
pub const MAX_MESSAGE: usize = 240;
/// "HVAT", the first word of a HELLO.
pub const MAGIC: u32 = 0x5441_5648;
/// The version of the attach protocol.
pub const VERSION: u32 = 1;
/// The most regions that a HELLO may state.
pub const MAX_REGIONS: usize = 64;
/// The longest name of a partition in bytes.
pub const MAX_NAME: usize = 64;
/// The longest reason in a REFUSED, in bytes.
pub const MAX_REASON: usize = 1024;
/// A receiver that does not know a frame type with this bit ignores the frame.
const IGNORABLE: u32 = 0x4000_0000;
/// The ranges that fit one MEM_DIRTY.
pub const MAX_DIRTY_RANGES: usize = MAX_PAYLOAD / 16;

/// What is wrong with a frame. Always the sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The payload is longer than [`MAX_PAYLOAD`].
    #[error("a frame of {len} bytes, more than 64 KiB")]
    TooLong {
        /// Its stated length in bytes.
        len: u32,
    },
    /// The type is unknown and not of those that may be ignored.
    #[error("unknown frame type {kind:#x}")]
    Unknown {
        /// The type.
        kind: u32,
    },
    /// The payload has the wrong length for its type.
    #[error("a frame of type {kind:#x} with {len} bytes")]
    Length {
        /// The type.
        kind: u32,
        /// Bytes of payload.
        len: usize,
    },
    /// A HELLO with another magic number or version.
    #[error("a HELLO of something else: magic {magic:#x}, version {version}")]
    Foreign {
        /// The first word.
        magic: u32,
        /// The second.
        version: u32,
    },
    /// A name or reason that is not UTF-8 or too long.
    #[error("a text that is not UTF-8 or too long")]
    Text,
}

/// A stretch of memory as HELLO, MEMORY_ADD and MEMORY_REMOVE name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Where in the file it starts.
    pub fd_offset: u64,
}

/// The first frame of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Virtual processors.
    pub num_vps: u32,
    /// Frequency of the guest's time stamp counter in Hz.
    pub tsc_hz: u64,
    /// The partition's reference time in units of 100 ns.
    pub ref_time: u64,
    /// Its memory, all in one file.
    pub regions: Vec<MemoryRange>,
}

/// A frame from a partition to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestFrame<'a> {
    /// HELLO.
    Hello(Hello),
    /// POST_MESSAGE.
    PostMessage {
        /// Sending VP.
        vp: u32,
        /// Target of the message.
        connection_id: u32,
        /// 1 for a channel message.
        message_type: u32,
        /// At most 240 bytes.
        data: &'a [u8],
    },
    /// SIGNAL_EVENT.
    SignalEvent {
        /// Sending VP.
        vp: u32,
        /// Target of the signal.
        connection_id: u32,
        /// Number of the flag.
        flag: u32,
    },
    /// MSR_WRITE.
    MsrWrite {
        /// The VP whose register it is.
        vp: u32,
        /// Number of the register.
        msr: u32,
        /// What was written.
        value: u64,
    },
    /// RESET.
    Reset,
    /// CRASH.
    Crash {
        /// The VP that crashed.
        vp: u32,
        /// P0 to P4.
        parameters: [u64; 5],
        /// The control register.
        control: u64,
    },
    /// PONG.
    Pong {
        /// As in the PING.
        vp: u32,
        /// As in the PING.
        arg: u32,
    },
    /// EXT_OFFER.
    ExtOffer {
        /// Features wanted.
        features: u64,
        /// Version of the extensions.
        version: u32,
        /// Name of the partition.
        name: &'a str,
    },
    /// MEMORY_ADD.
    MemoryAdd {
        /// The memory.
        range: MemoryRange,
        /// The sharing domain it belongs to.
        domain: u32,
    },
    /// MEMORY_REMOVE.
    MemoryRemove {
        /// The memory.
        range: MemoryRange,
        /// The sharing domain it belongs to.
        domain: u32,
    },
    /// GIVE.
    Give(GiveFrame),
    /// A frame that may be ignored, because its type says so.
    Ignored,
}

/// GIVE, in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GiveFrame {
    /// The giver's name for the gift.
    pub id: u32,
    /// Bytes of it.
    pub len: u64,
}

/// What a REFUSED speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedWhat {
    /// The attachment itself.
    Attach,
    /// Opening the channel with this relid.
    Open(u32),
    /// Sharing the page list with this id.
    Share(u32),
    /// Something that this end does not know.
    Other(u32, u32),
}

/// A frame from the root to a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootFrame<'a> {
    /// DELIVER_MESSAGE.
    DeliverMessage {
        /// Target VP.
        vp: u32,
        /// Target interrupt source.
        sint: u8,
        /// 1 for a channel message.
        message_type: u32,
        /// At most 240 bytes.
        data: &'a [u8],
    },
    /// SET_EVENT_FLAG.
    SetEventFlag {
        /// Target VP.
        vp: u32,
        /// Target interrupt source.
        sint: u8,
        /// Number of the flag, below 2048.
        flag: u16,
    },
    /// MEM_DIRTY: guest-physical address and length pairs.
    MemDirty(&'a [(u64, u64)]),
    /// MEM_DIRTY as received: whole records of 16 bytes.
    MemDirtyRaw(&'a [u8]),
    /// SET_CONN_STATUS.
    SetConnStatus {
        /// The connection.
        connection_id: u32,
        /// Its HV_STATUS from now on.
        status: u32,
    },
    /// PING.
    Ping {
        /// Echoed.
        vp: u32,
        /// Echoed.
        arg: u32,
    },
    /// SYSTEM_RESET.
    SystemReset,
    /// SYSTEM_QUIT.
    SystemQuit,
    /// EXT_ACCEPT.
    ExtAccept {
        /// Features granted.
        features: u64,
        /// The root's number for the partition.
        partition: u32,
        /// Event areas of the root's workers that may be used.
        workers: u16,
        /// Event areas of the guest's VPs that will be used.
        vps: u16,
    },
    /// REFUSED.
    Refused {
        /// What was refused.
        what: RefusedWhat,
        /// A status code.
        code: u32,
        /// Why, for people.
        reason: &'a str,
    },
    /// MEMORY_ADD: memory of the root's own.
    MemoryAdd {
        /// The memory.
        range: MemoryRange,
        /// The sharing domain it belongs to.
        domain: u32,
    },
    /// GIVE.
    Give(GiveFrame),
    /// A frame that may be ignored, because its type says so.
    Ignored,
}
