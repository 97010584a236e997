//! The VSTOR packet: operation, flags, status, and a payload that the operation gives its meaning.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Srb};
use crate::Status;
use crate::wire::{open_values, wire_struct};

open_values! {
    /// What a packet asks for or says.
    pub struct Operation(u32) {
        /// Host to guest: completes any request.
        COMPLETE_IO = 1,
        /// Host to guest, unasked: look which disks are still there.
        REMOVE_DEVICE = 2,
        /// Runs a SCSI command.
        EXECUTE_SRB = 3,
        /// Resets one unit.
        RESET_LUN = 4,
        /// Resets the adapter.
        RESET_ADAPTER = 5,
        /// Resets the bus.
        RESET_BUS = 6,
        /// Starts the conversation.
        BEGIN_INITIALIZATION = 7,
        /// From now on commands are run.
        END_INITIALIZATION = 8,
        /// Proposes a version.
        QUERY_PROTOCOL_VERSION = 9,
        /// Asks for [`Properties`].
        QUERY_PROPERTIES = 10,
        /// Host to guest, unasked: look for new disks.
        ENUMERATE_BUS = 11,
        /// Fibre Channel: asks for [`WorldWideNames`].
        FCHBA_DATA = 12,
        /// Asks for sub-channels.
        CREATE_SUB_CHANNELS = 13,
        /// Host to guest, unasked: something about one unit.
        EVENT_NOTIFICATION = 14,
    }
}

bitflags::bitflags! {
    /// Flags of a packet.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PacketFlags: u32 {
        /// The sender wants an answer.
        const REQUEST_COMPLETION = 0x1;
        const _ = !0;
    }
}

/// A packet taken apart. Payload bytes that a shorter form lacks are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is for.
    pub operation: Operation,
    /// [`PacketFlags`].
    pub flags: PacketFlags,
    /// The result, in a completion.
    pub status: Status,
    payload: [u8; Self::MAX_PAYLOAD],
    received: usize,
}

/// Why bytes are not a packet, or not a request. Always the sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The packet is shorter than its header or than its operation's payload.
    #[error("storage packet of {len} bytes, {needed} are needed")]
    TooShort {
        /// Bytes received.
        len: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// A guest does not send this operation, or nobody knows it.
    #[error("operation {0} is no request")]
    NotARequest(Operation),
}

impl Packet {
    /// Size of what stands before the payload, in bytes.
    pub const HEADER_SIZE: usize = 12;
    /// Size of the longest payload, in bytes.
    pub const MAX_PAYLOAD: usize = 0x34;
    /// Size of the longest packet, in bytes; see [`Version::packet_size`](super::Version::packet_size).
    pub const MAX_SIZE: usize = Self::HEADER_SIZE + Self::MAX_PAYLOAD;

