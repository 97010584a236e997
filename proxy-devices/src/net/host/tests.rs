//! The built-in host against a client that is not ours: smoltcp's own DHCP, DNS and ping, by a virtual clock.

use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, dns, icmp};
use smoltcp::time::Instant;
use smoltcp::wire::{
    DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, DnsQueryType, EthernetAddress, Icmpv4Packet,
    Icmpv4Repr, IpAddress, IpCidr, Ipv4Cidr,
};

use super::HostOptions;
use super::datagram::{Datagram, End};
use super::dhcp::{Destination, DhcpServer, POOL};
use super::names::Names;
use super::stack::Stack;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const STEP: Duration = Duration::from_millis(10);

fn client_mac(number: u32) -> EthernetAddress {
    let [a, b, c, d] = number.to_be_bytes();
    EthernetAddress([2, 0, a, b, c, d])
}

/// A host and a client on one wire.
struct World {
    host: Stack,
    now: Duration,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: SocketHandle,
}

impl World {
    fn new() -> Self {
        let mut card = Card::default();
        let now = Instant::from_micros(0);
        let interface = Interface::new(Config::new(client_mac(7).into()), &mut card, now);
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = sockets.add(dhcpv4::Socket::new());
        let host = Stack::new(&HostOptions::new(HOST, 24));
        Self { host, now: Duration::ZERO, card, interface, sockets, dhcp }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = Instant::from_micros(i64::try_from(self.now.as_micros()).unwrap());
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        for frame in std::mem::take(&mut self.card.sent) {
            self.host.take(self.now, &frame);
        }
        self.host.work(self.now);
        self.card.received.extend(std::iter::from_fn(|| self.host.answer()));
    }

    fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Self) -> Option<T>) -> T {
        for _ in 0..3000 {
            self.step();
            if let Some(found) = found(self) {
                return found;
            }
        }
        panic!("not within 30 s: {what}");
    }

    /// Asks for an address and uses it.
    fn lease(&mut self) -> (Ipv4Cidr, Option<Ipv4Addr>, Vec<Ipv4Addr>) {
        let dhcp = self.dhcp;
        let lease =
            self.until("a lease", |world| match world.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() {
                Some(dhcpv4::Event::Configured(config)) => {
                    Some((config.address, config.router, config.dns_servers.to_vec()))
                }
                Some(dhcpv4::Event::Deconfigured) | None => None,
            });
        self.interface.update_ip_addrs(|addresses| addresses.push(IpCidr::Ipv4(lease.0)).unwrap());
        lease
    }
}

#[derive(Default)]
struct Card {
    received: std::collections::VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sent<'_>)> {
        Some((Received(self.received.pop_front()?), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.push(frame);
        result
    }
}

#[test]
fn a_client_gets_an_address_finds_the_host_by_its_name_and_pings_it() {
    let mut world = World::new();
    let (address, router, servers) = world.lease();
    assert_eq!(address, Ipv4Cidr::new(Ipv4Addr::new(10, 0, 0, 2), 24));
    assert_eq!((router, servers.as_slice()), (Some(HOST), &[HOST][..]));

    let servers = [IpAddress::Ipv4(HOST)];
    let resolver = world.sockets.add(dns::Socket::new(&servers, vec![None]));
    let ask = |world: &mut World, name: &str| {
        let socket = world.sockets.get_mut::<dns::Socket<'_>>(resolver);
        let query = socket.start_query(world.interface.context(), name, DnsQueryType::A).unwrap();
        world.until(name, |world| {
            let socket = world.sockets.get_mut::<dns::Socket<'_>>(resolver);
            match socket.get_query_result(query) {
                Ok(addresses) => Some(addresses.first().copied()),
                Err(dns::GetQueryResultError::Failed) => Some(None),
                Err(dns::GetQueryResultError::Pending) => None,
            }
        })
    };
    assert_eq!(ask(&mut world, "host.vmbus.internal"), Some(IpAddress::Ipv4(HOST)));
    assert_eq!(ask(&mut world, "example.org"), None);

    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 2], vec![0; 4096]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(1)).unwrap();
    let pinger = world.sockets.add(socket);
    let data = [0x5a; 1400];
    let echo = Icmpv4Repr::EchoRequest { ident: 1, seq_no: 1, data: &data };
    let mut bytes = vec![0; echo.buffer_len()];
    let checksums = smoltcp::phy::ChecksumCapabilities::default();
    echo.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &checksums);
    world.sockets.get_mut::<icmp::Socket<'_>>(pinger).send_slice(&bytes, IpAddress::Ipv4(HOST)).unwrap();
    let reply = world.until("an echo", |world| {
        let socket = world.sockets.get_mut::<icmp::Socket<'_>>(pinger);
        socket.recv().ok().map(|(reply, _)| reply.to_vec())
    });
    let reply = Icmpv4Packet::new_checked(&reply[..]).unwrap();
    assert_eq!(
        Icmpv4Repr::parse(&reply, &checksums),
        Ok(Icmpv4Repr::EchoReply { ident: 1, seq_no: 1, data: &data })
    );
}

