//! The hypervisor's side of a message and a signal: the message slot, the input of the two hypercalls that post and
//! signal, and where event and monitor bits lie in their pages (`docs/src/protocol/control.md`, "Envelope" and
//! "Signals").
//!
//! Calling a hypercall, registers and interrupts are not here.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::HvStatus;
use crate::message::{MAX_PAYLOAD, Payload};
use crate::wire::{open_values, wire_struct};

/// The synthetic interrupt source that the bus uses.
pub const SINT: u8 = 2;
/// Connection to which messages are posted up to version 4.1.
pub const MESSAGE_CONNECTION: u32 = 1;
/// Connection to which a contact for version 5.0 or later is posted.
pub const MULTI_CLIENT_MESSAGE_CONNECTION: u32 = 4;
/// Connection that old guests signal for all channels.
pub const EVENT_CONNECTION: u32 = 2;
/// Size of a message slot, of a SINT's event flags and of the input of HvPostMessage, in bytes.
pub const SLOT_SIZE: usize = 256;
/// Event flags of one SINT.
pub const EVENT_FLAGS: u16 = 2048;

/// The connection that a guest signals for one channel, where neither end has chosen another: [`SINT`] × 4096, the
/// channel id and the worker × 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelConnection {
    /// Channel id, 1 to 2047.
    pub relid: u32,
    /// Which of the root's workers it wakes, 0 to 255: 0 unless the root offers others.
    pub worker: u32,
}

impl ChannelConnection {
    const CHANNEL: u32 = (SINT as u32) << 12;
    const RELIDS: u32 = EVENT_FLAGS as u32 - 1;

    /// The connection id.
    pub const fn id(self) -> u32 {
        Self::CHANNEL | self.relid | self.worker << 16
    }

    /// The channel and worker of a connection id, or `None` for one that is not of this form. Channel id 0 is no
    /// channel's, and let through: a guest signals it for none in particular.
    #[inline]
    pub const fn of(connection_id: u32) -> Option<Self> {
        let (worker, low) = (connection_id >> 16, connection_id & 0xffff);
        if low & !Self::RELIDS != Self::CHANNEL {
            return None;
        }
        Some(Self { relid: low & Self::RELIDS, worker })
    }

    /// The event flag, of the worker's, that a signal on it sets.
    #[inline]
    pub const fn flag(self) -> u16 {
        (self.relid & Self::RELIDS) as u16
    }
}

open_values! {
    /// What a message slot holds. Bit 31 is set in messages of the hypervisor itself.
    pub struct MessageType(u32) {
        /// Nothing: the slot is free.
        NONE = 0,
        /// A control message of the bus.
        CHANNEL = 1,
        /// Access to an address that is not there.
        UNMAPPED_GPA = 0x8000_0000,
        /// Access to an intercepted address.
        GPA_INTERCEPT = 0x8000_0001,
        /// A timer has expired, see [`TimerExpired`].
        TIMER_EXPIRED = 0x8000_0010,
        /// A register has an invalid value.
        INVALID_VP_REGISTER = 0x8000_0020,
        /// The processor cannot go on.
        UNRECOVERABLE_EXCEPTION = 0x8000_0021,
        /// The processor lacks a feature.
        UNSUPPORTED_FEATURE = 0x8000_0022,
        /// An event log is complete.
        EVENT_LOG_COMPLETE = 0x8000_0040,
    }
}

/// Why bytes are not a message slot. The fault of whoever filled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message slot with a payload of {0} bytes, at most 240 fit")]
pub struct SlotError(pub u8);

/// One slot of the message page, 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageSlot {
    /// What it holds.
    pub message_type: MessageType,
    /// Bit 0, see [`MessageSlot::PENDING`].
    pub flags: u8,
    /// Partition or port that sent it; nobody looks.
    pub sender: u64,
    /// The message.
    pub payload: Payload,
}

impl MessageSlot {
    /// Flag: another message waits for this slot.
    pub const PENDING: u8 = 0x1;

    /// Where the slot of `sint` lies in the message page.
    pub const fn offset(sint: u8) -> usize {
        SLOT_SIZE * (sint as usize % 16)
    }

    /// Reads a copy of a slot.
    pub fn parse(bytes: &[u8; SLOT_SIZE]) -> Result<Self, SlotError> {
        let (header, room) = bytes.split_at(SLOT_SIZE - MAX_PAYLOAD);
        let header = SlotHeader::read_from_bytes(header).unwrap_or_default();
        let payload = room.get(..usize::from(header.payload_size)).and_then(Payload::new);
        Ok(Self {
            message_type: MessageType(header.message_type.get()),
            flags: header.flags,
            sender: header.sender.get(),
            payload: payload.ok_or(SlotError(header.payload_size))?,
        })
    }