    /// Reads a packet of either size. Surplus bytes are ignored.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, PacketError> {
        let Ok((header, rest)) = Header::read_from_prefix(bytes) else {
            return Err(PacketError::TooShort { len: bytes.len(), needed: Self::HEADER_SIZE });
        };
        let received = rest.len().min(Self::MAX_PAYLOAD);
        let payload = match rest.first_chunk() {
            // What nearly every packet is: a copy of constant size.
            Some(whole) => *whole,
            None => {
                let mut payload = [0; Self::MAX_PAYLOAD];
                payload[..received].copy_from_slice(rest);
                payload
            }
        };
        Ok(Self {
            operation: Operation(header.operation.get()),
            flags: PacketFlags::from_bits_retain(header.flags.get()),
            status: Status(header.status.get()),
            payload,
            received,
        })
    }

    /// The packet in its long form. Send the first [`Version::packet_size`](super::Version::packet_size) bytes.
    pub fn to_bytes(&self) -> [u8; Self::MAX_SIZE] {
        let header = Header {
            operation: U32::new(self.operation.0),
            flags: U32::new(self.flags.bits()),
            status: U32::new(self.status.0),
        };
        let mut bytes = [0; Self::MAX_SIZE];
        bytes[..Self::HEADER_SIZE].copy_from_slice(header.as_bytes());
        bytes[Self::HEADER_SIZE..].copy_from_slice(&self.payload);
        bytes
    }

    /// The request in a packet from a guest.
    #[inline]
    pub fn request(&self) -> Result<Request, PacketError> {
        Ok(match self.operation {
            Operation::EXECUTE_SRB => Request::ExecuteSrb(self.srb()?),
            Operation::RESET_LUN => Request::ResetLun(self.srb()?.address()),
            Operation::RESET_ADAPTER => Request::ResetAdapter,
            Operation::RESET_BUS => Request::ResetBus,
            Operation::BEGIN_INITIALIZATION => Request::BeginInitialization,
            Operation::END_INITIALIZATION => Request::EndInitialization,
            Operation::QUERY_PROTOCOL_VERSION => {
                let payload: VersionPayload = self.payload()?;
                Request::QueryProtocolVersion {
                    version: payload.version.get(),
                    revision: payload.revision.get(),
                }
            }
            Operation::QUERY_PROPERTIES => Request::QueryProperties,
            Operation::FCHBA_DATA => Request::FibreChannelData,
            Operation::CREATE_SUB_CHANNELS => Request::CreateSubChannels(self.payload::<U16>()?.get()),
            other => return Err(PacketError::NotARequest(other)),
        })
    }

    /// What the host says unasked, or `None` if this packet is something else.
    pub fn notice(&self) -> Option<Notice> {
        match self.operation {
            Operation::REMOVE_DEVICE => Some(Notice::RemoveDevice),
            Operation::ENUMERATE_BUS => Some(Notice::EnumerateBus),
            Operation::EVENT_NOTIFICATION => self.payload().ok().map(Notice::Event),
            _ => None,
        }
    }

    /// The completion of a request, without payload.
    pub fn completion(status: Status) -> Self {
        Self::new(Operation::COMPLETE_IO, PacketFlags::empty(), status, &[])
    }

    /// The completion that accepts a version: it echoes the word.
    pub fn version_completion(status: Status, version: u16) -> Self {
        let payload = VersionPayload { version: U16::new(version), revision: U16::ZERO };
        Self::new(Operation::COMPLETE_IO, PacketFlags::empty(), status, payload.as_bytes())
    }

    /// The completion of QUERY_PROPERTIES.
    pub fn properties_completion(properties: &Properties) -> Self {
        Self::new(Operation::COMPLETE_IO, PacketFlags::empty(), Status::SUCCESS, properties.as_bytes())
    }

    /// The completion of FCHBA_DATA.
    pub fn names_completion(names: &WorldWideNames) -> Self {
        Self::new(Operation::COMPLETE_IO, PacketFlags::empty(), Status::SUCCESS, names.as_bytes())
    }

    /// The completion of EXECUTE_SRB; the packet's status follows from the SRB's.
    pub fn srb_completion(answer: &Srb) -> Self {
        let status = answer.srb_status().to_status();
        Self::new(Operation::COMPLETE_IO, PacketFlags::empty(), status, answer.as_bytes())
    }

    /// The SCSI request block of an EXECUTE_SRB or its completion.
    pub fn srb(&self) -> Result<Srb, PacketError> {
        // The tail from offset 0x24 on is missing in the short form.
        self.require(Srb::SHORT_SIZE)?;
        Ok(Srb::from_payload(&self.payload))
    }

    /// The properties in a completion of QUERY_PROPERTIES.
    pub fn properties(&self) -> Result<Properties, PacketError> {
        self.payload()
    }

    /// The names in a completion of FCHBA_DATA.
    pub fn names(&self) -> Result<WorldWideNames, PacketError> {
        self.payload()
    }

    /// The version word in a completion of QUERY_PROTOCOL_VERSION. Some hosts leave it 0.
    pub fn version(&self) -> Result<u16, PacketError> {
        Ok(self.payload::<VersionPayload>()?.version.get())
    }

    fn new(operation: Operation, flags: PacketFlags, status: Status, from: &[u8]) -> Self {
        let mut payload = [0; Self::MAX_PAYLOAD];
        payload[..from.len()].copy_from_slice(from);
        Self { operation, flags, status, payload, received: Self::MAX_PAYLOAD }
    }

    fn payload<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<T, PacketError> {
        self.require(size_of::<T>())?;
        T::read_from_prefix(&self.payload).map(|(value, _)| value).map_err(|_| self.too_short(size_of::<T>()))
    }

    fn require(&self, size: usize) -> Result<(), PacketError> {
        if self.received < size { Err(self.too_short(size)) } else { Ok(()) }
    }

    fn too_short(&self, size: usize) -> PacketError {
        PacketError::TooShort { len: Self::HEADER_SIZE + self.received, needed: Self::HEADER_SIZE + size }
    }
}