/// A request without anything in it.
fn dhcp_request<'a>(client: u32, kind: DhcpMessageType) -> DhcpRepr<'a> {
    let none = Ipv4Addr::UNSPECIFIED;
    DhcpRepr {
        message_type: kind,
        transaction_id: client,
        secs: 0,
        client_hardware_address: client_mac(client),
        client_ip: none,
        your_ip: none,
        server_ip: none,
        router: None,
        subnet_mask: None,
        relay_agent_ip: none,
        broadcast: true,
        requested_ip: None,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    }
}

fn bytes_of(request: &DhcpRepr<'_>) -> Vec<u8> {
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).unwrap();
    bytes
}

/// What a client sends, and what it is answered.
struct Asked<'a> {
    server: &'a mut DhcpServer,
    names: Names,
    now: Duration,
    /// The card that sends all of it, where it is not each client's own.
    from: Option<EthernetAddress>,
}

impl Asked<'_> {
    fn send(
        &mut self,
        client: u32,
        kind: DhcpMessageType,
        change: impl FnOnce(&mut DhcpRepr<'_>),
    ) -> Option<(DhcpMessageType, Ipv4Addr, Destination)> {
        let mut request = dhcp_request(client, kind);
        change(&mut request);
        self.say(client, &request)
    }

    fn say(
        &mut self,
        client: u32,
        request: &DhcpRepr<'_>,
    ) -> Option<(DhcpMessageType, Ipv4Addr, Destination)> {
        let from = self.from.unwrap_or(client_mac(client));
        let (reply, to) = self.server.answer(self.now, from, &bytes_of(request), &mut self.names)?;
        let packet = DhcpPacket::new_checked(&reply[..]).unwrap();
        let reply = DhcpRepr::parse(&packet).unwrap();
        assert_eq!(reply.transaction_id, client);
        Some((reply.message_type, reply.your_ip, to))
    }

    fn discover(&mut self, client: u32) -> Option<Ipv4Addr> {
        self.send(client, DhcpMessageType::Discover, |_| {}).map(|(kind, address, _)| {
            assert_eq!(kind, DhcpMessageType::Offer);
            address
        })
    }

    /// Asks for an address by a name.
    fn request_named(&mut self, client: u32, address: Ipv4Addr, name: &str) {
        let options = [DhcpOption { kind: 12, data: name.as_bytes() }];
        let mut named = dhcp_request(client, DhcpMessageType::Request);
        named.requested_ip = Some(address);
        named.additional_options = &options;
        let acknowledged = self.say(client, &named).map(|(kind, address, _)| (kind, address));
        assert_eq!(acknowledged, Some((DhcpMessageType::Ack, address)));
    }

    fn request(&mut self, client: u32, address: Ipv4Addr) -> DhcpMessageType {
        self.send(client, DhcpMessageType::Request, |request| request.requested_ip = Some(address)).unwrap().0
    }
}

fn asked(server: &mut DhcpServer) -> Asked<'_> {
    Asked { server, names: Names::default(), now: Duration::ZERO, from: None }
}

