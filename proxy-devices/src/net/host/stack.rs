//! The built-in host, sans-IO: frames and the time in, frames out.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, IpEndpoint, Ipv4Cidr, Ipv6Address};

use super::HostOptions;
use super::dhcp::{Destination, DhcpServer};
use super::names::Names;

/// Longest Ethernet frame that is taken and made. An answer is never longer than its question, so no guest gets one
/// that is longer than its own MTU.
const LONGEST_FRAME: usize = 9216 + 14;
/// Most answers that wait to be taken.
const ANSWERS: usize = 256;
/// Datagrams that wait at each UDP port.
const DATAGRAMS: usize = 32;
/// Longest datagrams: those of DHCP and DNS have 576 and 512 bytes by rights.
const DATAGRAM: usize = 1472;

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DNS: u16 = 53;

/// A small computer with one network card.
pub(super) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp_socket: SocketHandle,
    dns_socket: SocketHandle,
    wire: Wire,
    dhcp: Option<DhcpServer>,
    names: Names,
}

impl Stack {
    pub(super) fn new(options: &HostOptions) -> Self {
        let network = Ipv4Cidr::new(options.address, options.prefix_len.min(32));
        let mac = EthernetAddress(options.mac());
        let mut wire = Wire::default();
        let mut interface = Interface::new(Config::new(mac.into()), &mut wire, instant(Duration::ZERO));
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _ = addresses.push(IpCidr::Ipv4(network));
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv6(link_local(mac)), 64));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let (dhcp_socket, dns_socket) = (listen(&mut sockets, DHCP_SERVER), listen(&mut sockets, DNS));
        let mut names = Names::default();
        names.fix("host", options.address);
        for (name, address) in &options.names {
            names.fix(name, *address);
        }
        let dhcp = options.dhcp.then(|| DhcpServer::new(network, options.mtu));
        Self { interface, sockets, dhcp_socket, dns_socket, wire, dhcp, names }
    }

    /// Takes a frame.
    pub(super) fn take(&mut self, now: Duration, frame: &[u8]) {
        self.wire.incoming.clear();
        self.wire.incoming.extend_from_slice(frame);
        self.wire.arrived = true;
        self.interface.poll_ingress_single(instant(now), &mut self.wire, &mut self.sockets);
        self.serve_dhcp(now);
        self.serve_dns();
    }

    /// Does what is due; the answers are in [`Self::answer`] then. Gives when to come again even if no frame comes.
    pub(super) fn work(&mut self, now: Duration) -> Option<Duration> {
        self.interface.poll_egress(instant(now), &mut self.wire, &mut self.sockets);
        self.interface.poll_delay(instant(now), &self.sockets).map(Into::into)
    }

    /// The next frame to send.
    pub(super) fn answer(&mut self) -> Option<Vec<u8>> {
        self.wire.outgoing.pop_front()
    }

    fn serve_dhcp(&mut self, now: Duration) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.dhcp_socket);
        while let Ok((request, _)) = socket.recv() {
            let Some(dhcp) = &mut self.dhcp else { continue };
            let Some((reply, to)) = dhcp.answer(now, request, &mut self.names) else { continue };
            let to = match to {
                Destination::Everybody => Ipv4Addr::BROADCAST,
                Destination::Client(address) => address,
            };
            // What finds no room is lost, as datagrams are.
            let _ = socket.send_slice(&reply, IpEndpoint::new(to.into(), DHCP_CLIENT));
        }
    }

    fn serve_dns(&mut self) {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.dns_socket);
        while let Ok((query, from)) = socket.recv() {
            if let Some(answer) = self.names.answer(query) {
                let _ = socket.send_slice(&answer, from);
            }
        }
    }
}

fn listen(sockets: &mut SocketSet<'static>, port: u16) -> SocketHandle {
    let buffer =
        || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; DATAGRAMS], vec![0; DATAGRAMS * DATAGRAM]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    let bound = socket.bind(port);
    debug_assert!(bound.is_ok(), "a port that is not 0, on a fresh socket");
    sockets.add(socket)
}

fn link_local(mac: EthernetAddress) -> Ipv6Address {
    let [a, b, c, d, e, f] = mac.0;
    let word = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Address::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

fn instant(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

/// The network card.
#[derive(Default)]
struct Wire {
    incoming: Vec<u8>,
    arrived: bool,
    outgoing: VecDeque<Vec<u8>>,
}

struct Incoming<'a>(&'a [u8]);
struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Wire {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        if !std::mem::take(&mut self.arrived) || self.outgoing.len() >= ANSWERS {
            return None;
        }
        Some((Incoming(&self.incoming), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < ANSWERS).then_some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = LONGEST_FRAME;
        capabilities
    }
}

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push_back(frame);
        result
    }
}