/// What a guest asks for. Every request is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Run a SCSI command.
    ExecuteSrb(Srb),
    /// Reset one unit.
    ResetLun(Address),
    /// Reset the adapter.
    ResetAdapter,
    /// Reset the bus.
    ResetBus,
    /// Start.
    BeginInitialization,
    /// From now on commands are run.
    EndInitialization,
    /// Propose a version.
    QueryProtocolVersion {
        /// [`Version::word`](super::Version::word), perhaps of a version nobody knows.
        version: u16,
        /// Build of the proposer, for information.
        revision: u16,
    },
    /// Ask for [`Properties`].
    QueryProperties,
    /// Ask for [`WorldWideNames`].
    FibreChannelData,
    /// Ask for this many sub-channels.
    CreateSubChannels(u16),
}

impl Request {
    /// The packet that makes this request.
    pub fn to_packet(&self) -> Packet {
        let packet = |operation, payload: &[u8]| {
            Packet::new(operation, PacketFlags::REQUEST_COMPLETION, Status::SUCCESS, payload)
        };
        match self {
            Self::ExecuteSrb(srb) => packet(Operation::EXECUTE_SRB, srb.as_bytes()),
            Self::ResetLun(address) => packet(Operation::RESET_LUN, Srb::at(*address).as_bytes()),
            Self::ResetAdapter => packet(Operation::RESET_ADAPTER, &[]),
            Self::ResetBus => packet(Operation::RESET_BUS, &[]),
            Self::BeginInitialization => packet(Operation::BEGIN_INITIALIZATION, &[]),
            Self::EndInitialization => packet(Operation::END_INITIALIZATION, &[]),
            Self::QueryProtocolVersion { version, revision } => {
                let payload = VersionPayload { version: U16::new(*version), revision: U16::new(*revision) };
                packet(Operation::QUERY_PROTOCOL_VERSION, payload.as_bytes())
            }
            Self::QueryProperties => packet(Operation::QUERY_PROPERTIES, &[]),
            Self::FibreChannelData => packet(Operation::FCHBA_DATA, &[]),
            Self::CreateSubChannels(count) => packet(Operation::CREATE_SUB_CHANNELS, &count.to_le_bytes()),
        }
    }
}

/// What a host says unasked, in an in-band packet with transaction id 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A disk has gone: the guest tests all it knows.
    RemoveDevice,
    /// A disk was added or changed: the guest scans the bus.
    EnumerateBus,
    /// Something happened to one unit.
    Event(Event),
}

impl Notice {
    /// The packet that says it.
    pub fn to_packet(&self) -> Packet {
        let packet = |operation, payload: &[u8]| {
            Packet::new(operation, PacketFlags::empty(), Status::SUCCESS, payload)
        };
        match self {
            Self::RemoveDevice => packet(Operation::REMOVE_DEVICE, &[]),
            Self::EnumerateBus => packet(Operation::ENUMERATE_BUS, &[]),
            Self::Event(event) => packet(Operation::EVENT_NOTIFICATION, event.as_bytes()),
        }
    }
}

wire_struct! {
    struct Header {
        operation: U32,
        flags: U32,
        status: U32,
    }
}
wire_struct! {
    struct VersionPayload {
        version: U16,
        revision: U16,
    }
}
wire_struct! {
    /// What the channel can do.
    pub struct Properties {
        /// Not always zero before 5.1.
        pub reserved: U32,
        /// How many sub-channels may be asked for.
        pub max_sub_channels: U16,
        /// Not always zero before 5.1.
        pub reserved2: U16,
        /// [`PropertyFlags`].
        pub flags: U32,
        /// Longest transfer of one command, in bytes; at least 8 KiB.
        pub max_transfer_bytes: U32,
        /// Not always zero before 5.1.
        pub reserved3: U64,
    }
}

