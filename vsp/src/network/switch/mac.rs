//! Addresses of Ethernet.

use std::fmt;
use std::str::FromStr;

/// An address on an Ethernet. Written and read as `02:00:00:00:00:01`, read with `-` too.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Everybody.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// An address for whoever is called so: the same each time, in the part that is nobody's by standard, and other
    /// than that of other names but for one case in 2^40.
    pub fn of_name(name: &str) -> Self {
        // FNV-1a, and then the finaliser of MurmurHash3, as short names differ in few bits.
        let mixed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mixed = (mixed ^ mixed >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let [a, b, c, d, e, ..] = (mixed ^ mixed >> 33).to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }

    /// Whether it names a group: several receivers, never a sender. Everybody is a group too.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it can be a sender's: of one station, and not zero.
    pub const fn is_station(self) -> bool {
        !self.is_group() && self.to_u64() != 0
    }

    /// Whether it names whoever is at the other end of a wire, as spanning trees and LLDP do: no switch forwards it.
    pub const fn is_link_local(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f])
    }

    /// As the low 48 bits of a number.
    pub(super) const fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// From the low 48 bits of a number.
    pub(super) const fn from_u64(number: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = number.to_be_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Text that is not an address. The writer's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no MAC address: six bytes like 02:00:00:00:00:01")]
pub struct MacAddressError(String);

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || MacAddressError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        let address = MacAddress([0x02, 0, 0, 0xab, 0xcd, 0xef]);
        assert_eq!(address.to_string(), "02:00:00:ab:cd:ef");
        assert_eq!("02-00-00-AB-CD-EF".parse(), Ok(address));
        assert_eq!(MacAddress::from_u64(address.to_u64()), address);
        for wrong in ["", "02:00:00:ab:cd", "02:00:00:ab:cd:ef:00", "2:0:0:ab:cd:ef", "02:00:00:ab:cd:+f"] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_have_addresses_of_their_own_that_stay() {
        let names: Vec<String> = (0..1000).map(|number| format!("lan/guest{number}")).collect();
        let addresses: std::collections::BTreeSet<_> =
            names.iter().map(|name| MacAddress::of_name(name)).collect();
        assert_eq!(addresses.len(), names.len());
        assert!(addresses.iter().all(|address| address.is_station() && address.0[0] == 2));
        assert_eq!(MacAddress::of_name("lan/alice"), MacAddress::of_name("lan/alice"));
    }

    #[test]
    fn groups_and_zero_are_no_senders() {
        assert!(MacAddress([2, 0, 0, 0, 0, 1]).is_station());
        assert!(!MacAddress::BROADCAST.is_station() && !MacAddress([0; 6]).is_station());
        assert!(!MacAddress([1, 0, 0x5e, 0, 0, 1]).is_station());
    }
}
