//! An IP stack on a guest's NIC: smoltcp's, turned by the thread that uses it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, dns, icmp, tcp};
use smoltcp::time;
use smoltcp::wire::{
    DhcpOption, DnsQueryType, EthernetAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr, IpEndpoint,
    Ipv4Cidr,
};

use super::card::Card;

/// Bytes that a TCP socket has under way.
const WINDOW: usize = 512 << 10;
/// Name of the client in DHCP (RFC 2132, 3.14).
const HOST_NAME: u8 = 12;
const IDENT: u16 = 0x7662;
const PING_BYTES: usize = 56;
const LOCAL_PORT: u16 = 50_000;
/// Longest sleep: others may have their reasons to be looked at.
const NAP: Duration = Duration::from_millis(50);

/// Address, sockets and clock.
pub(super) struct Stack {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    servers: Vec<IpAddress>,
    began: Instant,
}

impl Stack {
    pub(super) fn new(mut card: Card, name: &str) -> Self {
        let began = Instant::now();
        let config = Config::new(EthernetAddress(card.address()).into());
        let interface = Interface::new(config, &mut card, time::Instant::ZERO);
        let mut sockets = SocketSet::new(Vec::new());
        let mut dhcp = dhcpv4::Socket::new();
        // One of a demonstration's few: it lives as long as the process.
        let name: &'static [u8] = name.to_owned().into_bytes().leak();
        let options = vec![DhcpOption { kind: HOST_NAME, data: name }].leak();
        dhcp.set_outgoing_options(options);
        let dhcp = sockets.add(dhcp);
        Self { card, interface, sockets, dhcp, servers: Vec::new(), began }
    }

    fn now(&self) -> time::Instant {
        time::Instant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Does what is due; waits for `patience` at most if that is nothing.
    pub(super) fn turn(&mut self, patience: Duration) -> Result<()> {
        self.card.receive_all()?;
        let now = self.now();
        let changed = self.interface.poll(now, &mut self.card, &mut self.sockets);
        self.card.send_all()?;
        if changed == smoltcp::iface::PollResult::None {
            let due = self.interface.poll_delay(self.now(), &self.sockets).map_or(NAP, Into::into);
            let patience = patience.min(due).min(NAP);
            if !patience.is_zero() {
                self.card.wait(patience)?;
            }
        }
        Ok(())
    }

    fn until<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut found: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = found(self)? {
                return Ok(found);
            }
            ensure!(Instant::now() < deadline, "{what}: nothing for {} s", patience.as_secs());
            self.turn(NAP)?;
        }
    }

    /// Asks for an address, and uses it.
    pub(super) fn lease(&mut self, patience: Duration) -> Result<Ipv4Cidr> {
        let dhcp = self.dhcp;
        let (address, servers) = self.until("DHCP", patience, |stack| {
            Ok(match stack.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() {
                Some(dhcpv4::Event::Configured(config)) => {
                    Some((config.address, config.dns_servers.iter().map(|&server| server.into()).collect()))
                }
                Some(dhcpv4::Event::Deconfigured) | None => None,
            })
        })?;
        self.servers = servers;
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // There is room for more than one.
            let _ = addresses.push(IpCidr::Ipv4(address));
        });
        Ok(address)
    }

    /// The address of a name.
    pub(super) fn resolve(&mut self, name: &str, patience: Duration) -> Result<IpAddress> {
        let resolver = self.sockets.add(dns::Socket::new(&self.servers, vec![None]));
        let socket = self.sockets.get_mut::<dns::Socket<'_>>(resolver);
        let query = socket.start_query(self.interface.context(), name, DnsQueryType::A);
        let query = query.map_err(|error| anyhow::anyhow!("asking for {name}: {error}"))?;
        self.until("DNS", patience, |stack| {
            match stack.sockets.get_mut::<dns::Socket<'_>>(resolver).get_query_result(query) {
                Ok(addresses) => addresses.first().copied().context("a name without an address").map(Some),
                Err(dns::GetQueryResultError::Pending) => Ok(None),
                Err(dns::GetQueryResultError::Failed) => bail!("nobody is called {name}"),
            }
        })
    }

    /// Pings; how long the answer took.
    pub(super) fn ping(&mut self, to: IpAddress, number: u16, patience: Duration) -> Result<Duration> {
        let checksums = ChecksumCapabilities::default();
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 1024]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(IDENT))?;
        let echo = Icmpv4Repr::EchoRequest { ident: IDENT, seq_no: number, data: &[0x5a; PING_BYTES] };
        let mut bytes = vec![0; echo.buffer_len()];
        echo.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &checksums);
        socket.send_slice(&bytes, to)?;
        let handle = self.sockets.add(socket);
        let began = Instant::now();
        let answered = self.until("an echo", patience, |stack| {
            let socket = stack.sockets.get_mut::<icmp::Socket<'_>>(handle);
            let Ok((bytes, _)) = socket.recv() else { return Ok(None) };
            let reply = Icmpv4Repr::parse(&Icmpv4Packet::new_checked(bytes)?, &checksums)?;
            let ours = matches!(reply, Icmpv4Repr::EchoReply { seq_no, .. } if seq_no == number);
            Ok(ours.then(|| began.elapsed()))
        });
        self.sockets.remove(handle);
        answered
    }

    pub(super) fn connect(&mut self, to: IpEndpoint, patience: Duration) -> Result<SocketHandle> {
        let mut socket = new_tcp();
        socket.connect(self.interface.context(), to, LOCAL_PORT)?;
        let handle = self.sockets.add(socket);
        self.until("a connection", patience, |stack| {
            let socket = stack.tcp(handle);
            ensure!(socket.is_open(), "the connection is refused");
            Ok(socket.may_send().then_some(()))
        })?;
        Ok(handle)
    }

    pub(super) fn listen(&mut self, port: u16) -> Result<SocketHandle> {
        let mut socket = new_tcp();
        socket.listen(port)?;
        Ok(self.sockets.add(socket))
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

fn new_tcp() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; WINDOW]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket
}
