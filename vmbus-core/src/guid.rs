//! GUIDs in the mixed-endian order of the wire.

use core::fmt;
use core::str::FromStr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A GUID as 16 wire bytes: `data1` u32, `data2` u16 and `data3` u16 little-endian, then 8 raw bytes.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
pub struct Guid([u8; 16]);

/// Position in the wire bytes of each byte of the written form, left to right.
const WRITTEN_ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
/// Indices in the written form (36 characters) where a hyphen stands.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];
const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The text is not a GUID of the form `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a GUID: expected xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx in hexadecimal digits")]
pub struct ParseGuidError;

impl Guid {
    /// The all-zero GUID.
    pub const ZERO: Self = Self([0; 16]);

    /// The GUID with these 16 wire bytes.
    pub const fn from_wire(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 wire bytes.
    pub const fn to_wire(self) -> [u8; 16] {
        self.0
    }

    /// Parses the written form, with or without braces.
    pub const fn parse(text: &str) -> Result<Self, ParseGuidError> {
        let text = text.as_bytes();
        let start = match text {
            [b'{', .., b'}'] if text.len() == 38 => 1,
            _ if text.len() == 36 => 0,
            _ => return Err(ParseGuidError),
        };
        let mut wire = [0; 16];
        let (mut at, mut byte) = (0, 0);
        while at < 36 {
            if at == HYPHENS[0] || at == HYPHENS[1] || at == HYPHENS[2] || at == HYPHENS[3] {
                if text[start + at] != b'-' {
                    return Err(ParseGuidError);
                }
                at += 1;
                continue;
            }
            match (hex_digit(text[start + at]), hex_digit(text[start + at + 1])) {
                (Some(high), Some(low)) => wire[WRITTEN_ORDER[byte]] = high << 4 | low,
                _ => return Err(ParseGuidError),
            }
            at += 2;
            byte += 1;
        }
        Ok(Self(wire))
    }
}

const fn hex_digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        b'A'..=b'F' => Some(character - b'A' + 10),
        _ => None,
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'-'; 36];
        let mut at = 0;
        for position in WRITTEN_ORDER {
            if HYPHENS.contains(&at) {
                at += 1;
            }
            let byte = self.0[position];
            text[at] = HEX_DIGITS[usize::from(byte >> 4)];
            text[at + 1] = HEX_DIGITS[usize::from(byte & 0xf)];
            at += 2;
        }
        formatter.pad(core::str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for Guid {
    type Err = ParseGuidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// A [`Guid`] checked when the program is compiled.
#[macro_export]
macro_rules! guid {
    ($text:literal) => {
        const {
            match $crate::Guid::parse($text) {
                Ok(guid) => guid,
                Err(_) => panic!("not a GUID"),
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn wire_order_is_mixed_endian() {
        let scsi = guid!("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
        let wire =
            [0xd9, 0x63, 0x61, 0xba, 0xa1, 0x04, 0x29, 0x4d, 0xb6, 0x05, 0x72, 0xe2, 0xff, 0xb1, 0xdc, 0x7f];
        assert_eq!(scsi.to_wire(), wire);
        assert_eq!(scsi.to_string(), "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
        assert_eq!(std::format!("{scsi:.8}|{scsi:>38}"), "ba6163d9|  ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
    }

    #[test]
    fn braces_and_capitals_are_accepted_and_rubbish_is_not() {
        assert_eq!(
            Guid::parse("{BA6163D9-04A1-4D29-B605-72E2FFB1DC7F}"),
            Guid::parse("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
        );
        for bad in
            ["", "ba6163d9", "ba6163d9x04a1-4d29-b605-72e2ffb1dc7f", "ga6163d9-04a1-4d29-b605-72e2ffb1dc7f"]
        {
            assert_eq!(Guid::parse(bad), Err(ParseGuidError), "{bad}");
        }
    }
}
