//! The control messages of the bus, 1 to 29, from one table.
//!
//! The table gives each message its number, direction, first version, feature gate and the shortest payload that is
//! accepted; the parser, the printer and the protocol documentation come from it. Layouts are those of
//! `docs/src/protocol/control.md`; every size and offset there counts the 8-byte header, which the structures here
//! leave out.

use core::fmt;
use core::ops::Deref;

use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::wire_struct;
use crate::{FeatureFlags, Guid, Version};

/// The longest payload of a control message, in bytes.
pub const MAX_PAYLOAD: usize = 240;
/// Size of the header that starts every control message: type u32, padding u32.
pub const HEADER_SIZE: usize = 8;
/// The longest page list that fits into a GPADL_HEADER, in bytes.
pub const GPADL_HEADER_ROOM: usize = (MAX_PAYLOAD - 20) / 8 * 8;
/// The longest page list that fits into a GPADL_BODY, in bytes.
pub const GPADL_BODY_ROOM: usize = (MAX_PAYLOAD - 16) / 8 * 8;

/// Who sends a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the guest to the root.
    ToHost,
    /// From the root to the guest.
    ToGuest,
}

/// What the table says of one message.
#[derive(Clone, Copy, Debug)]
pub struct MessageInfo {
    /// The number on the wire.
    pub number: u32,
    /// The structure's name.
    pub name: &'static str,
    /// Who sends it.
    pub direction: Direction,
    /// The first version that knows it.
    pub first_version: Version,
    /// Features of which one must have been negotiated; empty for none.
    pub gate: FeatureFlags,
    /// The shortest payload that is accepted, header included, in bytes.
    pub minimum_size: usize,
    /// The longest defined form, header included, page lists apart, in bytes.
    pub full_size: usize,
}

/// Why a payload is not a message. Always the sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Shorter than the header or than the message's shortest form.
    #[error("message {number} of {len} bytes is too short, {minimum} are needed")]
    TooShort {
        /// The number on the wire, 0 if even the header is incomplete.
        number: u32,
        /// Bytes received.
        len: usize,
        /// Bytes needed.
        minimum: usize,
    },
    /// Longer than a control message can be.
    #[error("message of {0} bytes is too long")]
    TooLong(usize),
    /// No message has this number.
    #[error("unknown message number {0}")]
    Unknown(u32),
    /// The message belongs to the other direction.
    #[error("message {0} goes the other way")]
    WrongDirection(u32),
    /// The message is newer than the negotiated version, or its feature was not negotiated.
    #[error("message {0} was not negotiated")]
    NotNegotiated(u32),
}

/// 120 bytes whose meaning the device protocol gives.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct UserDefined(pub [u8; 120]);

impl Default for UserDefined {
    fn default() -> Self {
        Self([0; 120])
    }
}

impl fmt::Debug for UserDefined {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.0.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        write!(formatter, "{:02x?}", &self.0[..used])
    }
}