#[test]
fn an_address_is_lent_to_one_client_until_the_lease_ends() {
    let mut server = DhcpServer::new(Ipv4Cidr::new(HOST, 30), None);
    let mut asked = asked(&mut server);
    let only = Ipv4Addr::new(10, 0, 0, 2);
    assert_eq!(asked.discover(1), Some(only));
    assert_eq!(asked.request(1, only), DhcpMessageType::Ack);
    assert_eq!(asked.discover(2), None, "there is no second address");
    assert_eq!(asked.request(2, only), DhcpMessageType::Nak);
    assert_eq!(asked.discover(1), Some(only), "who has it gets it again");

    let renewed = asked.send(1, DhcpMessageType::Request, |request| request.client_ip = only);
    assert_eq!(renewed, Some((DhcpMessageType::Ack, only, Destination::Client(only))));

    asked.now = Duration::from_secs(4000);
    assert_eq!(asked.discover(2), Some(only), "the lease has ended");
    assert_eq!(asked.request(2, only), DhcpMessageType::Ack);
    assert_eq!(asked.request(1, only), DhcpMessageType::Nak);
    asked.send(2, DhcpMessageType::Release, |request| request.client_ip = only);
    assert_eq!(asked.request(1, only), DhcpMessageType::Ack, "given back");
}

#[test]
fn an_address_that_somebody_else_uses_is_not_lent_and_another_servers_offer_is_let_go() {
    let mut server = DhcpServer::new(Ipv4Cidr::new(HOST, 29), None);
    let mut asked = asked(&mut server);
    let first = asked.discover(1).unwrap();
    asked.send(1, DhcpMessageType::Decline, |request| request.requested_ip = Some(first));
    let second = asked.discover(1).unwrap();
    assert_ne!(first, second);
    let elsewhere = asked.send(1, DhcpMessageType::Request, |request| {
        request.server_identifier = Some(Ipv4Addr::new(10, 0, 0, 6));
        request.requested_ip = Some(Ipv4Addr::new(10, 0, 0, 5));
    });
    assert_eq!(elsewhere, None);
    assert_eq!(asked.discover(2), Some(second), "the offer is free again");
    assert_eq!(
        asked.request(3, Ipv4Addr::new(10, 1, 0, 1)),
        DhcpMessageType::Nak,
        "another network's address"
    );
    assert_eq!(asked.request(3, HOST), DhcpMessageType::Nak, "our own address");
}

#[test]
fn a_guest_that_makes_up_clients_is_lent_no_more_than_the_pool() {
    let mut server = DhcpServer::new(Ipv4Cidr::new(HOST, 8), None);
    let mut asked = asked(&mut server);
    let lent = (0..2 * POOL).filter_map(|client| asked.discover(client)).count();
    assert!(lent <= POOL as usize && lent > 1000, "{lent}");
    assert!(asked.server.lent() <= POOL as usize);
}

#[test]
fn a_guest_cannot_take_the_name_or_the_lease_of_another() {
    let mut server = DhcpServer::new(Ipv4Cidr::new(HOST, 29), None);
    let mut asked = asked(&mut server);
    let hers = asked.discover(1).unwrap();
    asked.request_named(1, hers, "alice");
    // In its own name, of her address.
    asked.send(2, DhcpMessageType::Release, |request| request.client_ip = hers);
    assert_eq!(asked.names.find("alice"), Some(hers));
    // In her name.
    asked.from = Some(client_mac(2));
    for kind in [DhcpMessageType::Release, DhcpMessageType::Decline, DhcpMessageType::Request] {
        let answer = asked.send(1, kind, |request| {
            request.client_ip = hers;
            request.requested_ip = Some(hers);
            request.server_identifier = Some(Ipv4Addr::new(10, 0, 0, 6));
        });
        assert_eq!(answer, None);
    }
    asked.from = None;
    assert_eq!(asked.names.find("alice"), Some(hers));
    assert_eq!(asked.request(2, hers), DhcpMessageType::Nak, "it is hers still");
    asked.send(1, DhcpMessageType::Release, |request| request.client_ip = hers);
    assert_eq!(asked.names.find("alice"), None, "she has gone");
}

