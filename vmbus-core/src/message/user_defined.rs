//! The 120 bytes in offers and opens that carry what a device protocol wants.

use core::fmt;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Guid;
use crate::wire::{open_values, wire_struct};

/// 120 bytes whose meaning the device protocol gives.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct UserDefined(pub [u8; 120]);

impl UserDefined {
    /// These bytes begin with `start`; the rest is zero. What is longer is cut.
    pub fn new<T: IntoBytes + Immutable + ?Sized>(start: &T) -> Self {
        let mut bytes = [0; 120];
        for (place, &byte) in bytes.iter_mut().zip(start.as_bytes()) {
            *place = byte;
        }
        Self(bytes)
    }

    /// The first bytes as a structure of the device protocol, of at most 120 bytes; zeros for one that is longer.
    pub fn start<T: FromBytes + KnownLayout + Immutable>(&self) -> T {
        T::read_from_prefix(&self.0).map_or_else(|_| T::new_zeroed(), |(value, _)| value)
    }

    /// What the offer of a pipe carries.
    pub fn pipe(mode: PipeMode) -> Self {
        Self::new(&U32::new(mode.0))
    }

    /// The mode of an offered pipe ([`OfferFlags::NAMED_PIPE_MODE`](super::OfferFlags::NAMED_PIPE_MODE)).
    pub fn pipe_mode(&self) -> PipeMode {
        PipeMode(self.start::<U32>().get())
    }
}

open_values! {
    /// Whether the packets of a pipe are messages.
    pub struct PipeMode(u32) {
        /// They are a stream; where one ends means nothing.
        BYTE_STREAM = 0,
        /// Each is a message.
        MESSAGE = 4,
    }
}

wire_struct! {
    /// What the offer of an hvsock connection carries, 28 bytes.
    pub struct HvsockOffer {
        /// [`PipeMode::BYTE_STREAM`].
        pub pipe_mode: U32,
        /// 1 if the guest is to accept, 0 if this is the answer to its own connect.
        pub guest_accepts: u8,
        /// 1 if it is for a container in the guest.
        pub for_container: u8,
        /// 0 before, 1 from version 5.2: the silo is valid.
        pub version: U32,
        /// Silo.
        pub silo_id: Guid,
        /// 0.
        pub padding: U16,
    }
}

impl Default for UserDefined {
    fn default() -> Self {
        Self([0; 120])
    }
}

impl fmt::Debug for UserDefined {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.0.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        write!(formatter, "{:02x?}", &self.0[..used])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_too_long_for_the_field_is_zeros_and_bytes_too_long_are_cut() {
        let bytes = UserDefined::new(&[7_u8; 200]);
        assert_eq!(bytes.0, [7; 120]);
        assert_eq!(bytes.start::<[u8; 121]>(), [0; 121]);
        assert_eq!(bytes.start::<[u8; 3]>(), [7; 3]);
    }
}
