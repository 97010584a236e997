//! What the switches of a root do, as a listing; and the way to ask a running root for it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmbus_channels::Root;
use vmbus_vsp::network::switch::{Count, Drops, PortState, PortStatistics, Switch};

/// The topic of the question (`attach.md`, "QUERY").
pub(super) const TOPIC: &str = "net";

/// Switches of a root at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatus {
    /// In the order in which they were made.
    pub switches: Vec<SwitchStatus>,
}

/// One switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchStatus {
    /// Its name.
    pub name: String,
    /// Its ports, by number.
    pub ports: Vec<PortStatus>,
    /// The stations that it knows, by address.
    pub addresses: Vec<AddressStatus>,
    /// What all its ports did, those included that are gone.
    pub total: Counters,
}

/// One port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its number.
    pub id: u32,
    /// Its name: a guest's, for a guest's NIC.
    pub name: String,
    /// What it did since it was connected.
    #[serde(flatten)]
    pub counters: Counters,
}

/// What went through a port and what did not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Frames that the port gave to the switch.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Of these, frames that went on to nobody, by reason.
    pub sent_dropped: BTreeMap<String, u64>,
    /// Frames that the port took from the switch.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that were for the port and did not reach it, by reason.
    pub received_dropped: BTreeMap<String, u64>,
}

/// A station.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressStatus {
    /// Its Ethernet address.
    pub address: String,
    /// Its VLAN, 0 without.
    pub vlan: u16,
    /// The number of the port behind which it is.
    pub port: u32,
    /// How long ago it last sent, in seconds. `None`: the port has it for itself, and it is never forgotten.
    pub idle: Option<u64>,
}

impl NetStatus {
    /// Asks the root that listens at `path`. Blocks for a few seconds at most.
    ///
    /// # Errors
    /// The system's: nobody listens, or not a root. [`io::ErrorKind::Unsupported`] if the root has no switches.
    pub fn of(path: impl AsRef<Path>) -> io::Result<Self> {
        serde_json::from_slice(&Root::ask(path, TOPIC, "")?).map_err(io::Error::other)
    }

    /// What these switches do at this moment.
    pub fn now(switches: &[Switch]) -> Self {
        Self { switches: switches.iter().map(SwitchStatus::now).collect() }
    }
}

impl SwitchStatus {
    fn now(switch: &Switch) -> Self {
        let mut ports: Vec<_> = switch.ports().into_iter().map(PortStatus::from).collect();
        ports.sort_by_key(|port| port.id);
        let mut addresses: Vec<_> = switch
            .addresses()
            .into_iter()
            .map(|known| AddressStatus {
                address: known.address.to_string(),
                vlan: known.vlan,
                port: known.port.0,
                idle: known.idle.map(|idle| idle.as_secs()),
            })
            .collect();
        addresses.sort_by(|a, b| (&a.address, a.vlan).cmp(&(&b.address, b.vlan)));
        let total = Counters::from(switch.statistics());
        Self { name: switch.name().to_owned(), ports, addresses, total }
    }
}

impl From<PortState> for PortStatus {
    fn from(port: PortState) -> Self {
        Self { id: port.id.0, name: port.settings.name, counters: port.statistics.into() }
    }
}

impl From<PortStatistics> for Counters {
    fn from(statistics: PortStatistics) -> Self {
        let Count { frames: sent_frames, bytes: sent_bytes } = statistics.sent;
        let Count { frames: received_frames, bytes: received_bytes } = statistics.delivered;
        Self {
            sent_frames,
            sent_bytes,
            sent_dropped: by_reason(&statistics.dropped_sent),
            received_frames,
            received_bytes,
            received_dropped: by_reason(&statistics.dropped_received),
        }
    }
}

fn by_reason(drops: &Drops) -> BTreeMap<String, u64> {
    drops.iter().map(|(reason, frames)| (reason.text().to_owned(), frames)).collect()
}
