//! What a session remembers of its guest when it is saved. Whoever kept it is not trusted.

use prost::Message;
use vmbus_core::network::Version;
use vmbus_core::network::ndis::{PacketFilter, RssHashInfo};

use super::device::{Coalescing, Device, Stage, capabilities};
use super::nvsp::{BufferName, Limits, Nvsp, SavedParts};
use super::rss::RssTable;
use super::switch::MacAddress;

/// More than a session keeps back for its guest.
const WAITING_AT_MOST: usize = 64;

/// A session: of the primary channel with everything, of a sub-channel with the conversation alone.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedSession {
    #[prost(message, optional, tag = "1")]
    pub(super) nvsp: Option<SavedNvsp>,
    #[prost(message, optional, tag = "2")]
    pub(super) device: Option<SavedDevice>,
    #[prost(uint32, tag = "3")]
    pub(super) generation: u32,
    #[prost(message, repeated, tag = "4")]
    pub(super) chains: Vec<SavedChain>,
    /// Messages about the device that wait for room.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub(super) waiting: Vec<Vec<u8>>,
    /// Whether the guest was told that there is a link.
    #[prost(bool, tag = "6")]
    pub(super) connected: bool,
    /// The last field: says that they are all there.
    #[prost(fixed32, tag = "1000")]
    kind: u32,
}

const KIND: u32 = 0x4e56_5331;

