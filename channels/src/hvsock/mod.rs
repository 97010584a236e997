//! Stream sockets over the bus: a guest connects to a service of the root, or the root to one of a guest
//! (`docs/src/protocol/control.md`, "Stream sockets").
//!
//! A service has a GUID; Linux guests know those of [`port`]s alone. [`HvListener`] accepts, [`HvStream`] carries bytes
//! both ways. Both live beside the channels of devices and are no devices: they do not show among a guest's offers.

mod listener;
mod services;
mod stream;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use vmbus_core::message::{HvsockOffer, OfferFlags, PipeMode, UserDefined};
use vmbus_core::{Guid, Version};

pub use self::listener::HvListener;
pub(crate) use self::services::{Incoming, Services};
pub use self::stream::{HvReadHalf, HvStream, HvWriteHalf};
use crate::error::Error;
use crate::offer::{Framing, Offer};
use crate::provider::Client;

/// The GUID of a vsock port, but for the port itself, which stands in its first 32 bits.
const VSOCK: Guid = vmbus_core::guid!("00000000-facb-11e6-bd58-64006a7986d3");

/// The service behind vsock port `port`: what `AF_VSOCK` sockets of Linux guests connect to and listen at.
pub const fn port(port: u32) -> Guid {
    let mut wire = VSOCK.to_wire();
    let [a, b, c, d] = port.to_le_bytes();
    (wire[0], wire[1], wire[2], wire[3]) = (a, b, c, d);
    Guid::from_wire(wire)
}

/// The vsock port that `service` stands for, if it stands for one.
pub fn port_of(service: Guid) -> Option<u32> {
    let [a, b, c, d, ..] = service.to_wire();
    let number = u32::from_le_bytes([a, b, c, d]);
    (port(number) == service).then_some(number)
}

/// A service as people write it: a vsock port number or a GUID.
///
/// # Errors
/// [`Error::NotAService`].
pub fn parse(text: &str) -> Result<Guid, Error> {
    match text.parse() {
        Ok(number) => Ok(port(number)),
        Err(_) => Guid::parse(text).map_err(|_| Error::NotAService(text.to_owned())),
    }
}

/// A service as people read it: `port 22`, or the GUID.
pub fn show(service: Guid) -> String {
    port_of(service).map_or_else(|| service.to_string(), |port| format!("port {port}"))
}

/// Who is at the other end of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HvPeer {
    /// The partition; `None` for the root.
    pub partition: Option<Client>,
    /// The service that was connected to.
    pub service: Guid,
    /// The name of the connection; chosen by who connected. One of a vsock socket has its port ([`port_of`]).
    pub endpoint: Guid,
}

/// Bounds of stream sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HvLimits {
    /// Streams that one partition may have with us at a time, however they came to be. A closed one counts until it
    /// is dropped.
    pub streams: usize,
    /// Connections to one service that wait to be accepted.
    pub backlog: usize,
    /// How long a connect may take the other end.
    pub patience: Duration,
}

impl Default for HvLimits {
    fn default() -> Self {
        Self { streams: 256, backlog: 128, patience: Duration::from_secs(10) }
    }
}

/// Which end answers the connect that an offer stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepts {
    /// The guest connected.
    Host,
    /// The host connected.
    Guest,
}

/// What an offer says when it stands for a connection to `service` named `endpoint`.
pub(crate) fn offer(service: Guid, endpoint: Guid, accepts: Accepts, silo: Guid, version: Version) -> Offer {
    let silo = if version >= Version::Win10Rs5 { silo } else { Guid::ZERO };
    let user_defined = HvsockOffer {
        pipe_mode: PipeMode::BYTE_STREAM.0.into(),
        guest_accepts: u8::from(accepts == Accepts::Guest),
        for_container: 0,
        version: u32::from(version >= Version::Win10Rs5).into(),
        silo_id: silo,
        padding: 0.into(),
    };
    let mut offer = Offer::new(service, format!("hvsock {}", show(service)))
        .instance(endpoint)
        .framing(Framing::ByteStream)
        .user_defined(UserDefined::new(&user_defined))
        .more_flags(OfferFlags::TLNPI_PROVIDER);
    // No requests travel here.
    offer.requests = 0;
    offer
}

/// A name for a connection that no other has.
pub(crate) fn endpoint() -> Guid {
    // The seeds of hash maps are the random numbers that the standard library has.
    let random = || RandomState::new().build_hasher().finish().to_le_bytes();
    let mut wire = [0; 16];
    wire[..8].copy_from_slice(&random());
    wire[8..].copy_from_slice(&random());
    Guid::from_wire(wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_guid_and_back() {
        assert_eq!(port(22).to_string(), "00000016-facb-11e6-bd58-64006a7986d3");
        assert_eq!(port_of(port(u32::MAX)), Some(u32::MAX));
        assert_eq!(port_of(Guid::ZERO), None);
        assert_eq!(parse("5000").unwrap(), port(5000));
        assert_eq!(parse("00001388-facb-11e6-bd58-64006a7986d3").unwrap(), port(5000));
        assert!(parse("ssh").unwrap_err().to_string().contains("`ssh`"));
        assert_eq!((show(port(22)), show(Guid::ZERO)), ("port 22".into(), Guid::ZERO.to_string()));
        assert_ne!(endpoint(), endpoint());
    }
}