/// The table: `number Name Direction FirstVersion gate minimum-size [+ pages]`.
macro_rules! messages {
    ($($number:literal $name:ident $direction:ident $version:ident $gate:expr, $minimum:literal $(+ $tail:ident)?;)*) => {
        /// One control message, decoded. Fields that an older or shorter form lacks are zero.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Message<'a> {
            $(#[doc = concat!("Message ", stringify!($number), ".")]
              $name($name $(, messages!(@tail_type $tail 'a))?),)*
        }

        /// The table of all messages, in order of their numbers.
        pub const MESSAGES: &[MessageInfo] = &[$(MessageInfo {
            number: $number,
            name: stringify!($name),
            direction: Direction::$direction,
            first_version: Version::$version,
            gate: $gate,
            minimum_size: $minimum,
            full_size: HEADER_SIZE + size_of::<$name>(),
        },)*];

        impl<'a> Message<'a> {
            /// What the table says of this message.
            pub fn info(&self) -> &'static MessageInfo {
                let number: u32 = match self { $(messages!(@pattern $name $($tail)?) => $number,)* };
                &MESSAGES[number as usize - 1]
            }

            fn body(&self) -> (&[u8], &'a [u8]) {
                match self { $(messages!(@bind $name body tail $($tail)?) => (body.as_bytes(), messages!(@tail_value tail $($tail)?)),)* }
            }

            fn from_parts(number: u32, body: &'a [u8]) -> Option<Self> {
                match number {
                    $($number => {
                        let (body, _tail) = padded::<$name>(body);
                        Some(messages!(@build $name body _tail $($tail)?))
                    })*
                    _ => None,
                }
            }
        }

        $(impl From<$name> for Message<'_> where $name: NoTail {
            fn from(message: $name) -> Self {
                messages!(@from $name message $($tail)?)
            }
        })*
        $(messages!(@no_tail $name $($tail)?);)*
    };
    (@tail_type pages $lifetime:lifetime) => { &$lifetime [u8] };
    (@pattern $name:ident) => { Message::$name(_) };
    (@pattern $name:ident pages) => { Message::$name(_, _) };
    (@bind $name:ident $body:ident $tail:ident) => { Message::$name($body) };
    (@bind $name:ident $body:ident $tail:ident pages) => { Message::$name($body, $tail) };
    (@tail_value $tail_name:ident) => { &[] };
    (@tail_value $tail_name:ident pages) => { *$tail_name };
    (@build $name:ident $body:ident $tail_name:ident) => { Message::$name($body) };
    (@build $name:ident $body:ident $tail_name:ident pages) => { Message::$name($body, $tail_name) };
    (@from $name:ident $message:ident) => { Message::$name($message) };
    (@from $name:ident $message:ident pages) => { Message::$name($message, &[]) };
    (@no_tail $name:ident) => { impl NoTail for $name {} };
    (@no_tail $name:ident pages) => { impl NoTail for $name {} };
}

/// A message that a plain structure describes completely, or whose page list may be empty.
trait NoTail {}

const NONE: FeatureFlags = FeatureFlags::empty();

messages! {
    1  OfferChannel             ToGuest V1    NONE, 190;
    2  RescindChannelOffer      ToGuest V1    NONE, 12;
    3  RequestOffers            ToHost  V1    NONE, 8;
    4  AllOffersDelivered       ToGuest V1    NONE, 8;
    5  OpenChannel              ToHost  V1    NONE, 148;
    6  OpenChannelResult        ToGuest V1    NONE, 20;
    7  CloseChannel             ToHost  V1    NONE, 12;
    8  GpadlHeader              ToHost  V1    NONE, 20 + pages;
    9  GpadlBody                ToHost  V1    NONE, 16 + pages;
    10 GpadlCreated             ToGuest V1    NONE, 20;
    11 GpadlTeardown            ToHost  V1    NONE, 16;
    12 GpadlTorndown            ToGuest V1    NONE, 12;
    13 RelidReleased            ToHost  V1    NONE, 12;
    14 InitiateContact          ToHost  V1    NONE, 40;
    15 VersionResponse          ToGuest V1    NONE, 10;
    16 Unload                   ToHost  V1    NONE, 8;
    17 UnloadResponse           ToGuest Win7  NONE, 8;
    18 OpenReservedChannel      ToHost  Win10 NONE, 28;
    19 CloseReservedChannel     ToHost  Win10 NONE, 20;
    20 CloseReservedResponse    ToGuest Win10 NONE, 12;
    21 TlConnectRequest         ToHost  Win10 NONE, 40;
    22 ModifyChannel            ToHost  Win10Rs3 NONE, 16;
    23 TlConnectResult          ToGuest Win10Rs3 NONE, 44;
    24 ModifyChannelResponse    ToGuest Iron  NONE, 16;
    25 ModifyConnection         ToHost  Copper FeatureFlags::MODIFY_CONNECTION, 24;
    26 ModifyConnectionResponse ToGuest Copper FeatureFlags::MODIFY_CONNECTION, 9;
    27 Pause                    ToHost  Copper FeatureFlags::PAUSE_RESUME, 8;
    28 PauseResponse            ToGuest Copper FeatureFlags::PAUSE_RESUME, 8;
    29 Resume                   ToHost  Copper FeatureFlags::PAUSE_RESUME, 8;
}

wire_struct! {
    /// A device appears (188 bytes; 182 for V1, which ends after the monitor byte).
    pub struct OfferChannel {
        /// Class of the device.
        interface_type: Guid,
        /// This device; the same for all its sub-channels.
        interface_instance: Guid,
        /// Ignored; interrupt latency in old headers.
        reserved_latency: U64,
        /// Ignored.
        reserved_revision: U32,
        /// Ignored.
        reserved_context: U32,
        /// [`OfferFlags`].
        flags: U16,
        /// MMIO window needed, in MiB.
        mmio_megabytes: U16,
        /// Meaning by device protocol.
        user_defined: UserDefined,
        /// 0 for the primary channel.
        subchannel_index: U16,
        /// MMIO window wished beyond, in MiB.
        mmio_megabytes_optional: U16,
        /// Channel id, 1 to 2047.
        relid: U32,
        /// 0 to 127, or 0xff when none is allocated.
        monitor_id: u8,
        /// Bit 0: a monitor is allocated.
        monitor_allocated: u8,
        /// Bit 0: the channel has an interrupt of its own. Absent in V1.
        is_dedicated: U16,
        /// Connection id for signals to the host, 24 bits. Absent in V1.
        connection_id: U32,
    }
}

bitflags::bitflags! {
    /// Flags of an offer.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OfferFlags: u16 {
        /// An ordinary device interface.
        const ENUMERATE_DEVICE_INTERFACE = 0x0001;
        /// The ring holds private memory (confidential channels only).
        const CONFIDENTIAL_RING_BUFFER = 0x0002;
        /// External memory is private (confidential channels only).
        const CONFIDENTIAL_EXTERNAL_MEMORY = 0x0004;
        /// Packets carry the pipe header.
        const NAMED_PIPE_MODE = 0x0010;
        /// An hvsock channel.
        const TLNPI_PROVIDER = 0x2000;
        const _ = !0;
    }
}

