//! Structures that objects have as values (`network.md`, "NDIS structures"). Each begins with an [`ObjectHeader`];
//! whoever reads one takes what its stated size and its revision say that there is, and zeros for the rest.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::wire::wire_struct;

bitflags::bitflags! {
    /// Which frames a guest wants. None: none.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PacketFilter: u32 {
        /// To its own address.
        const DIRECTED = 0x01;
        /// To the groups in its list.
        const MULTICAST = 0x02;
        /// To all groups.
        const ALL_MULTICAST = 0x04;
        /// To everybody.
        const BROADCAST = 0x08;
        /// Source routed.
        const SOURCE_ROUTING = 0x10;
        /// All frames.
        const PROMISCUOUS = 0x20;
        /// All frames of this machine.
        const ALL_LOCAL = 0x80;
        const _ = !0;
    }

    /// Checksums of IPv4 that are done, two bits each of which the low one says so.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ChecksumV4: u32 {
        /// With IP options.
        const IP_OPTIONS = 0x001;
        /// With TCP options.
        const TCP_OPTIONS = 0x004;
        /// TCP.
        const TCP = 0x010;
        /// UDP.
        const UDP = 0x040;
        /// The IP header.
        const IP = 0x100;
        const _ = !0;
    }

    /// Checksums of IPv6 that are done.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ChecksumV6: u32 {
        /// With extension headers.
        const EXTENSION_HEADERS = 0x01;
        /// With TCP options.
        const TCP_OPTIONS = 0x04;
        /// TCP.
        const TCP = 0x10;
        /// UDP.
        const UDP = 0x40;
        const _ = !0;
    }

    /// What receive-side scaling can hash; the low bits are the function.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RssCapabilityFlags: u32 {
        /// The Toeplitz function.
        const TOEPLITZ = 0x0001;
        /// TCP over IPv4.
        const TCP_V4 = 0x0100;
        /// TCP over IPv6.
        const TCP_V6 = 0x0200;
        /// TCP over IPv6 with extension headers.
        const TCP_V6_EXTENSIONS = 0x0400;
        const _ = !0;
    }

    /// What of a set of RSS parameters counts.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RssFlags: u16 {
        /// The base processor stays.
        const BASE_CPU_UNCHANGED = 0x01;
        /// The hash information stays.
        const HASH_INFO_UNCHANGED = 0x02;
        /// The table stays.
        const TABLE_UNCHANGED = 0x04;
        /// The key stays.
        const KEY_UNCHANGED = 0x08;
        /// No scaling from now on.
        const DISABLE = 0x10;
        const _ = !0;
    }

    /// What is hashed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RssHashInfo: u32 {
        /// By the Toeplitz function.
        const TOEPLITZ = 0x0001;
        /// IPv4 addresses.
        const IPV4 = 0x0100;
        /// And TCP's ports.
        const TCP_V4 = 0x0200;
        /// IPv6 addresses.
        const IPV6 = 0x0400;
        /// With extension headers.
        const IPV6_EXTENSIONS = 0x0800;
        /// And TCP's ports.
        const TCP_V6 = 0x1000;
        /// With extension headers.
        const TCP_V6_EXTENSIONS = 0x2000;
        const _ = !0;
    }
}

/// Encapsulation of offloads: Ethernet.
pub const ENCAPSULATION_802_3: u32 = 2;

wire_struct! {
    /// In front of each structure.
    pub struct ObjectHeader {
        /// Which structure.
        pub kind: u8,
        /// Which form of it.
        pub revision: u8,
        /// Its bytes, the header's included.
        pub size: U16,
    }
}

/// A structure with a header.
pub trait Object: FromBytes + IntoBytes + Immutable + KnownLayout + Sized {
    /// What the header says of the newest form.
    const HEADER: (u8, u8, u16);

    /// Reads as much as came and as the header states; the rest is zero.
    ///
    /// # Errors
    /// [`ObjectError`]: the sender's fault.
    fn read(bytes: &[u8]) -> Result<Self, ObjectError> {
        let (kind, _, size) = Self::HEADER;
        let (header, _) =
            ObjectHeader::read_from_prefix(bytes).map_err(|_| ObjectError { kind, len: bytes.len() })?;
        if header.kind != kind {
            return Err(ObjectError { kind, len: bytes.len() });
        }
        let there = bytes.len().min(header.size.get().into()).min(size.into());
        let mut object = Self::new_zeroed();
        object.as_mut_bytes()[..there].copy_from_slice(&bytes[..there]);
        Ok(object)
    }
}

