//! What PERSISTENT RESERVE IN returns and PERSISTENT RESERVE OUT takes.

use alloc::vec::Vec;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::Failure;
use crate::wire::{open_values, wire_struct};

open_values! {
    /// What PERSISTENT RESERVE IN asks.
    pub struct ReserveInAction(u8) {
        /// All keys: [`ReservationKeys`].
        READ_KEYS = 0,
        /// The reservation: [`Reservation`].
        READ_RESERVATION = 1,
        /// What is supported: [`ReservationCapabilities`].
        REPORT_CAPABILITIES = 2,
        /// All registrants: [`FullStatus`].
        READ_FULL_STATUS = 3,
    }
}

open_values! {
    /// What PERSISTENT RESERVE OUT does.
    pub struct ReserveOutAction(u8) {
        /// Registers a key, or with key 0 takes it back.
        REGISTER = 0,
        /// Reserves.
        RESERVE = 1,
        /// Lets the reservation go.
        RELEASE = 2,
        /// Removes all keys and the reservation.
        CLEAR = 3,
        /// Takes over from another.
        PREEMPT = 4,
        /// Takes over and gives the other's commands up.
        PREEMPT_AND_ABORT = 5,
        /// Registers whatever key there was.
        REGISTER_AND_IGNORE = 6,
        /// Registers for another port.
        REGISTER_AND_MOVE = 7,
        /// Replaces a lost reservation.
        REPLACE_LOST = 8,
    }
}

open_values! {
    /// Who may do what under a reservation.
    pub struct ReservationKind(u8) {
        /// The holder writes.
        WRITE_EXCLUSIVE = 1,
        /// The holder reads and writes.
        EXCLUSIVE_ACCESS = 3,
        /// Registrants write.
        WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5,
        /// Registrants read and write.
        EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6,
        /// Registrants write, and all hold the reservation.
        WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7,
        /// Registrants read and write, and all hold the reservation.
        EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8,
    }
}

wire_struct! {
    struct ListHeader {
        generation: U32,
        length: U32,
    }
}

/// Answer to READ KEYS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservationKeys<'a> {
    /// Counts changes.
    pub generation: u32,
    /// The keys; of a cut answer those that are there.
    pub keys: &'a [U64],
}

impl<'a> ReservationKeys<'a> {
    /// Reads an answer.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (generation, list) = split_list(bytes)?;
        let (keys, _) = <[U64]>::ref_from_prefix_with_elems(list, list.len() / 8).ok()?;
        Some(Self { generation, keys })
    }

    /// The answer's bytes.
    pub fn emit(&self) -> Vec<u8> {
        with_list(self.generation, self.keys.as_bytes())
    }
}

/// Answer to READ RESERVATION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Counts changes.
    pub generation: u32,
    /// The reservation, if there is one.
    pub held: Option<ReservationDescriptor>,
}

wire_struct! {
    /// A reservation.
    pub struct ReservationDescriptor {
        /// The holder's key, 0 if all registrants hold it.
        pub key: U64,
        /// 0.
        pub obsolete: U32,
        /// 0.
        pub reserved: u8,
        /// Scope in bits 7:4, [`ReservationKind`] in bits 3:0.
        pub scope_and_kind: u8,
        /// 0.
        pub obsolete2: U16,
    }
}

impl Reservation {
    /// Reads an answer.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (generation, list) = split_list(bytes)?;
        let held = ReservationDescriptor::read_from_prefix(list).ok().map(|(held, _)| held);
        Some(Self { generation, held })
    }

    /// The answer's bytes.
    pub fn emit(&self) -> Vec<u8> {
        with_list(self.generation, self.held.as_ref().map_or(&[], IntoBytes::as_bytes))
    }
}

wire_struct! {
    /// Answer to REPORT CAPABILITIES, 8 bytes.
    pub struct ReservationCapabilities {
        /// 8.
        pub length: U16,
        /// Bit 7 RLR_C, bit 4 CRH, bit 3 SIP_C, bit 2 ATP_C, bit 0: reservations can outlast power loss.
        pub flags: u8,
        /// Bit 7: the kinds below are valid; bit 0: reservations do outlast power loss.
        pub flags2: u8,
        /// One bit for each kind, see [`ReservationCapabilities::ALL_KINDS`].
        pub kinds: U16,
        /// 0.
        pub reserved: U16,
    }
}

impl ReservationCapabilities {
    /// All six kinds.
    pub const ALL_KINDS: u16 = 0xea01;

    /// Reads an answer.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(capabilities, _)| capabilities)
    }
}

/// Answer to READ FULL STATUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullStatus<'a> {
    /// Counts changes.
    pub generation: u32,
    /// All registrants; of a cut answer those that are there.
    pub registrants: Vec<Registrant<'a>>,
}