    /// The slot's bytes.
    pub fn to_bytes(&self) -> [u8; SLOT_SIZE] {
        let header = SlotHeader {
            message_type: U32::new(self.message_type.0),
            payload_size: self.payload.size(),
            flags: self.flags,
            reserved: U16::ZERO,
            sender: U64::new(self.sender),
        };
        with_payload(header.as_bytes(), &self.payload)
    }
}

/// Input of HvPostMessage, 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostMessage {
    /// Where to, 24 bits.
    pub connection_id: u32,
    /// What, [`MessageType::CHANNEL`] on the bus.
    pub message_type: MessageType,
    /// The message.
    pub payload: Payload,
}

impl PostMessage {
    /// Reads a private copy of the input. The error is what the hypercall returns to the guest, whose fault it is.
    pub fn parse(bytes: &[u8; SLOT_SIZE]) -> Result<Self, HvStatus> {
        let (header, room) = bytes.split_at(SLOT_SIZE - MAX_PAYLOAD);
        let header = PostHeader::read_from_bytes(header).unwrap_or_default();
        let message_type = header.message_type.get();
        if message_type == 0 || message_type >> 31 == 1 {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let payload = room.get(..header.payload_size.get() as usize).and_then(Payload::new);
        Ok(Self {
            connection_id: header.connection_id.get(),
            message_type: MessageType(message_type),
            payload: payload.ok_or(HvStatus::INVALID_PARAMETER)?,
        })
    }

    /// The input's bytes.
    pub fn to_bytes(&self) -> [u8; SLOT_SIZE] {
        let header = PostHeader {
            connection_id: U32::new(self.connection_id),
            reserved: U32::ZERO,
            message_type: U32::new(self.message_type.0),
            payload_size: U32::new(u32::from(self.payload.size())),
        };
        with_payload(header.as_bytes(), &self.payload)
    }
}

wire_struct! {
    /// Input of HvSignalEvent, 8 bytes in memory or in one register.
    pub struct SignalEvent {
        /// Where to, 24 bits.
        pub connection_id: U32,
        /// Which flag, counted from the connection's first.
        pub flag: U16,
        /// 0.
        pub reserved: U16,
    }
}

impl SignalEvent {
    /// The input of the fast form.
    pub const fn from_register(value: u64) -> Self {
        zerocopy::transmute!(value.to_le_bytes())
    }

    /// The register for the fast form.
    pub const fn to_register(self) -> u64 {
        u64::from_le_bytes(zerocopy::transmute!(self))
    }
}

wire_struct! {
    /// Payload of a timer message, 24 bytes.
    pub struct TimerExpired {
        /// Which timer.
        pub timer: U32,
        /// 0.
        pub reserved: U32,
        /// When it was to expire, in units of 100 ns.
        pub expiration: U64,
        /// When the message was delivered, in units of 100 ns.
        pub delivery: U64,
    }
}

wire_struct! {
    /// Start of the reference TSC page: time from the time stamp counter.
    pub struct ReferenceTsc {
        /// 0: the page is not valid. Changes with the values below.
        pub sequence: U32,
        /// 0.
        pub reserved: U32,
        /// 2^64 × units of 100 ns per tick.
        pub scale: U64,
        /// Time at tick 0, in units of 100 ns.
        pub offset: I64,
    }
}

impl ReferenceTsc {
    /// The time at this tick, in units of 100 ns; `None` if the page is not valid.
    pub fn time(&self, tick: u64) -> Option<u64> {
        if self.sequence.get() == 0 {
            return None;
        }
        let product = u128::from(tick) * u128::from(self.scale.get());
        let high = u64::try_from(product >> 64).ok()?;
        Some(high.wrapping_add_signed(self.offset.get()))
    }
}

/// A bit in a page: byte offset and mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBit {
    /// Byte in the page.
    pub byte: usize,
    /// Bit in that byte.
    pub mask: u8,
}

impl PageBit {
    /// Event flag `flag` (below [`EVENT_FLAGS`]) of `sint` in the event-flags page.
    pub const fn event_flag(sint: u8, flag: u16) -> Self {
        Self::at(MessageSlot::offset(sint), flag % EVENT_FLAGS)
    }

    /// Bit of `relid` in the host-to-guest half of the interrupt page (before version 5.0).
    pub const fn interrupt_to_guest(relid: u16) -> Self {
        Self::at(0, relid % 0x4000)
    }

    /// Bit of `relid` in the guest-to-host half of the interrupt page (before version 5.0).
    pub const fn interrupt_to_host(relid: u16) -> Self {
        Self::at(0x800, relid % 0x4000)
    }

    const fn at(start: usize, bit: u16) -> Self {
        Self { byte: start + bit as usize / 8, mask: 1 << (bit % 8) }
    }
}

/// Where what belongs to one monitor id, 0 to 127, lies in a monitor page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonitorPlace {
    /// Group of 32 ids.
    pub group: u8,
    /// Offset of the u32 of pending bits of the group.
    pub pending: usize,
    /// Bit in it.
    pub mask: u32,
    /// Offset of the u16 latency, in units of 100 ns.
    pub latency: usize,
    /// Offset of connection id u32, flag u16, reserved u16.
    pub parameter: usize,
}