wire_struct! {
    /// A device disappears.
    pub struct RescindChannelOffer {
        /// The channel.
        relid: U32,
    }
}
wire_struct! {
    /// The guest wants the offers, once per connection.
    pub struct RequestOffers {}
}
wire_struct! {
    /// All offers that exist at this moment were sent.
    pub struct AllOffersDelivered {}
}
wire_struct! {
    /// Opens a channel (140 bytes; 148 with guest-specified signal parameters or interrupt redirection).
    pub struct OpenChannel {
        /// The channel.
        relid: U32,
        /// Echoed in the result.
        open_id: U32,
        /// GPADL of the two rings.
        ring_gpadl: U32,
        /// VP that gets signals from the host; `u32::MAX` for none.
        target_vp: U32,
        /// Where the host-to-guest ring starts in the GPADL, in pages.
        downstream_page_offset: U32,
        /// Meaning by device protocol.
        user_data: UserDefined,
        /// With guest-specified signal parameters: the connection id on which the guest will signal.
        connection_id: U32,
        /// With guest-specified signal parameters: the event flag to set for the guest.
        event_flag: U16,
        /// Bit 0: redirect the interrupt.
        flags: U16,
    }
}
wire_struct! {
    /// Answer to an open.
    pub struct OpenChannelResult {
        /// The channel.
        relid: U32,
        /// As in the request.
        open_id: U32,
        /// [`Status`](crate::status::Status); 0 is success.
        status: U32,
    }
}
wire_struct! {
    /// Closes a channel; nothing answers.
    pub struct CloseChannel {
        /// The channel.
        relid: U32,
    }
}
wire_struct! {
    /// Starts a page list; the ranges follow.
    pub struct GpadlHeader {
        /// The channel that it belongs to.
        relid: U32,
        /// Chosen by the guest, not 0.
        gpadl: U32,
        /// Bytes of all ranges, truncated to 16 bits.
        range_buflen: U16,
        /// Number of ranges.
        range_count: U16,
    }
}
wire_struct! {
    /// Continues a page list.
    pub struct GpadlBody {
        /// Counts bodies with some guests, 0 with others; never checked.
        message_number: U32,
        /// As in the header.
        gpadl: U32,
    }
}
wire_struct! {
    /// Answer to a complete page list.
    pub struct GpadlCreated {
        /// The channel.
        relid: U32,
        /// As in the header.
        gpadl: U32,
        /// 0 is success.
        status: U32,
    }
}
wire_struct! {
    /// Asks for a page list back.
    pub struct GpadlTeardown {
        /// The channel.
        relid: U32,
        /// The page list.
        gpadl: U32,
    }
}
wire_struct! {
    /// The host has let go of a page list.
    pub struct GpadlTorndown {
        /// The page list.
        gpadl: U32,
    }
}
wire_struct! {
    /// The guest has no more use for a rescinded or closed channel's id.
    pub struct RelidReleased {
        /// The channel.
        relid: U32,
    }
}
wire_struct! {
    /// Asks for one version (32 bytes; 48 with a client id).
    pub struct InitiateContact {
        /// [`Version::word`].
        version: U32,
        /// VP that gets control messages, honoured from 3.0.
        target_vp: U32,
        /// Before 5.0 the address of the interrupt page; from 5.0 SINT u8, VTL u8, padding u16, feature flags u32.
        interrupt_page_or_target: U64,
        /// Address of the parent-to-child monitor page, 0 for none.
        parent_to_child_monitor: U64,
        /// Address of the child-to-parent monitor page, 0 for none.
        child_to_parent_monitor: U64,
        /// With the client-id feature.
        client_id: Guid,
    }
}

