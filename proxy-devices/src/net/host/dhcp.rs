//! A DHCP server (RFC 2131), sans-IO: a request and the time in, an answer out.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress, Ipv4Cidr};

use super::names::Names;

/// Most addresses that are lent, and most guests that are remembered.
pub(super) const POOL: u32 = 1024;
/// For how long an address is lent.
const LEASE: Duration = Duration::from_secs(3600);
/// For how long an address is kept for who was offered it.
const OFFER: Duration = Duration::from_secs(30);
/// Name of the client, RFC 2132, 3.14.
const HOST_NAME: u8 = 12;
/// Domain of the client, RFC 2132, 3.17.
const DOMAIN_NAME: u8 = 15;
/// Longest path of the interface, RFC 2132, 5.1.
const INTERFACE_MTU: u8 = 26;
/// What IPv4 over anything must carry.
const LEAST_MTU: u16 = 576;

/// Whom an answer goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// All, as who asks has no address yet.
    Everybody,
    /// Who asks, at the address that it has.
    Client(Ipv4Addr),
}

/// The addresses of one network, and whom they are lent to.
#[derive(Debug)]
pub(super) struct DhcpServer {
    /// Our own address, and how long the network's prefix is.
    network: Ipv4Cidr,
    mtu: Option<u16>,
    leases: HashMap<Ipv4Addr, Lease>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lease {
    /// `None` where somebody has said that another uses the address.
    client: Option<EthernetAddress>,
    until: Duration,
}

impl DhcpServer {
    pub(super) fn new(network: Ipv4Cidr, mtu: Option<u16>) -> Self {
        Self { network, mtu: mtu.filter(|mtu| *mtu >= LEAST_MTU), leases: HashMap::new() }
    }

    /// How many addresses are lent or offered.
    #[cfg(test)]
    pub(super) fn lent(&self) -> usize {
        self.leases.len()
    }

    /// Answers what came to port 67 from a card; `None` where the protocol wants no answer, and where the request is in
    /// the name of another card. A name that a client gives with a lease is entered into `names`, until the address is
    /// another's or nobody's.
    pub(super) fn answer(
        &mut self,
        now: Duration,
        from: EthernetAddress,
        request: &[u8],
        names: &mut Names,
    ) -> Option<(Vec<u8>, Destination)> {
        let packet = DhcpPacket::new_checked(request).ok()?;
        let request = DhcpRepr::parse(&packet).ok()?;
        let client = request.client_hardware_address;
        if !request.relay_agent_ip.is_unspecified() || client != from {
            return None;
        }
        match request.message_type {
            DhcpMessageType::Discover => {
                let address = self.choose(now, client, request.requested_ip)?;
                self.lend(address, client, now + OFFER, names);
                self.reply(&request, DhcpMessageType::Offer, address)
            }
            DhcpMessageType::Request => {
                if request.server_identifier.is_some_and(|server| server != self.network.address()) {
                    // It has taken somebody else's offer.
                    self.end_leases(names, |_, lease| lease.client == Some(client));
                    return None;
                }
                let renewing = Some(request.client_ip).filter(|address| !address.is_unspecified());
                let wanted = request.requested_ip.or(renewing)?;
                if self.choose(now, client, Some(wanted)) != Some(wanted) {
                    return self.reply(&request, DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED);
                }
                self.lend(wanted, client, now + LEASE, names);
                let name = packet.options().find(|option| option.kind == HOST_NAME);
                if let Some(name) = name.and_then(|name| std::str::from_utf8(name.data).ok()) {
                    names.lease(name, wanted);
                }
                self.reply(&request, DhcpMessageType::Ack, wanted)
            }
            DhcpMessageType::Release => {
                self.end_leases(names, |address, lease| {
                    address == request.client_ip && lease.client == Some(client)
                });
                None
            }
            DhcpMessageType::Decline => {
                let address = request.requested_ip?;
                let declined = self.leases.get_mut(&address)?;
                if declined.client == Some(client) {
                    *declined = Lease { client: None, until: now + LEASE };
                    names.forget(address);
                }
                None
            }
            DhcpMessageType::Inform => self.reply(&request, DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED),
            DhcpMessageType::Offer
            | DhcpMessageType::Ack
            | DhcpMessageType::Nak
            | DhcpMessageType::Unknown(_) => None,
        }
    }

