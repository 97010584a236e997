//! Versions of the storage protocol.

use core::fmt;

/// A version of the storage protocol. Ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1, before Windows Server 2008.
    V0_1,
    /// 1.0, before Windows Server 2008.
    V1_0,
    /// 2.0, Windows Server 2008.
    V2_0,
    /// 4.2, Windows 7: the host may tell of added and removed disks.
    V4_2,
    /// 5.1, Windows 8: sub-channels, longer packets.
    V5_1,
    /// 6.0, Windows 8.1.
    V6_0,
    /// 6.2, Windows 10. Nothing on the wire differs from 5.1.
    V6_2,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1, Self::V1_0, Self::V2_0, Self::V4_2, Self::V5_1, Self::V6_0, Self::V6_2];

    /// The word on the wire: major in the high byte, minor in the low byte.
    pub const fn word(self) -> u16 {
        match self {
            Self::V0_1 => 0x0001,
            Self::V1_0 => 0x0100,
            Self::V2_0 => 0x0200,
            Self::V4_2 => 0x0402,
            Self::V5_1 => 0x0501,
            Self::V6_0 => 0x0600,
            Self::V6_2 => 0x0602,
        }
    }

    /// The version with this word, if it is a known one.
    pub fn from_word(word: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.word() == word)
    }

    /// Size of every packet once this version is agreed on, in bytes.
    pub const fn packet_size(self) -> usize {
        if self.is_long() { 64 } else { 48 }
    }

    /// What the length field of an SRB says.
    pub const fn srb_length(self) -> u16 {
        if self.is_long() { 0x34 } else { 0x24 }
    }

    /// Room for sense data in an SRB, in bytes.
    pub const fn sense_room(self) -> u8 {
        if self.is_long() { 20 } else { 18 }
    }

    /// Whether sub-channels exist (5.1 and later).
    pub const fn has_sub_channels(self) -> bool {
        self.is_long()
    }

    /// Whether the host sends ENUMERATE_BUS and REMOVE_DEVICE (4.2 and later).
    pub fn has_notices(self) -> bool {
        self >= Self::V4_2
    }

    const fn is_long(self) -> bool {
        match self {
            Self::V0_1 | Self::V1_0 | Self::V2_0 | Self::V4_2 => false,
            Self::V5_1 | Self::V6_0 | Self::V6_2 => true,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.word() >> 8, self.word() & 0xff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn packets_grew_with_sub_channels() {
        assert!(Version::ALL.is_sorted());
        assert_eq!(Version::V4_2.packet_size(), 48);
        assert_eq!(Version::V5_1.packet_size(), 64);
        assert!(Version::V4_2.has_notices() && !Version::V2_0.has_notices());
        assert!(Version::V5_1.has_sub_channels() && !Version::V4_2.has_sub_channels());
        assert_eq!(Version::from_word(0x0602).map(|version| version.to_string()).as_deref(), Some("6.2"));
        assert_eq!(Version::from_word(0x0601), None);
    }
}