bitflags::bitflags! {
    /// Flags of [`Properties`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PropertyFlags: u32 {
        /// Sub-channels may be asked for.
        const MULTI_CHANNEL = 0x1;
        const _ = !0;
    }
}

wire_struct! {
    /// Names of a Fibre Channel adapter.
    pub struct WorldWideNames {
        /// Whether the primary pair is in use.
        pub primary_active: u8,
        /// 0.
        pub reserved: [u8; 3],
        /// Port name of the primary pair.
        pub primary_port: [u8; 8],
        /// Node name of the primary pair.
        pub primary_node: [u8; 8],
        /// Port name of the secondary pair.
        pub secondary_port: [u8; 8],
        /// Node name of the secondary pair.
        pub secondary_node: [u8; 8],
    }
}
wire_struct! {
    /// Payload of EVENT_NOTIFICATION. No source says what the flags mean.
    pub struct Event {
        /// The unit.
        pub lun: u8,
        /// Its target.
        pub target: u8,
        /// Its path.
        pub path: u8,
        /// Unknown.
        pub flags: u8,
    }
}
wire_struct! {
    /// What stands in the user-defined bytes of an offer, if anything does.
    pub struct OfferProperties {
        /// May hold anything.
        pub reserved: U16,
        /// Path of an IDE disk.
        pub path: u8,
        /// Target of an IDE disk.
        pub target: u8,
        /// May hold anything.
        pub reserved2: U32,
        /// [`OfferProperties::EMULATED_IDE`] or 0.
        pub flags: U32,
        /// May hold anything.
        pub reserved3: [u8; 12],
    }
}

impl OfferProperties {
    /// In [`OfferProperties::flags`]: the disk is also an emulated IDE disk.
    pub const EMULATED_IDE: u32 = 0x2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_survives_the_journey() {
        let requests = [
            Request::ExecuteSrb(Srb::at(Address { path: 0, target: 1, lun: 9 })),
            Request::ResetLun(Address { path: 1, target: 2, lun: 3 }),
            Request::ResetAdapter,
            Request::ResetBus,
            Request::BeginInitialization,
            Request::EndInitialization,
            Request::QueryProtocolVersion { version: 0x602, revision: 7 },
            Request::QueryProperties,
            Request::FibreChannelData,
            Request::CreateSubChannels(3),
        ];
        for request in requests {
            let packet = Packet::parse(&request.to_packet().to_bytes()).unwrap();
            assert_eq!(packet.flags, PacketFlags::REQUEST_COMPLETION);
            assert_eq!(packet.request(), Ok(request));
            assert_eq!(packet.notice(), None);
        }
    }

    #[test]
    fn each_notice_survives_the_journey() {
        let event = Event { lun: 1, target: 2, path: 3, flags: 4 };
        for notice in [Notice::RemoveDevice, Notice::EnumerateBus, Notice::Event(event)] {
            let packet = Packet::parse(&notice.to_packet().to_bytes()).unwrap();
            assert_eq!(packet.flags, PacketFlags::empty());
            assert_eq!(packet.notice(), Some(notice));
            assert_eq!(packet.request(), Err(PacketError::NotARequest(packet.operation)));
        }
    }

    #[test]
    fn a_packet_too_short_for_its_operation_is_refused_and_names_what_is_missing() {
        let bytes = Request::ExecuteSrb(Srb::at(Address::default())).to_packet().to_bytes();
        assert_eq!(Packet::parse(&bytes[..11]), Err(PacketError::TooShort { len: 11, needed: 12 }));
        let cut = Packet::parse(&bytes[..47]).unwrap();
        assert_eq!(cut.request(), Err(PacketError::TooShort { len: 47, needed: 48 }));
        assert!(Packet::parse(&bytes[..48]).unwrap().request().is_ok());
    }
}
