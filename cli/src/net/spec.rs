//! What `--net` says, in words and in a configuration file.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use vmbus_proxy_devices::net::LinkEnds;
use vmbus_vsp::network::switch::{MacAddress, Rate};

/// What follows `--net`.
pub(crate) const VALUE: &str = "NAME[,OPTION...]";

/// One network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetConfig {
    pub(crate) name: String,
    /// Guests that have a NIC; all without.
    #[serde(default, rename = "for")]
    pub(crate) guests: Vec<NicFor>,
    pub(crate) vlan: Option<VlanId>,
    pub(crate) limit: Option<Limit>,
    #[serde(default)]
    pub(crate) private: bool,
    #[serde(default)]
    pub(crate) trust: bool,
    #[serde(default)]
    pub(crate) tap: Vec<String>,
    #[serde(default)]
    pub(crate) passt: Vec<PathBuf>,
    #[serde(default)]
    pub(crate) link: Vec<Link>,
    pub(crate) host: Option<HostAddress>,
    pub(crate) capture: Option<PathBuf>,
}

/// A guest with a NIC: `NAME` or `NAME@MAC`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct NicFor {
    pub(crate) guest: String,
    pub(crate) mac: Option<MacAddress>,
}

/// A VLAN that something can be in: 1 to 4094.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u16")]
pub(crate) struct VlanId(pub(crate) u16);

/// Bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Limit(u64);

/// The built-in host: `ADDRESS/LENGTH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct HostAddress {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix_len: u8,
}

/// The cable to another switch: `LOCAL+REMOTE`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Link(pub(crate) LinkEnds);

impl Limit {
    /// In the switch's words: bytes, with a burst.
    pub(crate) fn rate(self) -> Rate {
        Rate::per_second(self.0 / 8)
    }
}

impl FromStr for NetConfig {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(',');
        let name = parts.next().filter(|name| !name.is_empty() && !name.contains('='));
        let name = name.context("no name: expected NAME[,OPTION...]")?;
        let mut net = Self { name: name.into(), ..Self::default() };
        for option in parts {
            net.add(option)?;
        }
        Ok(net)
    }
}

impl NetConfig {
    /// Refuses options that would do nothing.
    ///
    /// A network's NICs are made by the listings that name guests, or by its first listing if none does. In others, what
    /// is said about NICs would be heard by nobody.
    pub(crate) fn check(nets: &[Self]) -> Result<()> {
        for (at, net) in nets.iter().enumerate() {
            let (is_first, named) = (
                nets[..at].iter().all(|other| other.name != net.name),
                nets.iter().any(|other| other.name == net.name && !other.guests.is_empty()),
            );
            if net.capture.is_some()
                && nets[..at].iter().any(|other| other.name == net.name && other.capture.is_some())
            {
                bail!("--net {}: one `capture` has all of a network", net.name);
            }
            let makes_nics = if named { !net.guests.is_empty() } else { is_first };
            let has_doors =
                net.host.is_some() || !net.tap.is_empty() || !net.passt.is_empty() || !net.link.is_empty();
            let idle = [
                ("private", net.private && !makes_nics),
                ("trust", net.trust && !makes_nics),
                ("limit", net.limit.is_some() && !makes_nics),
                ("vlan", net.vlan.is_some() && !makes_nics && !has_doors),
            ];
            if let Some((option, _)) = idle.into_iter().find(|(_, is_idle)| *is_idle) {
                let where_to = if named { "beside a `for=`" } else { "where the network is listed first" };
                bail!("--net {}: `{option}` has no NIC to be for here: write it {where_to}", net.name);
            }
        }
        Ok(())
    }

    fn add(&mut self, option: &str) -> Result<()> {
        let Some((key, value)) = option.split_once('=') else {
            match option {
                "private" => self.private = true,
                "trust" => self.trust = true,
                _ => bail!("unknown option `{option}`: see `vmbus root --help`"),
            }
            return Ok(());
        };
        ensure!(!value.is_empty(), "`{option}`: nothing after the `=`");
        let twice = || format!("`{key}` is given twice");
        match key {
            "for" => self.guests.push(value.parse()?),
            "tap" => self.tap.push(value.into()),
            "passt" => self.passt.push(value.into()),
            "link" => self.link.push(value.parse()?),
            "vlan" => {
                let vlan =
                    value.parse::<u16>().with_context(|| format!("`{value}` is no VLAN: 1 to 4094"))?;
                ensure!(self.vlan.replace(vlan.try_into()?).is_none(), twice());
            }
            "limit" => ensure!(self.limit.replace(value.parse()?).is_none(), twice()),
            "host" => ensure!(self.host.replace(value.parse()?).is_none(), twice()),
            "capture" => ensure!(self.capture.replace(value.into()).is_none(), twice()),
            _ => bail!("unknown option `{key}`: see `vmbus root --help`"),
        }
        Ok(())
    }
}

impl FromStr for NicFor {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (guest, mac) = match text.split_once('@') {
            Some((guest, mac)) => (guest, Some(mac.parse::<MacAddress>()?)),
            None => (text, None),
        };
        ensure!(!guest.is_empty(), "`{text}`: no guest's name");
        if let Some(mac) = mac {
            ensure!(mac.is_station(), "{mac} is no address of one NIC");
        }
        Ok(Self { guest: guest.into(), mac })
    }
}

impl TryFrom<u16> for VlanId {
    type Error = anyhow::Error;

    fn try_from(vlan: u16) -> Result<Self> {
        ensure!((1..=4094).contains(&vlan), "`{vlan}` is no VLAN: 1 to 4094");
        Ok(Self(vlan))
    }
}

