//! Protocol versions and feature flags of the bus (`docs/src/protocol/control.md`, "Versions").

use core::fmt;

/// A version of the VMBus protocol. Ordered by age; the number on the wire is [`Version::word`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.13, Windows Server 2008.
    V1,
    /// 1.1, Windows 7: dedicated interrupts, connection id in offers.
    Win7,
    /// 2.4, Windows 8: event flags per channel, target VP, sub-channels.
    Win8,
    /// 3.0, Windows 8.1: control messages to a chosen VP.
    Win8_1,
    /// 4.0, Windows 10: hvsock, reserved channels.
    Win10,
    /// 4.1: MODIFYCHANNEL, TL_CONNECT_RESULT.
    Win10Rs3,
    /// 5.0: connection id 4, target SINT, no interrupt page.
    Win10Rs3_1,
    /// 5.1: target VTL.
    Win10Rs4,
    /// 5.2: silo id in TL_CONNECT.
    Win10Rs5,
    /// 5.3: MODIFYCHANNEL_RESPONSE.
    Iron,
    /// 6.0: feature flags.
    Copper,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Self; 11] = [
        Self::V1,
        Self::Win7,
        Self::Win8,
        Self::Win8_1,
        Self::Win10,
        Self::Win10Rs3,
        Self::Win10Rs3_1,
        Self::Win10Rs4,
        Self::Win10Rs5,
        Self::Iron,
        Self::Copper,
    ];
    /// The oldest version.
    pub const OLDEST: Self = Self::V1;
    /// The newest version.
    pub const NEWEST: Self = Self::Copper;

    /// The version word on the wire: major in the high half, minor in the low half.
    pub const fn word(self) -> u32 {
        match self {
            Self::V1 => 0x0000_000d,
            Self::Win7 => 0x0001_0001,
            Self::Win8 => 0x0002_0004,
            Self::Win8_1 => 0x0003_0000,
            Self::Win10 => 0x0004_0000,
            Self::Win10Rs3 => 0x0004_0001,
            Self::Win10Rs3_1 => 0x0005_0000,
            Self::Win10Rs4 => 0x0005_0001,
            Self::Win10Rs5 => 0x0005_0002,
            Self::Iron => 0x0005_0003,
            Self::Copper => 0x0006_0000,
        }
    }

    /// The version with this word, if it is a known one.
    pub fn from_word(word: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.word() == word)
    }

    /// Whether INITIATE_CONTACT for this version goes to connection id 4 and may name a SINT (5.0 and later).
    pub fn is_multi_client(self) -> bool {
        self >= Self::Win10Rs3_1
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::V1 => "0.13",
            Self::Win7 => "1.1",
            Self::Win8 => "2.4",
            Self::Win8_1 => "3.0",
            Self::Win10 => "4.0",
            Self::Win10Rs3 => "4.1",
            Self::Win10Rs3_1 => "5.0",
            Self::Win10Rs4 => "5.1",
            Self::Win10Rs5 => "5.2",
            Self::Iron => "5.3",
            Self::Copper => "6.0",
        })
    }
}

/// The text names no version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a VMBus version: expected one of 0.13 1.1 2.4 3.0 4.0 4.1 5.0 5.1 5.2 5.3 6.0")]
pub struct ParseVersionError;

impl core::str::FromStr for Version {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, minor) = text.split_once('.').ok_or(ParseVersionError)?;
        let number = |part: &str| part.parse::<u16>().map_err(|_| ParseVersionError);
        let word = u32::from(number(major)?) << 16 | u32::from(number(minor)?);
        Self::from_word(word).ok_or(ParseVersionError)
    }
}

bitflags::bitflags! {
    /// Features negotiated with version 6.0: the answer is what both ends know.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct FeatureFlags: u32 {
        /// OPENCHANNEL carries a connection id and an event flag chosen by the guest.
        const GUEST_SPECIFIED_SIGNAL_PARAMETERS = 0x01;
        /// OPENCHANNEL may ask for interrupt redirection.
        const CHANNEL_INTERRUPT_REDIRECTION = 0x02;
        /// Messages 25 and 26.
        const MODIFY_CONNECTION = 0x04;
        /// INITIATE_CONTACT carries a client GUID.
        const CLIENT_ID = 0x08;
        /// Offers may mark confidential rings and memory; granted by a paravisor only.
        const CONFIDENTIAL_CHANNELS = 0x10;
        /// Messages 27, 28 and 29.
        const PAUSE_RESUME = 0x20;
        /// The server names the monitor pages.
        const SERVER_SPECIFIED_MONITOR_PAGES = 0x40;
        /// Pinned guest pages.
        const GPA_PINNING = 0x80;
        // Bits that no sheet names are kept when read, so that they can be masked, not rejected.
        const _ = !0;
    }
}

impl FeatureFlags {
    /// All bits that have a name.
    pub const NAMED: Self = Self::from_bits_retain(0xff);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn every_version_is_written_as_it_is_read() {
        for version in Version::ALL {
            assert_eq!(version.to_string().parse(), Ok(version));
            assert_eq!(Version::from_word(version.word()), Some(version));
            let (major, minor) = (version.word() >> 16, version.word() & 0xffff);
            assert_eq!(version.to_string(), std::format!("{major}.{minor}"));
        }
        assert!(Version::ALL.is_sorted());
        assert_eq!(Version::from_word(0x0005_0004), None);
        assert_eq!("5".parse::<Version>(), Err(ParseVersionError));
    }
}
