//! A partition as bytes: its protocol state, its devices, its open channels. Old bytes are read by new code, and what
//! new code adds is skipped by old.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use vmbus_core::Guid;
use vmbus_core::saved::{DecodeError, SavedServer, check_parts};
use vmbus_core::server::DeviceKey;
use vmbus_ringbuf::{SavedConsumer, SavedProducer};

use crate::channel::{SavedChannel, are_awaited};

/// A partition that another root, or the same one later, can take over ([`Root::restore`](crate::Root::restore)).
#[derive(Clone, Debug, PartialEq)]
pub struct SavedPartition {
    pub(crate) server: SavedServer,
    pub(crate) devices: Vec<SavedDevice>,
    /// By channel id.
    pub(crate) channels: BTreeMap<u32, SavedChannel>,
}

/// A device's channel as the partition was offered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SavedDevice {
    pub(crate) key: DeviceKey,
    pub(crate) instance: Guid,
    /// 0 for the primary channel.
    pub(crate) subchannel: u16,
    /// Where its signals arrive.
    pub(crate) area: u32,
    pub(crate) withdrawn: bool,
}

/// Why a partition is not saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// It is not attached, or has left meanwhile.
    #[error("there is no partition {0}")]
    NoPartition(u32),
    /// Its link cannot be left and taken up again.
    #[error("this partition has to be told of writes to its memory, and cannot be left alone")]
    TellsWrites,
    /// The link has failed.
    #[error(transparent)]
    Link(#[from] vmbus_partition::LinkError),
    /// The protocol's state machine has not come to rest: our own fault.
    #[error(transparent)]
    Protocol(#[from] vmbus_core::saved::SaveError),
}

/// Why a saved partition is not restored. Whoever kept the bytes is at fault, but for [`Taken`](Self::Taken) and
/// [`Closing`](Self::Closing).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// They are no saved partition.
    #[error(transparent)]
    Encoding(#[from] DecodeError),
    /// Its protocol state could not have come to be, or is more than this root allows.
    #[error(transparent)]
    Protocol(#[from] vmbus_core::saved::RestoreError),
    /// Something else in it could not have come to be.
    #[error("the saved partition has {0}")]
    Bad(&'static str),
    /// A partition of this number is attached.
    #[error("partition {0} is attached already")]
    Taken(u32),
    /// The root takes no partitions any more.
    #[error("the root is closing")]
    Closing,
}

/// Says at the end of the bytes that they are all there.
const KIND: u32 = 0x5041_5231;
/// More than the state of a session needs.
const SESSION_STATE: usize = 1 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct Encoded {
    #[prost(bytes = "vec", tag = "1")]
    server: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    devices: Vec<EncodedDevice>,
    #[prost(message, repeated, tag = "3")]
    channels: Vec<EncodedChannel>,
    #[prost(fixed32, tag = "1000")]
    kind: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncodedDevice {
    #[prost(uint64, tag = "1")]
    key: u64,
    #[prost(bytes = "vec", tag = "2")]
    instance: Vec<u8>,
    #[prost(uint32, tag = "3")]
    subchannel: u32,
    #[prost(uint32, tag = "4")]
    area: u32,
    #[prost(bool, tag = "5")]
    withdrawn: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncodedChannel {
    #[prost(uint32, tag = "1")]
    relid: u32,
    #[prost(bytes = "vec", tag = "2")]
    state: Vec<u8>,
    #[prost(uint32, tag = "3")]
    read: u32,
    #[prost(uint32, tag = "4")]
    published: u32,
    #[prost(uint32, tag = "5")]
    write: u32,
    #[prost(bool, tag = "6")]
    space_requested: bool,
    /// Ids and tags, in turns.
    #[prost(fixed64, repeated, tag = "7")]
    awaited: Vec<u64>,
}

impl SavedPartition {
    /// The partition as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let device = |device: &SavedDevice| EncodedDevice {
            key: device.key.0,
            instance: device.instance.to_wire().into(),
            subchannel: device.subchannel.into(),
            area: device.area,
            withdrawn: device.withdrawn,
        };
        let channel = |(relid, channel): (&u32, &SavedChannel)| EncodedChannel {
            relid: *relid,
            state: channel.state.to_vec(),
            read: channel.incoming.read,
            published: channel.incoming.published,
            write: channel.outgoing.write,
            space_requested: channel.outgoing.space_requested,
            awaited: channel.awaited.iter().flat_map(|(id, tag)| [*id, *tag]).collect(),
        };
        let encoded = Encoded {
            server: self.server.encode(),
            devices: self.devices.iter().map(device).collect(),
            channels: self.channels.iter().map(channel).collect(),
            kind: KIND,
        };
        encoded.encode_to_vec()
    }

    /// The partition that these bytes encode. Whether a root can take it over is another question.
    ///
    /// # Errors
    /// [`RestoreError::Encoding`], [`RestoreError::Bad`]: the fault of whoever kept the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, RestoreError> {
        check_parts(bytes)?;
        let encoded = Encoded::decode(bytes).map_err(|_| DecodeError::Encoding)?;
        if encoded.kind != KIND {
            return Err(DecodeError::NotThis("a partition").into());
        }
        let server = SavedServer::decode(&encoded.server)?;
        let devices = encoded.devices.iter().map(device).collect::<Result<_, _>>()?;
        let mut channels = BTreeMap::new();
        for encoded in encoded.channels {
            let (relid, channel) = channel(encoded)?;
            if channels.insert(relid, channel).is_some() {
                return Err(RestoreError::Bad("two channels of one id"));
            }
        }
        Ok(Self { server, devices, channels })
    }
}

fn device(encoded: &EncodedDevice) -> Result<SavedDevice, RestoreError> {
    let instance = <[u8; 16]>::try_from(&encoded.instance[..]);
    Ok(SavedDevice {
        key: DeviceKey(encoded.key),
        instance: instance.map(Guid::from_wire).map_err(|_| RestoreError::Bad("a GUID of another length"))?,
        subchannel: u16::try_from(encoded.subchannel)
            .map_err(|_| RestoreError::Bad("too many sub-channels"))?,
        area: encoded.area,
        withdrawn: encoded.withdrawn,
    })
}

fn channel(encoded: EncodedChannel) -> Result<(u32, SavedChannel), RestoreError> {
    let EncodedChannel { relid, state, read, published, write, space_requested, awaited } = encoded;
    if state.len() > SESSION_STATE {
        return Err(RestoreError::Bad("a session that remembers too much"));
    }
    let (awaited, rest) = awaited.as_chunks();
    let awaited: Vec<_> = awaited.iter().map(|[id, tag]| (*id, *tag)).collect();
    if !rest.is_empty() || !are_awaited(&awaited) {
        return Err(RestoreError::Bad("requests in flight that it cannot have"));
    }
    let channel = SavedChannel {
        state: Bytes::from(state),
        incoming: SavedConsumer { read, published },
        outgoing: SavedProducer { write, space_requested },
        awaited,
    };
    Ok((relid, channel))
}
