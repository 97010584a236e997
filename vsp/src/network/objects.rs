//! The objects of a network device: what each is when it is asked, and what setting it does.

use vmbus_core::network::ndis::{
    ConfigParameter, ENCAPSULATION_802_3, LinkState, Object, ObjectHeader, Offload, OffloadParameters,
    PacketFilter, Rss, RssCapabilities, RssCapabilityFlags, RssFlags, header_of,
};
use vmbus_core::network::nvsp::Capabilities;
use vmbus_core::network::{Oid, rndis::Status};
use zerocopy::IntoBytes;

use super::device::{Coalescing, Device, Effect, Link, MOST_GROUPS, capabilities};
use super::nvsp::ETHERNET_HEADER;
use super::rss::{MOST_ENTRIES, RssTable};
use super::switch::MacAddress;

/// What objects tell of that is not the device's own state.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Bytes of the longest frame, its Ethernet header included.
    pub max_frame: u32,
    /// The version of NDIS that the guest has stated.
    pub ndis: (u32, u32),
    /// What the guest's driver can do.
    pub guest: Capabilities,
    /// Messages that one packet may carry.
    pub max_packets: u32,
    /// Channels that a guest may have.
    pub max_queues: u16,
    /// The wire.
    pub link: Link,
    /// What went through.
    pub counts: Counts,
}

/// What went through the adapter since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that the guest sent.
    pub sent: u64,
    /// Frames that it should not have sent so.
    pub send_errors: u64,
    /// Frames that it got.
    pub received: u64,
    /// Frames for which it had no room.
    pub no_buffer: u64,
}

/// Bytes that are told of for buffers, which bound nothing.
const BUFFER_SPACE: u32 = 256 << 10;
/// Whom drivers take us for.
const VENDOR: u32 = 0x155d;
const VENDOR_DESCRIPTION: &[u8] = b"Partition bus network adapter\0";
const VENDOR_DRIVER_VERSION: u32 = 0x0001_0000;
/// Look ahead is a copy, receive is serialized, transfers do not pend, no loopback, 802.1Q.
const MAC_OPTIONS: u32 = 0x1 | 0x4 | 0x8 | 0x40 | 0x200;
/// UTF-16 units of a name, the last one zero.
const NAME_UNITS: usize = 256;
/// Speeds are told in 100 bit/s.
const SPEED_UNIT: u64 = 100;

/// Objects that every NDIS 6 knows; the others are in [`query`] and [`set`].
const SUPPORTED: [Oid; 45] = [
    Oid::GEN_SUPPORTED_LIST,
    Oid::GEN_HARDWARE_STATUS,
    Oid::GEN_MEDIA_SUPPORTED,
    Oid::GEN_MEDIA_IN_USE,
    Oid::GEN_MAXIMUM_LOOKAHEAD,
    Oid::GEN_MAXIMUM_FRAME_SIZE,
    Oid::GEN_LINK_SPEED,
    Oid::GEN_TRANSMIT_BUFFER_SPACE,
    Oid::GEN_RECEIVE_BUFFER_SPACE,
    Oid::GEN_TRANSMIT_BLOCK_SIZE,
    Oid::GEN_RECEIVE_BLOCK_SIZE,
    Oid::GEN_VENDOR_ID,
    Oid::GEN_VENDOR_DESCRIPTION,
    Oid::GEN_CURRENT_PACKET_FILTER,
    Oid::GEN_CURRENT_LOOKAHEAD,
    Oid::GEN_DRIVER_VERSION,
    Oid::GEN_MAXIMUM_TOTAL_SIZE,
    Oid::GEN_PROTOCOL_OPTIONS,
    Oid::GEN_MAC_OPTIONS,
    Oid::GEN_MEDIA_CONNECT_STATUS,
    Oid::GEN_MAXIMUM_SEND_PACKETS,
    Oid::GEN_VENDOR_DRIVER_VERSION,
    Oid::GEN_NETWORK_LAYER_ADDRESSES,
    Oid::GEN_RNDIS_CONFIG_PARAMETER,
    Oid::GEN_XMIT_OK,
    Oid::GEN_RCV_OK,
    Oid::GEN_XMIT_ERROR,
    Oid::GEN_RCV_ERROR,
    Oid::GEN_RCV_NO_BUFFER,
    Oid::ETHERNET_PERMANENT_ADDRESS,
    Oid::ETHERNET_CURRENT_ADDRESS,
    Oid::ETHERNET_MULTICAST_LIST,
    Oid::ETHERNET_MAXIMUM_LIST_SIZE,
    Oid::ETHERNET_RCV_ERROR_ALIGNMENT,
    Oid::ETHERNET_XMIT_ONE_COLLISION,
    Oid::ETHERNET_XMIT_MORE_COLLISIONS,
    Oid::GEN_MAX_LINK_SPEED,
    Oid::GEN_LINK_STATE,
    Oid::GEN_LINK_PARAMETERS,
    Oid::GEN_INTERRUPT_MODERATION,
    Oid::GEN_FRIENDLY_NAME,
    Oid::GEN_MACHINE_NAME,
    Oid::OFFLOAD_ENCAPSULATION,
    Oid::TCP_OFFLOAD_CURRENT_CONFIG,
    Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
];