/// One registrant and the name of its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrant<'a> {
    /// Its key and what it holds. The length in it follows [`Registrant::transport_id`] when written.
    pub descriptor: RegistrantDescriptor,
    /// Name of its port, by transport.
    pub transport_id: &'a [u8],
}

wire_struct! {
    /// The fixed part of a registrant's status, 24 bytes.
    pub struct RegistrantDescriptor {
        /// Its key.
        pub key: U64,
        /// 0.
        pub reserved: U32,
        /// Bit 1: registered for all target ports; bit 0: it holds the reservation.
        pub flags: u8,
        /// Scope in bits 7:4, [`ReservationKind`] in bits 3:0.
        pub scope_and_kind: u8,
        /// 0.
        pub reserved2: U32,
        /// Which port of the target.
        pub relative_port: U16,
        /// Bytes of the transport id that follows.
        pub transport_id_length: U32,
    }
}

impl<'a> FullStatus<'a> {
    /// Reads an answer.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (generation, mut list) = split_list(bytes)?;
        let mut registrants = Vec::new();
        while let Ok((descriptor, rest)) = RegistrantDescriptor::read_from_prefix(list)
            && let Some((transport_id, rest)) =
                rest.split_at_checked(descriptor.transport_id_length.get() as usize)
        {
            registrants.push(Registrant { descriptor, transport_id });
            list = rest;
        }
        Some(Self { generation, registrants })
    }

    /// The answer's bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut list = Vec::new();
        for Registrant { descriptor, transport_id } in &self.registrants {
            let transport_id_length = U32::new(u32::try_from(transport_id.len()).unwrap_or(u32::MAX));
            list.extend(RegistrantDescriptor { transport_id_length, ..*descriptor }.as_bytes());
            list.extend(*transport_id);
        }
        with_list(self.generation, &list)
    }
}

wire_struct! {
    /// Parameter list of PERSISTENT RESERVE OUT, 24 bytes.
    pub struct ReserveOutParameters {
        /// The sender's key.
        pub reservation_key: U64,
        /// The new key, or the other's key.
        pub service_action_key: U64,
        /// 0.
        pub obsolete: U32,
        /// See [`ReserveOutParameters::PERSIST`] and its neighbours.
        pub flags: u8,
        /// 0.
        pub reserved: u8,
        /// 0.
        pub obsolete2: U16,
    }
}

impl ReserveOutParameters {
    /// Flag: keep the registration through power loss.
    pub const PERSIST: u8 = 0x01;
    /// Flag: register for all target ports.
    pub const ALL_TARGET_PORTS: u8 = 0x04;
    /// Flag: the list names the ports to register.
    pub const SPECIFIED_PORTS: u8 = 0x08;

    /// Reads a list, which must be exactly 24 bytes; errors are the guest's fault.
    pub fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        Self::read_from_bytes(bytes).map_err(|_| Failure::ParameterListLength)
    }
}

/// The generation, and the list as far as it is there.
fn split_list(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (header, rest) = ListHeader::read_from_prefix(bytes).ok()?;
    let len = rest.len().min(header.length.get() as usize);
    Some((header.generation.get(), &rest[..len]))
}

fn with_list(generation: u32, list: &[u8]) -> Vec<u8> {
    let length = U32::new(u32::try_from(list.len()).unwrap_or(u32::MAX));
    [ListHeader { generation: U32::new(generation), length }.as_bytes(), list].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_status_survives_the_journey_and_a_cut_one_ends_early() {
        let registrant = |key, transport_id: &'static [u8]| Registrant {
            descriptor: RegistrantDescriptor {
                key: U64::new(key),
                transport_id_length: U32::new(u32::try_from(transport_id.len()).unwrap()),
                ..RegistrantDescriptor::default()
            },
            transport_id,
        };
        let status =
            FullStatus { generation: 3, registrants: [registrant(1, b"port"), registrant(2, b"")].to_vec() };
        let bytes = status.emit();
        assert_eq!(FullStatus::parse(&bytes), Some(status));
        assert_eq!(FullStatus::parse(&bytes[..bytes.len() - 1]).unwrap().registrants.len(), 1);
    }

    #[test]
    fn no_reservation_is_an_empty_list() {
        let none = Reservation { generation: 9, held: None };
        assert_eq!(none.emit(), [0, 0, 0, 9, 0, 0, 0, 0]);
        assert_eq!(Reservation::parse(&none.emit()), Some(none));
    }

    #[test]
    fn parameters_of_another_length_are_refused() {
        for len in [0, 23, 25] {
            let bytes = std::vec![0; len];
            assert_eq!(ReserveOutParameters::parse(&bytes), Err(Failure::ParameterListLength), "{len}");
        }
    }
}
