//! The built-in host, sans-IO: frames and the time in, frames out.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Cidr, Ipv6Address};

use super::HostOptions;
use super::datagram::{Datagram, End};
use super::dhcp::{Destination, DhcpServer};
use super::names::Names;

/// Longest Ethernet frame that is taken and made. An answer is never longer than its question, so no guest gets one
/// that is longer than its own MTU.
const LONGEST_FRAME: usize = 9216 + 14;
/// Most answers that wait to be taken.
const ANSWERS: usize = 256;
/// Longest questions: those of DHCP and DNS have 576 and 512 bytes by rights.
const QUESTION: usize = 1472;

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DNS: u16 = 53;

/// A small computer with one network card.
pub(super) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    mac: EthernetAddress,
    network: Ipv4Cidr,
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
        let mut names = Names::default();
        names.fix("host", options.address);
        for (name, address) in &options.names {
            names.fix(name, *address);
        }
        let dhcp = options.dhcp.then(|| DhcpServer::new(network, options.mtu));
        Self { interface, sockets: SocketSet::new(Vec::new()), wire, mac, network, dhcp, names }
    }

    /// Takes a frame.
    pub(super) fn take(&mut self, now: Duration, frame: &[u8]) {
        if let Some(question) = Datagram::read(frame).filter(|datagram| self.is_question(datagram)) {
            let answer = match question.to.port {
                DHCP_SERVER => self.serve_dhcp(now, &question),
                _ => self.serve_dns(&question),
            };
            // What finds no room is lost, as datagrams are.
            self.wire.outgoing.extend(answer.filter(|_| self.wire.outgoing.len() < ANSWERS));
            return;
        }
        self.wire.incoming.clear();
        self.wire.incoming.extend_from_slice(frame);
        self.wire.arrived = true;
        self.interface.poll_ingress_single(instant(now), &mut self.wire, &mut self.sockets);
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

    /// Whether it is for one of the two servers.
    fn is_question(&self, datagram: &Datagram<'_>) -> bool {
        let End { mac, address, port } = datagram.to;
        let to_us = mac == self.mac && address == self.network.address();
        let to_all =
            mac.is_broadcast() && (address.is_broadcast() || Some(address) == self.network.broadcast());
        let for_server = match port {
            DHCP_SERVER => to_us || to_all,
            DNS => to_us,
            _ => false,
        };
        for_server && datagram.payload.len() <= QUESTION
    }

    fn serve_dhcp(&mut self, now: Duration, request: &Datagram<'_>) -> Option<Vec<u8>> {
        let client = request.from.mac;
        let (reply, to) = self.dhcp.as_mut()?.answer(now, client, request.payload, &mut self.names)?;
        let (mac, address) = match to {
            Destination::Everybody => (EthernetAddress::BROADCAST, Ipv4Addr::BROADCAST),
            Destination::Client(address) => (client, address),
        };
        Some(self.answer_with(DHCP_SERVER, End { mac, address, port: DHCP_CLIENT }, &reply))
    }

    fn serve_dns(&self, query: &Datagram<'_>) -> Option<Vec<u8>> {
        let answer = self.names.answer(query.payload)?;
        Some(self.answer_with(DNS, query.from, &answer))
    }

    fn answer_with(&self, port: u16, to: End, payload: &[u8]) -> Vec<u8> {
        let from = End { mac: self.mac, address: self.network.address(), port };
        Datagram { from, to, payload }.frame()
    }
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