impl InitiateContact {
    /// The word of a 5.0-or-later contact: target SINT and VTL, and, for 6.0, the features wanted.
    pub fn target(sint: u8, vtl: u8, features: FeatureFlags) -> U64 {
        U64::new(u64::from(sint) | u64::from(vtl) << 8 | u64::from(features.bits()) << 32)
    }

    /// The target SINT (5.0 and later).
    pub fn target_sint(&self) -> u8 {
        self.interrupt_page_or_target.to_bytes()[0]
    }

    /// The target VTL (5.1 and later).
    pub fn target_vtl(&self) -> u8 {
        self.interrupt_page_or_target.to_bytes()[1]
    }

    /// The features wanted (6.0 and later).
    pub fn features(&self) -> FeatureFlags {
        let [_, _, _, _, a, b, c, d] = self.interrupt_page_or_target.to_bytes();
        FeatureFlags::from_bits_retain(u32::from_le_bytes([a, b, c, d]))
    }
}

wire_struct! {
    /// Answer to a contact (8 bytes; 12 for 6.0; 32 with server-given monitor pages).
    pub struct VersionResponse {
        /// 1 if the version is supported.
        supported: u8,
        /// 0 ok, 1 low resources, 2 other failure; only meaningful with `supported` and from Win8 on.
        connection_state: u8,
        /// 0.
        padding: U16,
        /// Before 5.0 the selected version; from 5.0 the connection id for all further messages.
        version_or_connection_id: U32,
        /// Features granted (6.0).
        features: U32,
        /// 0.
        padding2: U32,
        /// Address of the server's parent-to-child monitor page.
        parent_to_child_monitor: U64,
        /// Address of the server's child-to-parent monitor page.
        child_to_parent_monitor: U64,
    }
}
wire_struct! {
    /// The guest leaves the bus.
    pub struct Unload {}
}
wire_struct! {
    /// The host has let go of everything.
    pub struct UnloadResponse {}
}
wire_struct! {
    /// Opens a channel for a crash dump.
    pub struct OpenReservedChannel {
        /// The channel.
        relid: U32,
        /// VP for the answer.
        target_vp: U32,
        /// SINT for the answer.
        target_sint: U32,
        /// GPADL of the two rings.
        ring_gpadl: U32,
        /// Where the host-to-guest ring starts in the GPADL, in pages.
        downstream_page_offset: U32,
    }
}
wire_struct! {
    /// Closes a channel opened for a crash dump.
    pub struct CloseReservedChannel {
        /// The channel.
        relid: U32,
        /// VP for the answer.
        target_vp: U32,
        /// SINT for the answer.
        target_sint: U32,
    }
}
wire_struct! {
    /// Answer to [`CloseReservedChannel`].
    pub struct CloseReservedResponse {
        /// The channel.
        relid: U32,
    }
}
wire_struct! {
    /// hvsock: the guest connects to a service of the host (32 bytes; 48 from 5.2).
    pub struct TlConnectRequest {
        /// The guest's own end.
        endpoint_id: Guid,
        /// The service.
        service_id: Guid,
        /// Silo, from 5.2.
        silo_id: Guid,
    }
}
wire_struct! {
    /// Moves a channel's interrupt to another VP.
    pub struct ModifyChannel {
        /// The channel.
        relid: U32,
        /// The new VP.
        target_vp: U32,
    }
}
wire_struct! {
    /// hvsock: the connection was refused.
    pub struct TlConnectResult {
        /// As in the request.
        endpoint_id: Guid,
        /// As in the request.
        service_id: Guid,
        /// NTSTATUS.
        status: I32,
    }
}
wire_struct! {
    /// Answer to [`ModifyChannel`].
    pub struct ModifyChannelResponse {
        /// The channel.
        relid: U32,
        /// 0 is success.
        status: U32,
    }
}
wire_struct! {
    /// Changes the monitor pages of a connection.
    pub struct ModifyConnection {
        /// Address of the parent-to-child page, 0 for none.
        parent_to_child_monitor: U64,
        /// Address of the child-to-parent page, 0 for none.
        child_to_parent_monitor: U64,
    }
}
wire_struct! {
    /// Answer to [`ModifyConnection`].
    pub struct ModifyConnectionResponse {
        /// As in [`VersionResponse`].
        connection_state: u8,
    }
}
wire_struct! {
    /// The host is to queue what it would send.
    pub struct Pause {}
}
wire_struct! {
    /// Answer to [`Pause`].
    pub struct PauseResponse {}
}
wire_struct! {
    /// The host may send again.
    pub struct Resume {}
}

