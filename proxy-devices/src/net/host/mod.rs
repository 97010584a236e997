//! A small computer that is built in: it answers ARP, neighbour discovery, ping, DHCP and DNS, so that guests of a switch
//! find addresses and names without anything on the host.

mod datagram;
mod dhcp;
mod names;
mod stack;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmbus_vsp::network::switch::{
    Batch, Capabilities, Connection, Delivered, Frames, MacAddress, Offload, Port, PortSettings, Switch,
};

use self::stack::Stack;
use super::PortError;
use super::mailbox::{Mail, Mailbox, Waited};

/// The domain in which guests are known by the names that they give with their DHCP requests.
pub const DOMAIN: &str = names::DOMAIN;

/// What the host is.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Its address; the name `host` is its.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_len: u8,
    /// Its Ethernet address; one that is made from its IP address without.
    pub mac: Option<MacAddress>,
    /// Whether it lends the other addresses of its network, 1024 at most, to those who ask by DHCP.
    pub dhcp: bool,
    /// The MTU that it tells guests by DHCP, if any.
    pub mtu: Option<u16>,
    /// More names that it knows.
    pub names: Vec<(String, Ipv4Addr)>,
}

impl HostOptions {
    /// A host that lends addresses.
    pub fn new(address: Ipv4Addr, prefix_len: u8) -> Self {
        Self { address, prefix_len, mac: None, dhcp: true, mtu: None, names: Vec::new() }
    }

    fn mac(&self) -> [u8; 6] {
        let [_, a, b, c] = self.address.octets();
        self.mac.map_or([0x02, b'v', b'm', a, b, c], |mac| mac.0)
    }
}

/// A host at a port of a switch. Dropping it disconnects the port.
#[derive(Debug)]
pub struct HostPort {
    mailbox: Arc<Mailbox<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HostPort {
    /// Connects a host to a switch.
    ///
    /// # Errors
    /// [`PortError::Connect`] if the switch does not want it, [`PortError::System`] for want of threads.
    pub fn connect(
        switch: &Switch,
        options: &HostOptions,
        settings: PortSettings,
    ) -> Result<Self, PortError> {
        let mailbox = Arc::new(Mailbox::default());
        let connection = switch.connect(Card(Arc::clone(&mailbox)), settings)?;
        let stack = Stack::new(options);
        let thread = thread::Builder::new().name("built-in host".into()).spawn({
            let mailbox = Arc::clone(&mailbox);
            move || live(stack, &mailbox, &connection)
        })?;
        Ok(Self { mailbox, thread: Some(thread) })
    }
}

impl Drop for HostPort {
    fn drop(&mut self) {
        self.mailbox.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The switch's end.
struct Card(Arc<Mailbox<()>>);

impl Port for Card {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        self.0.put(frames, usize::MAX, |_| ())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }
}

fn live(mut stack: Stack, mailbox: &Mailbox<()>, connection: &Connection) {
    let began = Instant::now();
    let (mut mail, mut answers) = (Mail::default(), Batch::new());
    let mut patience: Option<Duration> = None;
    while mailbox.take(&mut mail, patience) == Waited::Open {
        for frame in mail.batch.frames() {
            stack.take(began.elapsed(), frame.bytes);
            stack.work(began.elapsed());
            collect(&mut stack, &mut answers);
        }
        patience = stack.work(began.elapsed());
        collect(&mut stack, &mut answers);
        if !answers.is_empty() {
            connection.send(&mut answers);
        }
    }
}

fn collect(stack: &mut Stack, answers: &mut Batch) {
    while let Some(answer) = stack.answer() {
        // More than a batch holds is lost, as it would be on a wire.
        let _ = answers.push(&answer, Offload::NONE);
    }
}
