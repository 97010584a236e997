//! What a session remembers of its guest when it is saved: how far the conversation has come.

use prost::Message;
use vmbus_core::storage::Version;

use super::vstor::State;

#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedSession {
    #[prost(enumeration = "Stage", tag = "1")]
    stage: i32,
    /// The version's word, where one is agreed on.
    #[prost(uint32, tag = "2")]
    version: u32,
    /// Sub-channels that the guest was granted.
    #[prost(uint32, tag = "3")]
    sub_channels: u32,
    /// Longest transfer that the guest was told.
    #[prost(uint32, tag = "4")]
    pub(super) max_transfer: u32,
    /// The last field: says that they are all there.
    #[prost(fixed32, tag = "1000")]
    kind: u32,
}

const KIND: u32 = 0x5653_5431;

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Stage {
    Begin = 0,
    QueryVersion = 1,
    QueryProperties = 2,
    EndInitialization = 3,
    Ready = 4,
}

impl SavedSession {
    pub(super) fn new(state: State, sub_channels: u16, max_transfer: u32) -> Self {
        let (stage, version) = match state {
            State::Begin => (Stage::Begin, None),
            State::QueryVersion => (Stage::QueryVersion, None),
            State::QueryProperties(version) => (Stage::QueryProperties, Some(version)),
            State::EndInitialization(version) => (Stage::EndInitialization, Some(version)),
            State::Ready(version) => (Stage::Ready, Some(version)),
        };
        Self {
            stage: stage.into(),
            version: version.map_or(0, |version| version.word().into()),
            sub_channels: sub_channels.into(),
            max_transfer,
            kind: KIND,
        }
    }

    /// `None` for bytes that are none, whoever kept them.
    pub(super) fn decode_whole(bytes: &[u8]) -> Option<Self> {
        Self::decode(bytes).ok().filter(|saved| saved.kind == KIND)
    }

    /// The state, and the number of sub-channels.
    pub(super) fn conversation(&self) -> Option<(State, u16)> {
        let version = u16::try_from(self.version).ok().and_then(Version::from_word);
        let state = match Stage::try_from(self.stage).ok()? {
            Stage::Begin => State::Begin,
            Stage::QueryVersion => State::QueryVersion,
            Stage::QueryProperties => State::QueryProperties(version?),
            Stage::EndInitialization => State::EndInitialization(version?),
            Stage::Ready => State::Ready(version?),
        };
        Some((state, u16::try_from(self.sub_channels).ok()?))
    }
}