#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedNvsp {
    #[prost(enumeration = "Progress", tag = "1")]
    progress: i32,
    #[prost(uint32, tag = "2")]
    version: u32,
    #[prost(uint32, optional, tag = "3")]
    mtu: Option<u32>,
    #[prost(uint64, tag = "4")]
    capabilities: u64,
    #[prost(uint32, repeated, tag = "5")]
    ndis: Vec<u32>,
    /// Page list and id of each buffer that is in use.
    #[prost(uint32, repeated, tag = "6")]
    receive: Vec<u32>,
    #[prost(uint32, repeated, tag = "7")]
    send: Vec<u32>,
    #[prost(uint32, tag = "8")]
    sub_channels: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Progress {
    Begin = 0,
    Setup = 1,
    Ready = 2,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedDevice {
    #[prost(bool, tag = "1")]
    initialized: bool,
    #[prost(uint32, tag = "2")]
    filter: u32,
    #[prost(bytes = "vec", tag = "3")]
    groups: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    address: Vec<u8>,
    #[prost(bool, tag = "5")]
    coalesces_v4: bool,
    #[prost(bool, tag = "6")]
    coalesces_v6: bool,
    #[prost(message, optional, tag = "7")]
    rss: Option<SavedRss>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedRss {
    #[prost(uint32, tag = "1")]
    hash: u32,
    #[prost(uint32, repeated, tag = "2")]
    table: Vec<u32>,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
}

/// Sections that the guest has of one packet, and the channel that it came by.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedChain {
    #[prost(uint32, tag = "1")]
    channel: u32,
    #[prost(uint32, repeated, tag = "2")]
    sections: Vec<u32>,
}

impl SavedSession {
    pub(super) fn new(nvsp: &Nvsp) -> Self {
        Self { nvsp: Some(SavedNvsp::new(&nvsp.parts())), kind: KIND, ..Self::default() }
    }

    /// `None` for bytes that are none, whoever kept them.
    pub(super) fn decode_whole(bytes: &[u8]) -> Option<Self> {
        let saved = Self::decode(bytes).ok()?;
        (saved.kind == KIND && saved.waiting.len() <= WAITING_AT_MOST).then_some(saved)
    }

    pub(super) fn chains(&self) -> Option<Vec<(u16, Vec<u32>)>> {
        let chain = |chain: &SavedChain| Some((u16::try_from(chain.channel).ok()?, chain.sections.clone()));
        self.chains.iter().map(chain).collect()
    }

    pub(super) fn set_chains(&mut self, chains: Vec<(u16, Vec<u32>)>) {
        let chain = |(channel, sections): (u16, _)| SavedChain { channel: channel.into(), sections };
        self.chains = chains.into_iter().map(chain).collect();
    }
}

impl SavedNvsp {
    fn new(parts: &SavedParts) -> Self {
        let name =
            |name: Option<BufferName>| name.map_or(Vec::new(), |name| vec![name.gpadl, name.id.into()]);
        Self {
            progress: match (parts.version, parts.ready) {
                (None, _) => Progress::Begin,
                (Some(_), false) => Progress::Setup,
                (Some(_), true) => Progress::Ready,
            }
            .into(),
            version: parts.version.map_or(0, Version::word),
            mtu: parts.config.map(|(mtu, _)| mtu),
            capabilities: parts.config.map_or(0, |(_, capabilities)| capabilities),
            ndis: parts.ndis.map_or(Vec::new(), |(major, minor)| vec![major, minor]),
            receive: name(parts.receive),
            send: name(parts.send),
            sub_channels: parts.sub_channels.into(),
        }
    }

    /// The conversation, if it can have come to this within `limits`.
    pub(super) fn restore(&self, limits: Limits) -> Option<Nvsp> {
        let name = |words: &[u32]| match *words {
            [] => Some(None),
            [gpadl, id] => Some(Some(BufferName { gpadl, id: u16::try_from(id).ok()? })),
            [..] => None,
        };
        let version = Version::from_word(self.version);
        let (version, ready) = match Progress::try_from(self.progress).ok()? {
            Progress::Begin => (None, false),
            Progress::Setup => (Some(version?), false),
            Progress::Ready => (Some(version?), true),
        };
        let parts = SavedParts {
            version,
            ready,
            config: self.mtu.map(|mtu| (mtu, self.capabilities)),
            ndis: match self.ndis[..] {
                [] => None,
                [major, minor] => Some((major, minor)),
                [..] => return None,
            },
            receive: name(&self.receive)?,
            send: name(&self.send)?,
            sub_channels: u16::try_from(self.sub_channels).ok()?,
        };
        Nvsp::from_parts(limits, parts)
    }
}

impl SavedDevice {
    pub(super) fn new(device: &Device) -> Self {
        Self {
            initialized: device.stage == Stage::Initialized,
            filter: device.filter.bits(),
            groups: device.groups.as_flattened().to_vec(),
            address: device.address.0.to_vec(),
            coalesces_v4: device.coalescing.v4,
            coalesces_v6: device.coalescing.v6,
            rss: device.rss.as_ref().map(|rss| SavedRss {
                hash: rss.hash.bits(),
                table: rss.table.iter().copied().map(u32::from).collect(),
                key: rss.key.to_vec(),
            }),
        }
    }

    /// Puts `device` into the state that was saved; `None` if it cannot have been in it.
    pub(super) fn restore(&self, device: &mut Device, max_queues: u16) -> Option<()> {
        let (groups, rest) = self.groups.as_chunks::<6>();
        if !rest.is_empty() || groups.len() > super::device::MOST_GROUPS {
            return None;
        }
        device.stage = if self.initialized { Stage::Initialized } else { Stage::Halted };
        device.filter = PacketFilter::from_bits_retain(self.filter);
        device.groups = groups.to_vec();
        device.address = MacAddress(self.address[..].try_into().ok()?);
        device.coalescing = Coalescing { v4: self.coalesces_v4, v6: self.coalesces_v6 };
        device.offload = capabilities(device.coalescing);
        device.rss = match &self.rss {
            None => None,
            Some(rss) => {
                let queue = |queue: &u32| u16::try_from(*queue).ok().filter(|queue| *queue < max_queues);
                let table = rss.table.iter().map(queue).collect::<Option<_>>()?;
                let hash = RssHashInfo::from_bits_retain(rss.hash);
                Some(RssTable::from_parts(hash, table, rss.key[..].try_into().ok()?)?)
            }
        };
        Some(())
    }
}