/// The header of the newest form of `T`.
pub fn header_of<T: Object>() -> ObjectHeader {
    let (kind, revision, size) = T::HEADER;
    ObjectHeader { kind, revision, size: size.into() }
}

/// Bytes that are not the structure that belongs there. The sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes that are no object of kind {kind:#x}")]
pub struct ObjectError {
    /// Kind that was expected.
    pub kind: u8,
    /// Bytes received.
    pub len: usize,
}

wire_struct! {
    /// NDIS_OFFLOAD, revision 3: what a device takes off its driver's hands.
    pub struct Offload {
        /// The header.
        pub header: ObjectHeader,
        /// Encapsulation for which IPv4 checksums are filled in.
        pub v4_transmit_encapsulation: U32,
        /// [`ChecksumV4`].
        pub v4_transmit: U32,
        /// Encapsulation for which IPv4 checksums are looked at.
        pub v4_receive_encapsulation: U32,
        /// [`ChecksumV4`].
        pub v4_receive: U32,
        /// Encapsulation for which IPv6 checksums are filled in.
        pub v6_transmit_encapsulation: U32,
        /// [`ChecksumV6`].
        pub v6_transmit: U32,
        /// Encapsulation for which IPv6 checksums are looked at.
        pub v6_receive_encapsulation: U32,
        /// [`ChecksumV6`].
        pub v6_receive: U32,
        /// Large sends, version 1: encapsulation, longest, fewest segments, options.
        pub lso_v1: [U32; 4],
        /// Not offered.
        pub ipsec_v1: [U32; 7],
        /// Large sends of IPv4, version 2: encapsulation.
        pub lso_v4_encapsulation: U32,
        /// The longest, in bytes.
        pub lso_v4_max_size: U32,
        /// The fewest segments.
        pub lso_v4_min_segments: U32,
        /// Large sends of IPv6, version 2: encapsulation.
        pub lso_v6_encapsulation: U32,
        /// The longest, in bytes.
        pub lso_v6_max_size: U32,
        /// The fewest segments.
        pub lso_v6_min_segments: U32,
        /// 1: with extension headers; 4: with TCP options.
        pub lso_v6_options: U32,
        /// 0.
        pub flags: U32,
        /// Not offered.
        pub ipsec_v2: [U32; 8],
        /// Whether segments of IPv4 are coalesced.
        pub rsc_v4: u8,
        /// Whether segments of IPv6 are.
        pub rsc_v6: u8,
        /// 0.
        pub reserved: U16,
        /// Not offered.
        pub encapsulation_flags: U32,
        /// Not offered.
        pub encapsulation_max_header: U32,
    }
}

impl Object for Offload {
    const HEADER: (u8, u8, u16) = (0xa7, 3, 156);
}

wire_struct! {
    /// NDIS_OFFLOAD_PARAMETERS, revision 3: what is switched on or off. 0 leaves a thing as it is; checksums: 1 off,
    /// 2 transmit, 3 receive, 4 both; the others: 1 off, 2 on.
    pub struct OffloadParameters {
        /// The header.
        pub header: ObjectHeader,
        /// IPv4 header checksums.
        pub ip_v4_checksum: u8,
        /// TCP over IPv4.
        pub tcp_v4_checksum: u8,
        /// UDP over IPv4.
        pub udp_v4_checksum: u8,
        /// TCP over IPv6.
        pub tcp_v6_checksum: u8,
        /// UDP over IPv6.
        pub udp_v6_checksum: u8,
        /// Large sends, version 1.
        pub lso_v1: u8,
        /// Not offered.
        pub ipsec_v1: u8,
        /// Large sends of IPv4.
        pub lso_v2_v4: u8,
        /// Large sends of IPv6.
        pub lso_v2_v6: u8,
        /// Not offered.
        pub tcp_connection_v4: u8,
        /// Not offered.
        pub tcp_connection_v6: u8,
        /// 0.
        pub reserved: u8,
        /// 0.
        pub flags: U32,
        /// Not offered.
        pub ipsec_v2: [u8; 2],
        /// Coalescing of IPv4.
        pub rsc_v4: u8,
        /// Coalescing of IPv6.
        pub rsc_v6: u8,
        /// Not offered.
        pub encapsulation: [u8; 4],
    }
}

impl Object for OffloadParameters {
    const HEADER: (u8, u8, u16) = (0x80, 3, 28);
}

