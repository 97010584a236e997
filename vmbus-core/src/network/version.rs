//! Versions of the network protocol.

use core::fmt;

use super::nvsp::MessageType;

/// A version of NVSP that is known here (`network.md`, "Versions").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Version {
    /// 1.
    V1 = 0x0000_0002,
    /// 2.
    V2 = 0x0003_0002,
    /// 4.
    V4 = 0x0004_0000,
    /// 5.
    V5 = 0x0005_0000,
    /// 6.
    V6 = 0x0006_0000,
    /// 6.1.
    V6_1 = 0x0006_0001,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 6] = [Self::V1, Self::V2, Self::V4, Self::V5, Self::V6, Self::V6_1];

    /// The version with this number on the wire, if it is known.
    pub fn from_word(word: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.word() == word)
    }

    /// The number on the wire.
    pub const fn word(self) -> u32 {
        self as u32
    }

    /// Bytes of a host's message, without the padding of the ring.
    pub const fn message_size(self) -> usize {
        match self {
            Self::V1 | Self::V2 | Self::V4 | Self::V5 | Self::V6 => 28,
            Self::V6_1 => 40,
        }
    }

    /// The NDIS version that a guest states: major, minor.
    pub const fn ndis(self) -> (u32, u32) {
        match self {
            Self::V1 | Self::V2 | Self::V4 => (6, 1),
            Self::V5 | Self::V6 | Self::V6_1 => (6, 30),
        }
    }

    /// The highest message number that exists in this version.
    pub const fn last_message(self) -> MessageType {
        match self {
            Self::V1 => MessageType::SEND_RNDIS_PACKET_COMPLETE,
            Self::V2 => MessageType(127),
            Self::V4 => MessageType(130),
            Self::V5 | Self::V6 => MessageType::SEND_INDIRECTION_TABLE,
            Self::V6_1 => MessageType(136),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V1 => "1",
            Self::V2 => "2",
            Self::V4 => "4",
            Self::V5 => "5",
            Self::V6 => "6",
            Self::V6_1 => "6.1",
        })
    }
}