    /// The address for a client: the one it has, else the one it wants, else the first that nobody has.
    fn choose(&self, now: Duration, client: EthernetAddress, wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let has = self.leases.iter().find(|(_, lease)| lease.client == Some(client));
        if let Some((address, _)) = has {
            return Some(*address);
        }
        let is_free = |address: &Ipv4Addr| self.leases.get(address).is_none_or(|lease| lease.until <= now);
        wanted
            .filter(|address| self.pool().any(|mine| mine == *address) && is_free(address))
            .or_else(|| self.pool().find(is_free))
    }

    fn lend(&mut self, address: Ipv4Addr, client: EthernetAddress, until: Duration, names: &mut Names) {
        // A client has one address; the pool bounds how many there are.
        self.end_leases(names, |other, lease| (other == address) != (lease.client == Some(client)));
        self.leases.insert(address, Lease { client: Some(client), until });
    }

    /// Ends those leases, and takes their holders' names away.
    fn end_leases(&mut self, names: &mut Names, which: impl Fn(Ipv4Addr, &Lease) -> bool) {
        self.leases.retain(|address, lease| {
            let ends = which(*address, lease);
            if ends {
                names.forget(*address);
            }
            !ends
        });
    }

    /// The addresses that may be lent: those of the network, without the first, the last and our own.
    fn pool(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let own = self.network.address();
        let hosts = (1_u64 << (32 - u32::from(self.network.prefix_len()))).saturating_sub(2);
        let count = u32::try_from(hosts).unwrap_or(u32::MAX).min(POOL);
        let first = self.network.network().address().to_bits();
        (1..=count)
            .map(move |number| Ipv4Addr::from_bits(first.wrapping_add(number)))
            .filter(move |it| *it != own)
    }

    fn reply(
        &self,
        request: &DhcpRepr<'_>,
        kind: DhcpMessageType,
        address: Ipv4Addr,
    ) -> Option<(Vec<u8>, Destination)> {
        let own = self.network.address();
        let agrees = kind != DhcpMessageType::Nak;
        let lends = agrees && !address.is_unspecified();
        let mtu = self.mtu.unwrap_or(0).to_be_bytes();
        let options = [
            DhcpOption { kind: DOMAIN_NAME, data: super::names::DOMAIN.as_bytes() },
            DhcpOption { kind: INTERFACE_MTU, data: &mtu },
        ];
        let seconds = |time: Duration| u32::try_from(time.as_secs()).ok();
        let reply = DhcpRepr {
            message_type: kind,
            transaction_id: request.transaction_id,
            secs: 0,
            client_hardware_address: request.client_hardware_address,
            client_ip: if agrees { request.client_ip } else { Ipv4Addr::UNSPECIFIED },
            your_ip: address,
            server_ip: if agrees { own } else { Ipv4Addr::UNSPECIFIED },
            router: agrees.then_some(own),
            subnet_mask: agrees.then(|| self.network.netmask()),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: request.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(own),
            parameter_request_list: None,
            dns_servers: agrees.then(|| [own].into_iter().collect()),
            max_size: None,
            lease_duration: seconds(LEASE).filter(|_| lends),
            renew_duration: None,
            rebind_duration: None,
            additional_options: match (agrees, self.mtu) {
                (true, Some(_)) => &options,
                (true, None) => &options[..1],
                (false, _) => &[],
            },
        };
        let mut bytes = vec![0; reply.buffer_len()];
        reply.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).ok()?;
        let renews = agrees && !request.client_ip.is_unspecified();
        let to = if renews { Destination::Client(request.client_ip) } else { Destination::Everybody };
        Some((bytes, to))
    }
}