impl<'a> Message<'a> {
    /// Decodes a payload that came from `sender`'s side. Surplus bytes are ignored.
    ///
    /// `negotiated` is the version and features agreed on, or `None` before any: then every version's messages are
    /// let through, for the state machine to judge.
    pub fn parse(
        payload: &'a [u8],
        direction: Direction,
        negotiated: Option<(Version, FeatureFlags)>,
    ) -> Result<Self, MessageError> {
        let len = payload.len();
        if len > MAX_PAYLOAD {
            return Err(MessageError::TooLong(len));
        }
        let Some((header, body)) = payload.split_first_chunk::<HEADER_SIZE>() else {
            return Err(MessageError::TooShort { number: 0, len, minimum: HEADER_SIZE });
        };
        let number = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let info = (number as usize).checked_sub(1).and_then(|index| MESSAGES.get(index));
        let info = info.ok_or(MessageError::Unknown(number))?;
        if info.direction != direction {
            return Err(MessageError::WrongDirection(number));
        }
        if let Some((version, features)) = negotiated
            && (version < info.first_version || !(info.gate.is_empty() || features.intersects(info.gate)))
        {
            return Err(MessageError::NotNegotiated(number));
        }
        if len < info.minimum_size {
            return Err(MessageError::TooShort { number, len, minimum: info.minimum_size });
        }
        Self::from_parts(number, body).ok_or(MessageError::Unknown(number))
    }

    /// The payload in the form that `version` and `features` prescribe.
    ///
    /// A page list that does not fit is cut: split it by [`GPADL_HEADER_ROOM`] and [`GPADL_BODY_ROOM`].
    pub fn encode(&self, version: Version, features: FeatureFlags) -> Payload {
        let (body, tail) = self.body();
        let size = self.wire_size(version, features) - HEADER_SIZE;
        let mut payload = Payload { len: 0, bytes: [0; MAX_PAYLOAD] };
        payload.push(&self.info().number.to_le_bytes());
        payload.push(&[0; 4]);
        payload.push(&body[..size]);
        payload.push(tail);
        payload
    }

    /// Size of the payload without page list, header included.
    fn wire_size(&self, version: Version, features: FeatureFlags) -> usize {
        let signal =
            FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS | FeatureFlags::CHANNEL_INTERRUPT_REDIRECTION;
        match self {
            Self::OfferChannel(_) if version == Version::V1 => 190,
            Self::OpenChannel(_) if !features.intersects(signal) => 148,
            Self::InitiateContact(_) if !features.contains(FeatureFlags::CLIENT_ID) => 40,
            Self::VersionResponse(_) if version < Version::Copper => 16,
            Self::VersionResponse(response) if response.supported == 0 => 16,
            Self::VersionResponse(_) if !features.contains(FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES) => {
                20
            }
            Self::TlConnectRequest(_) if version < Version::Win10Rs5 => 40,
            other => other.info().full_size,
        }
    }
}

/// The first bytes of `body` as a structure, zeros where it is shorter; and what follows.
fn padded<T: FromBytes + IntoBytes + KnownLayout + Immutable>(body: &[u8]) -> (T, &[u8]) {
    let mut value = T::new_zeroed();
    let (head, tail) = body.split_at(body.len().min(size_of::<T>()));
    value.as_mut_bytes()[..head.len()].copy_from_slice(head);
    (value, tail)
}

/// An encoded control message, at most [`MAX_PAYLOAD`] bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    len: usize,
    bytes: [u8; MAX_PAYLOAD],
}

impl Payload {
    fn push(&mut self, bytes: &[u8]) {
        let room = MAX_PAYLOAD - self.len;
        let bytes = &bytes[..bytes.len().min(room)];
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:02x?}", &**self)
    }
}