#[test]
fn an_address_that_is_lent_to_somebody_else_loses_its_name() {
    let mut server = DhcpServer::new(Ipv4Cidr::new(HOST, 30), None);
    let mut asked = asked(&mut server);
    let only = asked.discover(1).unwrap();
    asked.request_named(1, only, "alice");
    asked.now = Duration::from_secs(1800);
    assert_eq!(asked.request(1, only), DhcpMessageType::Ack);
    assert_eq!(asked.names.find("alice"), Some(only), "a renewal keeps it");
    asked.now = Duration::from_secs(6000);
    assert_eq!(asked.discover(2), Some(only));
    assert_eq!(asked.names.find("alice"), None);
}

#[test]
fn a_question_that_nobody_can_be_found_for_stops_no_others() {
    let mut world = World::new();
    let stranger = client_mac(9);
    let host_mac = EthernetAddress(HostOptions::new(HOST, 24).mac());
    // Elsewhere, and somebody of the network whom nobody knows.
    for address in [[8, 8, 8, 8], [192, 168, 1, 5], [10, 0, 0, 77]].map(Ipv4Addr::from) {
        let mut inform = dhcp_request(9, DhcpMessageType::Inform);
        inform.client_ip = address;
        let query = [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4][..], b"host", &[0, 0, 1, 0, 1]].concat();
        for (port, payload) in [(67, bytes_of(&inform)), (53, query)] {
            let question = Datagram {
                from: End { mac: stranger, address, port: 1000 },
                to: End { mac: host_mac, address: HOST, port },
                payload: &payload,
            };
            world.host.take(world.now, &question.frame());
            world.host.work(world.now);
            let answer = world.host.answer().expect("an answer at once");
            let answer = Datagram::read(&answer).unwrap();
            assert_eq!((answer.to.mac, answer.to.address), (stranger, address), "to who asked");
            assert_eq!(world.host.answer(), None);
        }
    }
    let (address, ..) = world.lease();
    assert_eq!(address.address(), Ipv4Addr::new(10, 0, 0, 2));
    let resolver = world.sockets.add(dns::Socket::new(&[IpAddress::Ipv4(HOST)], vec![None]));
    let socket = world.sockets.get_mut::<dns::Socket<'_>>(resolver);
    let query = socket.start_query(world.interface.context(), "host", DnsQueryType::A).unwrap();
    let found = world.until("the host's address", |world| {
        world.sockets.get_mut::<dns::Socket<'_>>(resolver).get_query_result(query).ok()
    });
    assert_eq!(found.first(), Some(&IpAddress::Ipv4(HOST)));
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % u64::try_from(bound).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.roll().to_le_bytes()[3]
    }
}

#[test]
fn whatever_a_guest_sends_the_host_lives_and_never_says_more_than_it_was_asked() {
    // What a well-behaved client sends, to begin with something that is looked into.
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    let mut world = World::new();
    for _ in 0..20 {
        world.now += STEP;
        let now = Instant::from_micros(i64::try_from(world.now.as_micros()).unwrap());
        world.interface.poll(now, &mut world.card, &mut world.sockets);
        for frame in std::mem::take(&mut world.card.sent) {
            world.host.take(world.now, &frame);
            seeds.push(frame);
        }
        world.host.work(world.now);
        world.card.received.extend(std::iter::from_fn(|| world.host.answer()));
    }
    let mut arp =
        [&[0xff; 6][..], &client_mac(1).0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &client_mac(1).0].concat();
    arp.extend([10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    seeds.push(arp);
    assert!(seeds.len() >= 2);

    let mut dice = Dice(0x5eed);
    let (mut asked, mut answered) = (0, 0);
    for _ in 0..20_000 {
        let mut frame = seeds[dice.below(seeds.len())].clone();
        for _ in 0..dice.below(6) {
            let at = dice.below(frame.len());
            frame[at] = dice.byte();
        }
        match dice.below(8) {
            0 => frame.truncate(dice.below(frame.len() + 1)),
            1 => frame.resize(frame.len() + dice.below(2000), dice.byte()),
            _ => {}
        }
        world.now += Duration::from_millis(1);
        world.host.take(world.now, &frame);
        asked += 1;
        world.host.work(world.now);
        answered += std::iter::from_fn(|| world.host.answer()).count();
    }
    // Each frame has one answer, or makes the host look for a neighbour, which it does once a second.
    assert!(answered > 1000 && answered <= asked + 100, "{answered} answers to {asked} frames");
}
