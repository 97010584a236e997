//! The networks of `vmbus root`: switches, NICs for guests, and what else is at their ports.

use std::fs::File;
use std::io::BufWriter;

use anyhow::{Context as _, Result};
use vmbus_channels::Root;
use vmbus_proxy_devices::net::{
    CaptureOptions, CapturePort, HostOptions, HostPort, LinkPort, StreamPort, Tap, TapPort, answer_for,
};
use vmbus_vsp::network::NetworkAdapter;
use vmbus_vsp::network::switch::{
    Isolation, MacAddress, Mirror, Mirrored, Permission, PortSettings, Senders, Switch, VlanMode, VlanSet,
};

use super::spec::{HostAddress, NetConfig};

/// What is at the ports, for as long as it is kept.
#[derive(Default)]
pub(crate) struct Nets {
    ports: Vec<Plugged>,
}

#[expect(dead_code, reason = "what is in it ends with it")]
enum Plugged {
    Tap(TapPort),
    Stream(StreamPort),
    Host(HostPort),
    Link(LinkPort),
    Capture(CapturePort),
}

/// Makes the networks that a root was asked for, and offers their NICs.
pub(crate) fn open(root: &Root, nets: &[NetConfig]) -> Result<Nets> {
    NetConfig::check(nets)?;
    let (mut opened, mut switches) = (Nets::default(), Vec::<Switch>::new());
    for net in nets {
        let mirror = mirror(nets, &net.name);
        // The same name is the same switch.
        let switch = match switches.iter().find(|other| other.name() == net.name) {
            Some(switch) => switch.clone(),
            None => {
                let switch = Switch::new(&net.name);
                switches.push(switch.clone());
                let named = nets.iter().any(|other| other.name == net.name && !other.guests.is_empty());
                if !named {
                    offer_to_all(root, net, &switch, mirror)?;
                }
                switch
            }
        };
        plug(net, &switch, mirror, &mut opened.ports).with_context(|| format!("--net {}", net.name))?;
        offer(root, net, &switch, mirror).with_context(|| format!("--net {}", net.name))?;
    }
    if !switches.is_empty() {
        answer_for(root, switches);
    }
    Ok(opened)
}

fn plug(net: &NetConfig, switch: &Switch, mirror: Mirror, ports: &mut Vec<Plugged>) -> Result<()> {
    let settings = |name: &str| PortSettings { vlan: vlan(net), mirror, ..PortSettings::new(name) };
    let uplink = |name: &str| PortSettings { vlan: uplink_vlan(net), ..settings(name) };
    if let Some(path) = &net.capture {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let settings = PortSettings { mirror: Mirror::Destination, ..PortSettings::new("capture") };
        let options = CaptureOptions::new(&net.name);
        let capture = CapturePort::connect(switch, BufWriter::new(file), |_| true, &options, settings)?;
        ports.push(Plugged::Capture(capture));
    }
    for name in &net.tap {
        let tap = open_tap(name)?;
        // It may belong to who set it up; then that is for them to do.
        let _ = tap.set_up();
        ports.push(Plugged::Tap(TapPort::connect(switch, tap, uplink(name))?));
    }
    for path in &net.passt {
        ports.push(Plugged::Stream(StreamPort::connect(switch, path, settings("passt"))?));
    }
    if let Some(HostAddress { address, prefix_len }) = net.host {
        let options = HostOptions::new(address, prefix_len);
        ports.push(Plugged::Host(HostPort::connect(switch, &options, settings("host"))?));
    }
    for link in &net.link {
        let port = LinkPort::connect(switch, &link.0, uplink("link"));
        ports.push(Plugged::Link(port.context("the link's end here")?));
    }
    Ok(())
}

/// The interface of this name, with a hint to whoever may not have it.
pub(crate) fn open_tap(name: &str) -> Result<Tap> {
    Tap::open(name).with_context(|| {
        format!(
            "cannot have the interface {name}: as root, `ip tuntap add {name} mode tap user $USER` makes one for you"
        )
    })
}

fn offer(root: &Root, net: &NetConfig, switch: &Switch, mirror: Mirror) -> Result<()> {
    for nic in &net.guests {
        let mac = nic.mac.unwrap_or_else(|| mac_of(net, &nic.guest));
        let adapter = NetworkAdapter::new(&net.name, switch, mac)
            .port(nic_settings(net, &nic.guest, mac, mirror))
            .only_for(nic.guest.as_str());
        root.offer(adapter)?;
    }
    Ok(())
}

/// A NIC for each guest, where it is not said who has one.
fn offer_to_all(root: &Root, net: &NetConfig, switch: &Switch, mirror: Mirror) -> Result<()> {
    let each = net.clone();
    let adapter = NetworkAdapter::new(&net.name, switch, MacAddress::of_name(&net.name));
    root.offer(adapter.for_each_guest(move |client| {
        let mac = mac_of(&each, &client.name);
        (mac, nic_settings(&each, &client.name, mac, mirror))
    }))?;
    Ok(())
}

/// The same each time, so that the guest is known again.
fn mac_of(net: &NetConfig, guest: &str) -> MacAddress {
    MacAddress::of_name(&format!("{}/{guest}", net.name))
}

/// How a guest's NIC is treated: as what it is, and nothing else, unless it is trusted.
fn nic_settings(net: &NetConfig, guest: &str, mac: MacAddress, mirror: Mirror) -> PortSettings {
    let limit = net.limit.map(|limit| limit.rate());
    let guarded = if net.trust { Permission::Allowed } else { Permission::Denied };
    PortSettings {
        vlan: vlan(net),
        mirror,
        isolation: if net.private { Isolation::Private } else { Isolation::None },
        senders: if net.trust { Senders::Any } else { Senders::Only(vec![mac]) },
        dhcp_server: guarded,
        router: guarded,
        send_limit: limit,
        receive_limit: limit,
        ..PortSettings::new(guest)
    }
}

fn vlan(net: &NetConfig) -> VlanMode {
    VlanMode::Access(net.vlan.map_or(0, |vlan| vlan.0))
}

/// What leads to other networks carries all VLANs, unless it is said to be in one.
fn uplink_vlan(net: &NetConfig) -> VlanMode {
    match net.vlan {
        Some(vlan) => VlanMode::Access(vlan.0),
        None => VlanMode::Trunk { native: Some(0), tagged: VlanSet::all() },
    }
}

/// A file of a network is of all of it, wherever it is listed.
fn mirror(nets: &[NetConfig], name: &str) -> Mirror {
    match nets.iter().any(|net| net.name == name && net.capture.is_some()) {
        true => Mirror::Source(Mirrored::Sent),
        false => Mirror::Off,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_has_what_is_listed_elsewhere_too() {
        let nets = ["lan,for=alice", "lan,capture=lan.pcapng", "wan"].map(|net| net.parse().unwrap());
        assert_eq!(mirror(&nets, "lan"), Mirror::Source(Mirrored::Sent));
        assert_eq!(mirror(&nets, "wan"), Mirror::Off);
    }
}