wire_struct! {
    /// NDIS_RECEIVE_SCALE_CAPABILITIES, revision 2.
    pub struct RssCapabilities {
        /// The header.
        pub header: ObjectHeader,
        /// [`RssCapabilityFlags`].
        pub flags: U32,
        /// Interrupts.
        pub interrupts: U32,
        /// Queues.
        pub queues: U32,
        /// Entries of the indirection table.
        pub table_entries: U16,
    }
}

impl Object for RssCapabilities {
    const HEADER: (u8, u8, u16) = (0x88, 2, 18);
}

wire_struct! {
    /// NDIS_RECEIVE_SCALE_PARAMETERS, revision 2, without table and key.
    pub struct RssParameters {
        /// The header.
        pub header: ObjectHeader,
        /// [`RssFlags`].
        pub flags: U16,
        /// Base processor.
        pub base_cpu: U16,
        /// [`RssHashInfo`].
        pub hash_info: U32,
        /// Bytes of the table of u32 queue numbers.
        pub table_size: U16,
        /// 0.
        pub reserved: U16,
        /// Where it begins in the structure.
        pub table_offset: U32,
        /// Bytes of the key.
        pub key_size: U16,
        /// 0.
        pub reserved_2: U16,
        /// Where it begins in the structure.
        pub key_offset: U32,
        /// Processor masks: offset, count, bytes each.
        pub processor_masks: [U32; 3],
    }
}

impl Object for RssParameters {
    const HEADER: (u8, u8, u16) = (0x89, 2, 40);
}

/// RSS parameters with what they refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rss<'a> {
    /// The fixed part.
    pub parameters: RssParameters,
    /// Queue by hash; empty if it stays.
    pub table: &'a [U32],
    /// Key of the hash function; empty if it stays.
    pub key: &'a [u8],
}

impl<'a> Rss<'a> {
    /// Reads the value of a SET.
    ///
    /// # Errors
    /// [`ObjectError`]: the sender's fault.
    pub fn read(bytes: &'a [u8]) -> Result<Self, ObjectError> {
        let parameters = RssParameters::read(bytes)?;
        let wrong = ObjectError { kind: RssParameters::HEADER.0, len: bytes.len() };
        let part = |offset: U32, size: U16| match size.get() {
            0 => Some(&bytes[..0]),
            size => bytes.get(offset.get() as usize..).and_then(|rest| rest.get(..size.into())),
        };
        let table = part(parameters.table_offset, parameters.table_size).ok_or(wrong)?;
        let table = <[U32]>::ref_from_bytes(table).map_err(|_| wrong)?;
        let key = part(parameters.key_offset, parameters.key_size).ok_or(wrong)?;
        Ok(Self { parameters, table, key })
    }
}

wire_struct! {
    /// NDIS_LINK_STATE.
    pub struct LinkState {
        /// The header.
        pub header: ObjectHeader,
        /// 1 connected, 2 not.
        pub connected: U32,
        /// 2: full.
        pub duplex: U32,
        /// 0.
        pub reserved: U32,
        /// Bit/s.
        pub transmit_speed: U64,
        /// Bit/s.
        pub receive_speed: U64,
        /// 0.
        pub pause: U32,
        /// 0.
        pub negotiated: U32,
    }
}

impl Object for LinkState {
    const HEADER: (u8, u8, u16) = (0x80, 1, 40);
}

wire_struct! {
    /// A driver's setting, by name. Offsets count from the structure.
    pub struct ConfigParameter {
        /// Where the name is, UTF-16.
        pub name_offset: U32,
        /// Bytes of it.
        pub name_len: U32,
        /// 0 number, 2 text.
        pub kind: U32,
        /// Where the value is.
        pub value_offset: U32,
        /// Bytes of it.
        pub value_len: U32,
    }
}

impl ConfigParameter {
    /// Name and value, as they stand.
    pub fn read(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let (head, _) = Self::read_from_prefix(bytes).ok()?;
        let part = |offset: U32, len: U32| bytes.get(offset.get() as usize..)?.get(..len.get() as usize);
        Some((part(head.name_offset, head.name_len)?, part(head.value_offset, head.value_len)?))
    }
}

const _: () = assert!(size_of::<Offload>() == 156);
const _: () = assert!(size_of::<OffloadParameters>() == 28);
const _: () = assert!(size_of::<RssCapabilities>() == 18);
const _: () = assert!(size_of::<RssParameters>() == 40);
const _: () = assert!(size_of::<LinkState>() == 40);
