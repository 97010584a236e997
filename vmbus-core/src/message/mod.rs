//! The control messages of the bus, 1 to 29, from one table.
//!
//! The table gives each message its number, direction, first version, feature gate and the shortest payload that is
//! accepted; the parser, the printer and the protocol documentation come from it. Layouts are those of
//! `docs/src/protocol/control.md`; every size and offset there counts the 8-byte header, which the structures here
//! leave out.

mod layouts;
mod user_defined;

use core::fmt;
use core::ops::Deref;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{FeatureFlags, Guid, Version};

pub use layouts::*;
pub use user_defined::{HvsockOffer, PipeMode, UserDefined};

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
    /// The name in the specification.
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
    /// Whether a piece of a page list follows.
    pub has_pages: bool,
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

/// The table: `number Structure "NAME" Direction FirstVersion gate minimum-size [+ pages]`. `pages` marks the messages whose
/// structure is followed by a piece of a page list.
macro_rules! messages {
    ($($number:literal $name:ident $specified:literal $direction:ident $version:ident $gate:expr, $minimum:literal $(+ $tail:ident)?;)*) => {
        /// One control message, decoded. Fields that an older or shorter form lacks are zero.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Message<'a> {
            $(#[doc = concat!($specified, ", message ", stringify!($number), ".")]
              $name($name $(, messages!(@$tail type 'a))?),)*
        }

        /// The table of all messages, in order of their numbers.
        pub const MESSAGES: &[MessageInfo] = &[$(MessageInfo {
            number: $number,
            name: $specified,
            direction: Direction::$direction,
            first_version: Version::$version,
            gate: $gate,
            minimum_size: $minimum,
            full_size: HEADER_SIZE + size_of::<$name>(),
            has_pages: messages!(@has_pages $($tail)?),
        },)*];

        impl<'a> Message<'a> {
            /// What the table says of this message.
            pub fn info(&self) -> &'static MessageInfo {
                let number: usize = match self { $(Self::$name(..) => $number,)* };
                &MESSAGES[number - 1]
            }

            /// The structure's bytes and the piece of a page list after them.
            fn parts(&self) -> (&[u8], &'a [u8]) {
                match self { $(messages!(@pattern $name body pages $($tail)?) => {
                    messages!(@parts body pages $($tail)?)
                })* }
            }

            /// `None` for a number that is not in the table.
            fn from_parts(number: u32, bytes: &'a [u8]) -> Option<Self> {
                match number {
                    $($number => {
                        let (body, _pages) = padded::<$name>(bytes);
                        Some(messages!(@pattern $name body _pages $($tail)?))
                    })*
                    _ => None,
                }
            }
        }

        $(messages!(@from $name $($tail)?);)*

        by_direction!([] [] $($direction $name)*);
    };
    (@pages type $lifetime:lifetime) => { &$lifetime [u8] };
    (@has_pages) => { false };
    (@has_pages pages) => { true };
    (@pattern $name:ident $body:ident $pages:ident) => { Self::$name($body) };
    (@pattern $name:ident $body:ident $pages:ident pages) => { Self::$name($body, $pages) };
    (@parts $body:ident $pages:ident) => { ($body.as_bytes(), &[]) };
    (@parts $body:ident $pages:ident pages) => { ($body.as_bytes(), *$pages) };
    (@from $name:ident) => {
        impl From<$name> for Message<'_> {
            fn from(message: $name) -> Self {
                Self::$name(message)
            }
        }
    };
    (@from $name:ident pages) => {};
}

/// Patterns from the table: `to_host!()` and `to_guest!()` match the messages of one direction, so that whoever can
/// only receive the other matches all of them and yet repeats no list.
macro_rules! by_direction {
    ($to_host:tt [$($to_guest:ident)*] ToGuest $name:ident $($rest:tt)*) => {
        by_direction!($to_host [$($to_guest)* $name] $($rest)*);
    };
    ([$($to_host:ident)*] $to_guest:tt ToHost $name:ident $($rest:tt)*) => {
        by_direction!([$($to_host)* $name] $to_guest $($rest)*);
    };
    ([$($to_host:ident)*] [$($to_guest:ident)*]) => {
        macro_rules! to_host {
            () => { $($crate::message::Message::$to_host(..))|* };
        }
        macro_rules! to_guest {
            () => { $($crate::message::Message::$to_guest(..))|* };
        }
    };
}

const NONE: FeatureFlags = FeatureFlags::empty();

messages! {
    1  OfferChannel             "OFFERCHANNEL"               ToGuest V1       NONE, 190;
    2  RescindChannelOffer      "RESCIND_CHANNELOFFER"       ToGuest V1       NONE, 12;
    3  RequestOffers            "REQUESTOFFERS"              ToHost  V1       NONE, 8;
    4  AllOffersDelivered       "ALLOFFERS_DELIVERED"        ToGuest V1       NONE, 8;
    5  OpenChannel              "OPENCHANNEL"                ToHost  V1       NONE, 148;
    6  OpenChannelResult        "OPENCHANNEL_RESULT"         ToGuest V1       NONE, 20;
    7  CloseChannel             "CLOSECHANNEL"               ToHost  V1       NONE, 12;
    8  GpadlHeader              "GPADL_HEADER"               ToHost  V1       NONE, 20 + pages;
    9  GpadlBody                "GPADL_BODY"                 ToHost  V1       NONE, 16 + pages;
    10 GpadlCreated             "GPADL_CREATED"              ToGuest V1       NONE, 20;
    11 GpadlTeardown            "GPADL_TEARDOWN"             ToHost  V1       NONE, 16;
    12 GpadlTorndown            "GPADL_TORNDOWN"             ToGuest V1       NONE, 12;
    13 RelidReleased            "RELID_RELEASED"             ToHost  V1       NONE, 12;
    14 InitiateContact          "INITIATE_CONTACT"           ToHost  V1       NONE, 40;
    15 VersionResponse          "VERSION_RESPONSE"           ToGuest V1       NONE, 10;
    16 Unload                   "UNLOAD"                     ToHost  V1       NONE, 8;
    17 UnloadResponse           "UNLOAD_RESPONSE"            ToGuest Win7     NONE, 8;
    18 OpenReservedChannel      "OPEN_RESERVED_CHANNEL"      ToHost  Win10    NONE, 28;
    19 CloseReservedChannel     "CLOSE_RESERVED_CHANNEL"     ToHost  Win10    NONE, 20;
    20 CloseReservedResponse    "CLOSE_RESERVED_RESPONSE"    ToGuest Win10    NONE, 12;
    21 TlConnectRequest         "TL_CONNECT_REQUEST"         ToHost  Win10    NONE, 40;
    22 ModifyChannel            "MODIFYCHANNEL"              ToHost  Win10Rs3 NONE, 16;
    23 TlConnectResult          "TL_CONNECT_RESULT"          ToGuest Win10Rs3 NONE, 44;
    24 ModifyChannelResponse    "MODIFYCHANNEL_RESPONSE"     ToGuest Iron     NONE, 16;
    25 ModifyConnection         "MODIFY_CONNECTION"          ToHost  Copper   FeatureFlags::MODIFY_CONNECTION, 24;
    26 ModifyConnectionResponse "MODIFY_CONNECTION_RESPONSE" ToGuest Copper   FeatureFlags::MODIFY_CONNECTION, 9;
    27 Pause                    "PAUSE"                      ToHost  Copper   FeatureFlags::PAUSE_RESUME, 8;
    28 PauseResponse            "PAUSE_RESPONSE"             ToGuest Copper   FeatureFlags::PAUSE_RESUME, 8;
    29 Resume                   "RESUME"                     ToHost  Copper   FeatureFlags::PAUSE_RESUME, 8;
}

pub(crate) use {to_guest, to_host};

impl<'a> Message<'a> {
    /// Decodes a payload that goes in `direction`. Surplus bytes are ignored.
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
        let message = Self::from_parts(number, body).ok_or(MessageError::Unknown(number))?;
        let minimum = message.shortest(negotiated.map(|(version, _)| version));
        if len < minimum {
            return Err(MessageError::TooShort { number, len, minimum });
        }
        Ok(message.without_cut_fields(len, negotiated.map(|(version, _)| version)))
    }

    /// The message without those fields of its longer form that are missing or cut off: which form it is is decided by
    /// its length alone.
    fn without_cut_fields(mut self, len: usize, version: Option<Version>) -> Self {
        match &mut self {
            Self::OfferChannel(offer) if len < 196 => {
                (offer.is_dedicated, offer.connection_id) = Default::default();
            }
            Self::OpenChannel(open) if len < 156 => {
                (open.connection_id, open.event_flag, open.flags) = Default::default();
            }
            Self::InitiateContact(contact) if len < 56 => contact.client_id = Guid::ZERO,
            Self::VersionResponse(response) if len < 40 => {
                (response.parent_to_child_monitor, response.child_to_parent_monitor) = Default::default();
                if len < 20 {
                    response.features = Default::default();
                }
                if len < 16 {
                    response.version_or_connection_id = Default::default();
                }
            }
            Self::TlConnectRequest(request)
                if len < 56 || version.is_some_and(|version| version < Version::Win10Rs5) =>
            {
                request.silo_id = Guid::ZERO;
            }
            _ => {}
        }
        self
    }

    /// The payload in the form that `version` and `features` prescribe.
    ///
    /// A page list that does not fit is cut: split it by [`GPADL_HEADER_ROOM`] and [`GPADL_BODY_ROOM`].
    pub fn encode(&self, version: Version, features: FeatureFlags) -> Payload {
        let (body, pages) = self.parts();
        let size = self.wire_size(version, features) - HEADER_SIZE;
        let mut payload = Payload::default();
        payload.push(&self.info().number.to_le_bytes());
        payload.push(&[0; 4]);
        payload.push(&body[..size]);
        payload.push(pages);
        payload
    }

    /// The shortest payload accepted where the version, or a field of the message itself, asks for more than the table.
    fn shortest(&self, version: Option<Version>) -> usize {
        match self {
            Self::OfferChannel(_) if version.is_some_and(|version| version > Version::V1) => 196,
            Self::InitiateContact(contact) if contact.has_client_id() => 56,
            other => other.info().minimum_size,
        }
    }

    /// Size of the payload without page list, header included.
    fn wire_size(&self, version: Version, features: FeatureFlags) -> usize {
        let signal =
            FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS | FeatureFlags::CHANNEL_INTERRUPT_REDIRECTION;
        match self {
            Self::OfferChannel(_) if version == Version::V1 => 190,
            Self::OpenChannel(_) if !features.intersects(signal) => 148,
            Self::InitiateContact(contact) if !contact.has_client_id() => 40,
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
    len: u8,
    bytes: [u8; MAX_PAYLOAD],
}

impl Payload {
    /// A copy of `bytes`, or `None` if they are more than [`MAX_PAYLOAD`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut payload = Self::default();
        payload.push(bytes);
        (payload.len() == bytes.len()).then_some(payload)
    }

    /// Its length in bytes, as message slots state it.
    pub fn size(&self) -> u8 {
        self.len
    }

    /// Appends what fits.
    fn push(&mut self, bytes: &[u8]) {
        let room = &mut self.bytes[usize::from(self.len)..];
        let fitting = bytes.len().min(room.len());
        room[..fitting].copy_from_slice(&bytes[..fitting]);
        // At most MAX_PAYLOAD in all.
        self.len += u8::try_from(fitting).unwrap_or(u8::MAX - self.len);
    }
}

impl Default for Payload {
    fn default() -> Self {
        Self { len: 0, bytes: [0; MAX_PAYLOAD] }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:02x?}", &**self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(number: u32, len: usize) -> alloc::vec::Vec<u8> {
        let mut payload = number.to_le_bytes().to_vec();
        payload.resize(len, 0);
        payload
    }

    #[test]
    fn a_message_is_unknown_before_its_version_and_without_its_feature() {
        for info in MESSAGES {
            let payload = header(info.number, 240);
            for version in Version::ALL {
                let features = if version == Version::Copper { info.gate } else { FeatureFlags::empty() };
                let known = Message::parse(&payload, info.direction, Some((version, features))).is_ok();
                assert_eq!(known, version >= info.first_version, "{} in {version}", info.name);
            }
            let without = Message::parse(&payload, info.direction, Some((Version::Copper, !info.gate)));
            let gated = Err(MessageError::NotNegotiated(info.number));
            assert_eq!(without == gated, !info.gate.is_empty(), "{}", info.name);
        }
    }

    #[test]
    fn what_is_no_message_says_why() {
        let parse = |payload: &[u8]| Message::parse(payload, Direction::ToHost, None).map(|_| ());
        assert_eq!(parse(&[3, 0, 0, 0]), Err(MessageError::TooShort { number: 0, len: 4, minimum: 8 }));
        for number in [0, 30, u32::MAX] {
            assert_eq!(parse(&header(number, 240)), Err(MessageError::Unknown(number)));
        }
        assert_eq!(parse(&header(3, 240)), Ok(()));
        assert_eq!(parse(&header(3, 241)), Err(MessageError::TooLong(241)));
    }

    #[test]
    fn a_refusal_is_short_in_every_version() {
        let refusal = Message::from(VersionResponse::default());
        for version in Version::ALL {
            assert_eq!(refusal.encode(version, FeatureFlags::all()).len(), 16, "{version}");
        }
    }

    #[test]
    fn a_piece_of_a_page_list_beyond_the_room_is_cut() {
        let body = Message::GpadlBody(GpadlBody::default(), &[7; 300]);
        assert_eq!(body.encode(Version::V1, FeatureFlags::empty()).len(), MAX_PAYLOAD);
    }
}