impl FromStr for Limit {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || format!("`{text}` is no rate: expected bits per second with or without k, M or G");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" => 1,
            "k" | "kbit" => 1000,
            "m" | "mbit" => 1_000_000,
            "g" | "gbit" => 1_000_000_000,
            _ => bail!(wrong()),
        };
        let bits = digits.parse().ok().and_then(|number: u64| number.checked_mul(unit));
        let bits = bits.filter(|bits| *bits >= 8).with_context(wrong)?;
        Ok(Self(bits))
    }
}

impl FromStr for HostAddress {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, prefix_len) =
            text.split_once('/').with_context(|| format!("`{text}`: expected ADDRESS/LENGTH"))?;
        let address = address.parse().with_context(|| format!("`{address}` is no IPv4 address"))?;
        let prefix_len = prefix_len.parse().ok().filter(|len| (1..=30).contains(len));
        let prefix_len = prefix_len.with_context(|| format!("`{text}`: the length is 1 to 30"))?;
        Ok(Self { address, prefix_len })
    }
}

impl FromStr for Link {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected =
            || format!("`{text}`: expected two UDP addresses, or two paths, with a `+` between them");
        let (local, remote) = text.split_once('+').with_context(expected)?;
        let ends = match (local.parse::<SocketAddr>(), remote.parse::<SocketAddr>()) {
            (Ok(local), Ok(remote)) => LinkEnds::Udp { local, remote },
            (Err(_), Err(_)) if local.contains('/') && remote.contains('/') => {
                LinkEnds::Unix { local: local.into(), remote: remote.into() }
            }
            (Ok(_) | Err(_), Ok(_) | Err(_)) => bail!(expected()),
        };
        Ok(Self(ends))
    }
}

macro_rules! from_text {
    ($($name:ident)+) => {$(
        impl TryFrom<String> for $name {
            type Error = anyhow::Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }
    )+};
}

from_text!(NicFor Limit HostAddress Link);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_written_as_a_name_and_options() {
        let plain: NetConfig = "lan".parse().unwrap();
        assert_eq!(plain, NetConfig { name: "lan".into(), ..NetConfig::default() });

        let all = "lan,for=alice,for=bob@02:00:00:00:00:02,vlan=7,limit=1G,private,trust,tap=tap0,passt=p.sock,\
                   host=10.0.0.1/24,link=127.0.0.1:7000+127.0.0.1:7001,link=./a+./b,capture=lan.pcapng";
        let all: NetConfig = all.parse().unwrap();
        assert_eq!(all.guests[0], NicFor { guest: "alice".into(), mac: None });
        assert_eq!(all.guests[1].mac, Some(MacAddress([2, 0, 0, 0, 0, 2])));
        assert_eq!(all.limit.map(|limit| limit.rate().per_second), Some(125_000_000));
        assert_eq!(all.link[1].0, LinkEnds::Unix { local: "./a".into(), remote: "./b".into() });

        let file = r#"
            name = "lan"
            for = ["alice", "bob@02:00:00:00:00:02"]
            vlan = 7
            limit = "1G"
            private = true
            trust = true
            tap = ["tap0"]
            passt = ["p.sock"]
            host = "10.0.0.1/24"
            link = ["127.0.0.1:7000+127.0.0.1:7001", "./a+./b"]
            capture = "lan.pcapng"
        "#;
        assert_eq!(toml::from_str::<NetConfig>(file).unwrap(), all, "a file says the same");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let bad = [
            "",
            ",vlan=1",
            "host=10.0.0.1/24",
            "lan,vlan=x",
            "lan,vlan=0",
            "lan,vlan=4095",
            "lan,vlan=70000",
            "lan,vlan=1,vlan=2",
            "lan,for=",
            "lan,for=@02:00:00:00:00:02",
            "lan,for=a@ff:ff:ff:ff:ff:ff",
            "lan,limit=fast",
            "lan,limit=1",
            "lan,host=10.0.0.1",
            "lan,host=10.0.0.1/31",
            "lan,link=127.0.0.1:7000",
            "lan,link=127.0.0.1:7000+./b",
            "lan,open",
            "lan,speed=1",
        ];
        for bad in bad {
            assert!(bad.parse::<NetConfig>().is_err(), "{bad}");
        }
        for vlan in [0, 4095] {
            let file = format!("name = \"lan\"\nvlan = {vlan}");
            assert!(toml::from_str::<NetConfig>(&file).is_err(), "{file}");
        }
    }

    #[test]
    fn an_option_that_would_be_for_no_nic_is_refused() {
        let check = |listings: &[&str]| {
            let nets: Vec<NetConfig> = listings.iter().map(|listing| listing.parse().unwrap()).collect();
            NetConfig::check(&nets).map_err(|error| error.to_string())
        };
        for option in ["private", "trust", "limit=1M", "vlan=7"] {
            let said = |listings: &[&str]| check(listings).unwrap_err();
            let again = said(&["lan", &format!("lan,{option}")]);
            let name = option.split('=').next().unwrap();
            assert!(again.contains(&format!("`{name}`")) && again.contains("first"), "{again}");
            let beside = said(&[&format!("lan,{option}"), "lan,for=alice"]);
            assert!(beside.contains("for="), "{beside}");
            assert_eq!(check(&[&format!("lan,{option}"), "lan,tap=tap0", &format!("wan,{option}")]), Ok(()));
            assert_eq!(check(&["lan,for=alice", &format!("lan,for=bob,{option}")]), Ok(()));
        }
        assert!(check(&["lan,capture=a", "lan,capture=b"]).is_err());
        assert_eq!(check(&["lan,tap=tap0", "lan,vlan=7,tap=tap1"]), Ok(()), "the interface is in it");
    }
}