impl MonitorPlace {
    /// Number of monitor ids.
    pub const COUNT: u8 = 128;

    /// The place of `id`, or `None` if there is no such id.
    pub const fn of(id: u8) -> Option<Self> {
        if id >= Self::COUNT {
            return None;
        }
        let index = id as usize;
        Some(Self {
            group: id / 32,
            pending: 0x8 + index / 32 * 8,
            mask: 1 << (id % 32),
            latency: 0x240 + 2 * index,
            parameter: 0x440 + 8 * index,
        })
    }
}

wire_struct! {
    struct SlotHeader {
        message_type: U32,
        payload_size: u8,
        flags: u8,
        reserved: U16,
        sender: U64,
    }
}
wire_struct! {
    struct PostHeader {
        connection_id: U32,
        reserved: U32,
        message_type: U32,
        payload_size: U32,
    }
}

fn with_payload(header: &[u8], payload: &Payload) -> [u8; SLOT_SIZE] {
    let mut bytes = [0; SLOT_SIZE];
    bytes[..header.len()].copy_from_slice(header);
    bytes[header.len()..][..payload.len()].copy_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_size_beyond_the_slot_is_refused() {
        let mut bytes = [0; SLOT_SIZE];
        bytes[4] = 240;
        assert_eq!(MessageSlot::parse(&bytes).map(|slot| slot.payload.len()), Ok(240));
        bytes[4] = 241;
        assert_eq!(MessageSlot::parse(&bytes), Err(SlotError(241)));
    }

    #[test]
    fn a_guest_may_post_neither_nothing_nor_in_the_hypervisors_name_nor_too_much() {
        let mut bytes = [0; SLOT_SIZE];
        for (message_type, size, expected) in [
            (0_u32, 8_u32, Err(HvStatus::INVALID_PARAMETER)),
            (0x8000_0010, 8, Err(HvStatus::INVALID_PARAMETER)),
            (1, 241, Err(HvStatus::INVALID_PARAMETER)),
            (1, u32::MAX, Err(HvStatus::INVALID_PARAMETER)),
            (1, 240, Ok(240)),
        ] {
            bytes[8..12].copy_from_slice(&message_type.to_le_bytes());
            bytes[12..16].copy_from_slice(&size.to_le_bytes());
            assert_eq!(PostMessage::parse(&bytes).map(|post| post.payload.len()), expected);
        }
    }

    #[test]
    fn bits_of_a_relid() {
        for (relid, byte, mask) in [
            (1, 0x0, 0x02),
            (5, 0x0, 0x20),
            (31, 0x3, 0x80),
            (32, 0x4, 0x01),
            (64, 0x8, 1),
            (2047, 0xff, 0x80),
        ] {
            assert_eq!(PageBit::event_flag(SINT, relid), PageBit { byte: 0x200 + byte, mask });
            assert_eq!(PageBit::interrupt_to_guest(relid), PageBit { byte, mask });
            assert_eq!(PageBit::interrupt_to_host(relid), PageBit { byte: 0x800 + byte, mask });
        }
    }

    #[test]
    fn connections_of_channels() {
        for (relid, worker, id) in
            [(1, 0, 0x2001), (9, 1, 0x1_2009), (2047, 0, 0x27ff), (2047, 255, 0xff_27ff), (0, 0, 0x2000)]
        {
            let connection = ChannelConnection { relid, worker };
            assert_eq!(connection.id(), id);
            assert_eq!(ChannelConnection::of(id), Some(connection));
            assert_eq!(u32::from(connection.flag()), relid);
        }
    }

    #[test]
    fn a_connection_that_is_no_channels_is_taken_for_none() {
        for id in [
            0,
            1,
            EVENT_CONNECTION,
            MULTI_CLIENT_MESSAGE_CONNECTION,
            0x1fff,
            0x2800,
            0x3001,
            0xa001,
            0x12_3456,
        ] {
            assert_eq!(ChannelConnection::of(id), None, "{id:#x}");
        }
    }

    #[test]
    fn places_of_a_monitor_id() {
        for (id, group, pending, mask, latency, parameter) in [
            (0, 0, 0x8, 1, 0x240, 0x440),
            (3, 0, 0x8, 8, 0x246, 0x458),
            (31, 0, 0x8, 1 << 31, 0x27e, 0x538),
            (32, 1, 0x10, 1, 0x280, 0x540),
            (127, 3, 0x20, 1 << 31, 0x33e, 0x838),
        ] {
            let place = MonitorPlace { group, pending, mask, latency, parameter };
            assert_eq!(MonitorPlace::of(id), Some(place));
        }
        assert_eq!(MonitorPlace::of(128), None);
    }
}
