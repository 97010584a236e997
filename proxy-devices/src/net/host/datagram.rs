//! Questions and answers: UDP over IPv4, each a whole Ethernet frame.
//!
//! An answer goes to the Ethernet address that its question came from. So nobody is looked for first, and no question
//! makes another wait, whatever address it says to come from.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol, Ipv4Packet,
    Ipv4Repr, UdpPacket, UdpRepr,
};

const HOPS: u8 = 64;

/// A sender or a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) mac: EthernetAddress,
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
}

/// A frame with something to answer in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram<'a> {
    pub(super) from: End,
    pub(super) to: End,
    pub(super) payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// The datagram that a frame is; `None` if it is none, is broken, or comes from no single sender.
    pub(super) fn read(frame: &'a [u8]) -> Option<Self> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        if frame.ethertype() != EthernetProtocol::Ipv4 || !frame.src_addr().is_unicast() {
            return None;
        }
        let ip = Ipv4Packet::new_checked(frame.payload()).ok()?;
        // It excludes fragments.
        let header = Ipv4Repr::parse(&ip, &ChecksumCapabilities::default()).ok()?;
        if header.next_header != IpProtocol::Udp
            || header.src_addr.is_multicast()
            || header.src_addr.is_broadcast()
        {
            return None;
        }
        let udp = UdpPacket::new_checked(ip.payload()).ok()?;
        let (source, destination) = (header.src_addr.into(), header.dst_addr.into());
        let ports = UdpRepr::parse(&udp, &source, &destination, &ChecksumCapabilities::default()).ok()?;
        Some(Self {
            from: End { mac: frame.src_addr(), address: header.src_addr, port: ports.src_port },
            to: End { mac: frame.dst_addr(), address: header.dst_addr, port: ports.dst_port },
            payload: udp.payload(),
        })
    }

    /// The frame that this is.
    pub(super) fn frame(&self) -> Vec<u8> {
        let checksums = ChecksumCapabilities::default();
        let udp = UdpRepr { src_port: self.from.port, dst_port: self.to.port };
        let ip = Ipv4Repr {
            src_addr: self.from.address,
            dst_addr: self.to.address,
            next_header: IpProtocol::Udp,
            payload_len: udp.header_len() + self.payload.len(),
            hop_limit: HOPS,
        };
        let ethernet = EthernetRepr {
            src_addr: self.from.mac,
            dst_addr: self.to.mac,
            ethertype: EthernetProtocol::Ipv4,
        };
        let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        ethernet.emit(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &checksums);
        let (from, to): (IpAddress, IpAddress) = (self.from.address.into(), self.to.address.into());
        udp.emit(
            &mut UdpPacket::new_unchecked(packet.payload_mut()),
            &from,
            &to,
            self.payload.len(),
            |payload| payload.copy_from_slice(self.payload),
            &checksums,
        );
        bytes
    }
}