/// Objects of guests that can only be set, or are there since NDIS 6.30.
const SUPPORTED_LATER: [Oid; 3] =
    [Oid::TCP_OFFLOAD_PARAMETERS, Oid::GEN_RECEIVE_SCALE_CAPABILITIES, Oid::GEN_RECEIVE_SCALE_PARAMETERS];

/// Appends the value of `oid` to `out`. `input` is what came with the question.
pub(super) fn query(
    device: &Device,
    world: &World,
    oid: Oid,
    input: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Status> {
    let mut word = |word: u32| out.extend_from_slice(&word.to_le_bytes());
    match oid {
        Oid::GEN_SUPPORTED_LIST => {
            SUPPORTED.iter().for_each(|oid| word(oid.0));
            let later = if world.ndis >= (6, 30) { SUPPORTED_LATER.len() } else { 1 };
            SUPPORTED_LATER[..later].iter().for_each(|oid| word(oid.0));
        }
        Oid::GEN_HARDWARE_STATUS
        | Oid::GEN_MEDIA_SUPPORTED
        | Oid::GEN_MEDIA_IN_USE
        | Oid::GEN_PROTOCOL_OPTIONS
        | Oid::ETHERNET_RCV_ERROR_ALIGNMENT
        | Oid::ETHERNET_XMIT_ONE_COLLISION
        | Oid::ETHERNET_XMIT_MORE_COLLISIONS => word(0),
        Oid::GEN_MAXIMUM_LOOKAHEAD | Oid::GEN_CURRENT_LOOKAHEAD | Oid::GEN_MAXIMUM_FRAME_SIZE => {
            word(world.max_frame - ETHERNET_HEADER);
        }
        Oid::GEN_TRANSMIT_BLOCK_SIZE | Oid::GEN_RECEIVE_BLOCK_SIZE | Oid::GEN_MAXIMUM_TOTAL_SIZE => {
            word(world.max_frame);
        }
        Oid::GEN_TRANSMIT_BUFFER_SPACE | Oid::GEN_RECEIVE_BUFFER_SPACE => word(BUFFER_SPACE),
        Oid::GEN_LINK_SPEED => word(speed_word(world.link.speed)),
        Oid::GEN_VENDOR_ID => word(VENDOR),
        Oid::GEN_VENDOR_DRIVER_VERSION => word(VENDOR_DRIVER_VERSION),
        Oid::GEN_MAC_OPTIONS => word(MAC_OPTIONS),
        Oid::GEN_MEDIA_CONNECT_STATUS => word(u32::from(!world.link.connected)),
        Oid::GEN_MAXIMUM_SEND_PACKETS => word(u32::MAX),
        Oid::GEN_CURRENT_PACKET_FILTER => word(device.filter.bits()),
        Oid::ETHERNET_MAXIMUM_LIST_SIZE => word(u32::try_from(MOST_GROUPS).unwrap_or(u32::MAX)),
        Oid::GEN_VENDOR_DESCRIPTION => out.extend_from_slice(VENDOR_DESCRIPTION),
        Oid::GEN_DRIVER_VERSION => {
            let [minor, ..] = world.ndis.1.to_le_bytes();
            let [major, ..] = world.ndis.0.to_le_bytes();
            out.extend_from_slice(&[minor, major]);
        }
        Oid::ETHERNET_PERMANENT_ADDRESS => out.extend_from_slice(&device.identity.address.0),
        Oid::ETHERNET_CURRENT_ADDRESS => out.extend_from_slice(&device.address.0),
        Oid::ETHERNET_MULTICAST_LIST => device.groups.iter().for_each(|group| out.extend_from_slice(group)),
        Oid::GEN_FRIENDLY_NAME | Oid::GEN_MACHINE_NAME => name(&device.identity.name, out),
        Oid::GEN_XMIT_OK => out.extend_from_slice(&world.counts.sent.to_le_bytes()),
        Oid::GEN_RCV_OK => out.extend_from_slice(&world.counts.received.to_le_bytes()),
        Oid::GEN_XMIT_ERROR => out.extend_from_slice(&world.counts.send_errors.to_le_bytes()),
        Oid::GEN_RCV_ERROR => out.extend_from_slice(&0_u64.to_le_bytes()),
        Oid::GEN_RCV_NO_BUFFER => out.extend_from_slice(&world.counts.no_buffer.to_le_bytes()),
        Oid::GEN_MAX_LINK_SPEED => {
            [world.link.speed; 2].iter().for_each(|speed| out.extend_from_slice(&speed.to_le_bytes()));
        }
        Oid::GEN_LINK_STATE => out.extend_from_slice(link_state(world.link).as_bytes()),
        Oid::GEN_INTERRUPT_MODERATION => out.extend_from_slice(&NO_MODERATION),
        Oid::OFFLOAD_ENCAPSULATION => encapsulation(out),
        Oid::TCP_OFFLOAD_CURRENT_CONFIG => out.extend_from_slice(device.offload.as_bytes()),
        Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => {
            offload_capabilities(world, input, out)?;
        }
        Oid::GEN_RECEIVE_SCALE_CAPABILITIES => out.extend_from_slice(rss_capabilities(world).as_bytes()),
        _ => return Err(Status::INVALID_OID),
    }
    Ok(())
}

/// Sets `oid` to the value in `data`.
pub(super) fn set(device: &mut Device, world: &World, oid: Oid, data: &[u8]) -> Result<Effect, Status> {
    let receiving = Ok(Effect { receiving: true, ..Effect::default() });
    match oid {
        Oid::GEN_CURRENT_PACKET_FILTER => {
            let word = data.first_chunk().ok_or(Status::INVALID_LENGTH)?;
            device.filter = PacketFilter::from_bits_retain(u32::from_le_bytes(*word));
            receiving
        }
        Oid::ETHERNET_MULTICAST_LIST => {
            let (groups, rest) = data.as_chunks::<6>();
            if !rest.is_empty() {
                return Err(Status::INVALID_LENGTH);
            }
            if groups.len() > MOST_GROUPS {
                return Err(Status::RESOURCES);
            }
            device.groups = groups.to_vec();
            receiving
        }
        Oid::GEN_RNDIS_CONFIG_PARAMETER => {
            device.address = network_address(data).ok_or(Status::INVALID_DATA)?.unwrap_or(device.address);
            receiving
        }
        Oid::TCP_OFFLOAD_PARAMETERS => set_offload(device, world, data),
        Oid::GEN_RECEIVE_SCALE_PARAMETERS => {
            set_rss(device, world, data)?;
            receiving
        }
        // Of no consequence here.
        Oid::GEN_CURRENT_LOOKAHEAD
        | Oid::GEN_PROTOCOL_OPTIONS
        | Oid::GEN_NETWORK_LAYER_ADDRESSES
        | Oid::GEN_LINK_PARAMETERS
        | Oid::GEN_INTERRUPT_MODERATION
        | Oid::GEN_MACHINE_NAME
        | Oid::OFFLOAD_ENCAPSULATION => Ok(Effect::default()),
        _ => Err(Status::INVALID_OID),
    }
}

/// A speed in the unit of the wire, or the most that it can state.
pub(super) fn speed_word(speed: u64) -> u32 {
    u32::try_from(speed / SPEED_UNIT).unwrap_or(u32::MAX)
}

/// A name as UTF-16, as long as names are.
fn name(name: &str, out: &mut Vec<u8>) {
    let units = name.encode_utf16().take(NAME_UNITS - 1).chain(std::iter::repeat(0)).take(NAME_UNITS);
    units.for_each(|unit| out.extend_from_slice(&unit.to_le_bytes()));
}

fn link_state(link: Link) -> LinkState {
    const CONNECTED: u32 = 1;
    const DISCONNECTED: u32 = 2;
    const FULL_DUPLEX: u32 = 2;
    LinkState {
        header: header_of::<LinkState>(),
        connected: if link.connected { CONNECTED } else { DISCONNECTED }.into(),
        duplex: FULL_DUPLEX.into(),
        transmit_speed: link.speed.into(),
        receive_speed: link.speed.into(),
        ..LinkState::default()
    }
}

/// A header of revision 1 and 12 bytes, no flags, "not supported".
const NO_MODERATION: [u8; 12] = [0x80, 1, 12, 0, 0, 0, 0, 0, 1, 0, 0, 0];

/// Ethernet, for both versions of IP.
fn encapsulation(out: &mut Vec<u8>) {
    const KIND: u8 = 0xa8;
    const ENABLED: u32 = 1;
    out.extend_from_slice(&[KIND, 1, 28, 0]);
    for word in [ENABLED, ENCAPSULATION_802_3, ETHERNET_HEADER].repeat(2) {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// What coalescing the guest's driver understands.
fn coalescing(world: &World) -> Coalescing {
    let known = world.guest.contains(Capabilities::RSC);
    Coalescing { v4: known, v6: known }
}

/// The capabilities, in the form that the guest knows: it states that in its question and takes no more bytes.
fn offload_capabilities(world: &World, input: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
    const SIZES: [u16; 3] = [112, 144, 156];
    let (kind, newest, _) = Offload::HEADER;
    let asked = match input {
        [] => newest,
        [asked_kind, revision, ..] if *asked_kind == kind && *revision > 0 => (*revision).min(newest),
        [..] => return Err(Status::INVALID_DATA),
    };
    let size = SIZES.get(usize::from(asked) - 1).copied().ok_or(Status::INVALID_DATA)?;
    let mut offload = capabilities(coalescing(world));
    offload.header = ObjectHeader { kind, revision: asked, size: size.into() };
    out.extend_from_slice(&offload.as_bytes()[..size.into()]);
    Ok(())
}

fn rss_capabilities(world: &World) -> RssCapabilities {
    let flags = RssCapabilityFlags::TOEPLITZ
        | RssCapabilityFlags::TCP_V4
        | RssCapabilityFlags::TCP_V6
        | RssCapabilityFlags::TCP_V6_EXTENSIONS;
    RssCapabilities {
        header: header_of::<RssCapabilities>(),
        flags: flags.bits().into(),
        interrupts: u32::from(world.max_queues).into(),
        queues: u32::from(world.max_queues).into(),
        table_entries: u16::try_from(MOST_ENTRIES).unwrap_or(u16::MAX).into(),
    }
}

/// The address in a setting, if it is about that.
fn network_address(data: &[u8]) -> Option<Option<MacAddress>> {
    let (name, value) = ConfigParameter::read(data)?;
    let is_it = name.chunks(2).eq("NetworkAddress".encode_utf16().map(u16::to_le_bytes));
    if !is_it {
        return Some(None);
    }
    let mut digits = value.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
    let mut digit = || char::from_u32(digits.next()?.into())?.to_digit(16);
    let mut address = [0; 6];
    for byte in &mut address {
        *byte = u8::try_from(digit()? << 4 | digit()?).ok()?;
    }
    Some(Some(MacAddress(address)).filter(|address| address.is_station()))
}

/// Switches offloads on and off. What a guest does not use it does not ask for in its packets, so that only what it is
/// given matters here.
fn set_offload(device: &mut Device, world: &World, data: &[u8]) -> Result<Effect, Status> {
    let wanted = OffloadParameters::read(data).map_err(|_| Status::INVALID_DATA)?;
    let can = coalescing(world);
    let coalesce = |wanted: u8, now: bool| match wanted {
        ON => true,
        OFF => false,
        _ => now,
    };
    const OFF: u8 = 1;
    const ON: u8 = 2;
    device.coalescing.v4 = can.v4 && coalesce(wanted.rsc_v4, device.coalescing.v4);
    device.coalescing.v6 = can.v6 && coalesce(wanted.rsc_v6, device.coalescing.v6);
    device.offload = capabilities(device.coalescing);
    Ok(Effect { receiving: true, offload: true, tell_link: false })
}

fn set_rss(device: &mut Device, world: &World, data: &[u8]) -> Result<(), Status> {
    let wanted = Rss::read(data).map_err(|_| Status::INVALID_DATA)?;
    let flags = RssFlags::from_bits_retain(wanted.parameters.flags.get());
    if flags.contains(RssFlags::DISABLE) {
        device.rss = None;
        return Ok(());
    }
    let table = RssTable::new(&wanted, flags, device.rss.as_ref(), world.max_queues);
    device.rss = Some(table.ok_or(Status::INVALID_DATA)?);
    Ok(())
}
