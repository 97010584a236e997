//! What somebody decides about a port.

use vmbus_channels::policy::Who;

use super::limit::Rate;
use super::mac::MacAddress;
use super::vlan::VlanMode;

/// How a port is treated. May be changed while it is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSettings {
    /// For people, and for commands that name a port.
    pub name: String,
    /// The partition that is behind it, if it is one.
    pub partition: Option<Who>,
    /// Which VLANs it is in.
    pub vlan: VlanMode,
    /// Which other ports it may talk to.
    pub isolation: Isolation,
    /// Whom it may send as.
    pub senders: Senders,
    /// Whether it may speak as a DHCP server, for IPv4 and IPv6.
    pub dhcp_server: Permission,
    /// Whether it may speak as a router: advertisements and redirects of IPv6.
    pub router: Permission,
    /// Frames a second that it may send to everybody: to groups, and to addresses that the switch does not know.
    pub flood_limit: Option<Rate>,
    /// Bytes a second that it may send.
    pub send_limit: Option<Rate>,
    /// Bytes a second that it may receive. What exceeds a limit is dropped.
    pub receive_limit: Option<Rate>,
    /// Whether others see its frames, or it those of others.
    pub mirror: Mirror,
    /// Stations that the switch learns behind it at most. Frames to others there are flooded.
    pub addresses: usize,
}

impl PortSettings {
    /// A plain port: untagged, may talk to all, as anybody, without limits.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            partition: None,
            vlan: VlanMode::default(),
            isolation: Isolation::None,
            senders: Senders::Any,
            dhcp_server: Permission::Allowed,
            router: Permission::Allowed,
            flood_limit: None,
            send_limit: None,
            receive_limit: None,
            mirror: Mirror::Off,
            addresses: 1024,
        }
    }

    /// Why they cannot hold.
    pub(super) fn fault(&self) -> Option<SettingsFault> {
        if let Some(id) = self.vlan.impossible_vlan() {
            return Some(SettingsFault::Vlan(id));
        }
        match &self.senders {
            Senders::Any => None,
            Senders::Only(addresses) if addresses.is_empty() || addresses.len() > MOST_SENDERS => {
                Some(SettingsFault::SenderCount(addresses.len()))
            }
            Senders::Only(addresses) => addresses
                .iter()
                .find(|address| !address.is_station())
                .map(|&address| SettingsFault::Sender(address)),
        }
    }
}

impl Default for PortSettings {
    fn default() -> Self {
        Self::new("")
    }
}

/// Addresses in [`Senders::Only`] at most.
pub const MOST_SENDERS: usize = 64;

/// Settings that make no sense. Their author's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsFault {
    /// No such VLAN.
    #[error("VLAN {0} where 1 to 4094 are possible, or 0 for none")]
    Vlan(u16),
    /// None, or too many.
    #[error("{0} addresses to send from where 1 to {MOST_SENDERS} are possible")]
    SenderCount(usize),
    /// A group or zero.
    #[error("nobody can send from {0}")]
    Sender(MacAddress),
}

/// Whether a port may do something. What it may not do is dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Permission {
    /// It may.
    #[default]
    Allowed,
    /// It may not.
    Denied,
}

/// Which ports may talk to each other within a VLAN, both ways alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// With all: an uplink, or a port where nothing is private.
    #[default]
    None,
    /// With those that are not isolated only.
    Private,
    /// With those that are not isolated, and with the same community.
    Community(u16),
}

impl Isolation {
    /// Whether these two may talk.
    pub const fn permits(self, other: Self) -> bool {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => true,
            (Self::Community(ours), Self::Community(theirs)) => ours == theirs,
            (Self::Private, Self::Private | Self::Community(_)) | (Self::Community(_), Self::Private) => {
                false
            }
        }
    }
}

/// Whom a port may send as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Senders {
    /// Anybody whom no other port has for itself; the switch learns who.
    #[default]
    Any,
    /// These alone, and no other port as one of these. Frames to stations that the switch does not know do not come
    /// here, for nobody else can be here. At most [`MOST_SENDERS`].
    Only(Vec<MacAddress>),
}

/// Who sees whose frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mirror {
    /// Nobody.
    #[default]
    Off,
    /// Each destination gets a copy of this port's frames.
    Source(Mirrored),
    /// It gets copies of the sources' frames, with their tags, and nothing else. What it sends is dropped.
    Destination,
}

/// Which frames of a port are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirrored {
    /// What it sends, whether or not it then passes the guards and limits.
    Sent,
    /// What is for it, whether or not it then has room.
    Received,
    /// Both.
    Both,
}

impl Mirror {
    pub(super) const fn shows_sent(self) -> bool {
        matches!(self, Self::Source(Mirrored::Sent | Mirrored::Both))
    }

    pub(super) const fn shows_received(self) -> bool {
        matches!(self, Self::Source(Mirrored::Received | Mirrored::Both))
    }
}
