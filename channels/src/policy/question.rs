//! What an agent is told: who asks, for what, when.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use vmbus_core::{Guid, Version};

use super::text;
use crate::Credentials;
use crate::transfer::TransferMode;

/// One question, with everything a decision may depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// When.
    pub at: WallTime,
    /// Whose agent is asked.
    pub end: End,
    /// The partition that wants something; for a guest's own agent, that guest.
    pub who: Who,
    /// What it wants.
    pub question: Question,
}

/// An end of the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The root.
    Root,
    /// A guest.
    Guest,
}

/// Time on the wall, in microseconds since the beginning of 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime {
    /// Microseconds.
    pub micros: u64,
}

impl WallTime {
    /// What the system's clock says.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for WallTime {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { micros: u64::try_from(since.as_micros()).unwrap_or(u64::MAX) }
    }
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Who {
    /// The root's number for it.
    pub id: u32,
    /// The name under which it attached. Only names of virtual machines with a socket of their own say who it is;
    /// a process may call itself anything else.
    pub name: Arc<str>,
    /// What it is.
    pub kind: PartitionKind,
    /// The process and user at the other end of the socket, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<PeerProcess>,
}

/// What a partition is, as far as the root can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartitionKind {
    /// A process that speaks the attach extensions.
    Process,
    /// A virtual machine of a plain VMM.
    Vm,
    /// Code in the root's own process.
    Local,
}

/// A process and its user, as the kernel reported them when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerProcess {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl From<Credentials> for PeerProcess {
    fn from(Credentials { pid, uid, gid }: Credentials) -> Self {
        Self { pid, uid, gid }
    }
}

/// What a partition wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// To be a partition of this bus.
    Attach {
        /// Bytes of memory that it shares.
        memory: u64,
    },
    /// To speak this version of the protocol.
    Version {
        /// The version.
        #[serde(with = "text")]
        version: Version,
        /// Feature flags that would be granted.
        features: u32,
        /// Who the guest says it is (6.0 with the client-id feature).
        #[serde(with = "text::optional", default, skip_serializing_if = "Option::is_none")]
        client_id: Option<Guid>,
    },
    /// To see a device.
    Offer {
        /// The device.
        device: AskedDevice,
    },
    /// To open a channel. The limits in the answer hold while it is open.
    Open {
        /// The device.
        device: AskedDevice,
        /// Bytes of both rings, control pages included.
        ring_bytes: u64,
    },
    /// To have so many sub-channels beside the primary channel of a device.
    Subchannels {
        /// The device.
        device: AskedDevice,
        /// Sub-channels in all.
        count: u32,
    },
    /// To open a device that others have open. Asked after the open itself was allowed.
    Join {
        /// The device.
        device: AskedDevice,
        /// Names of the partitions that have it open, or are opening it.
        with: Vec<Arc<str>>,
    },
    /// To transfer memory to the other end, or make it accessible there.
    Share {
        /// The device that gets it; none for gifts, which come before the request that speaks of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<AskedDevice>,
        /// Bytes of this set of pages.
        bytes: u64,
        /// Bytes that the partition shares over this channel already.
        held: u64,
        /// How.
        mode: TransferMode,
        /// The channel is not open yet, so that these may be its rings, for which there is no other mode.
        before_open: bool,
    },
    /// To connect a stream to a service.
    Connect {
        /// The service.
        #[serde(with = "text")]
        service: Guid,
        /// Who connects to whom.
        direction: Direction,
        /// The partition that serves, if it is neither the root nor the one that asks.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<Arc<str>>,
    },
}

/// The device that a question is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedDevice {
    /// For people; empty at a guest, which is told none.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub name: Arc<str>,
    /// Class.
    #[serde(with = "text")]
    pub class: Guid,
    /// Instance.
    #[serde(with = "text")]
    pub instance: Guid,
    /// 0 for the primary channel.
    #[serde(default)]
    pub subchannel: u16,
}

/// Who connects to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The partition that asks connects to a service elsewhere.
    Outgoing,
    /// Somebody connects to a service of the partition that is asked about.
    Incoming,
}

impl Question {
    /// The device that it is about, if it is about one.
    pub fn device(&self) -> Option<&AskedDevice> {
        match self {
            Self::Offer { device }
            | Self::Open { device, .. }
            | Self::Subchannels { device, .. }
            | Self::Join { device, .. } => Some(device),
            Self::Share { device, .. } => device.as_ref(),
            Self::Attach { .. } | Self::Version { .. } | Self::Connect { .. } => None,
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach { .. } => formatter.write_str("attaching"),
            Self::Version { version, .. } => write!(formatter, "version {version}"),
            Self::Offer { device } => write!(formatter, "seeing {device}"),
            Self::Open { device, ring_bytes } => {
                write!(formatter, "opening {device} with {ring_bytes} bytes")
            }
            Self::Subchannels { device, count } => write!(formatter, "{count} sub-channels of {device}"),
            Self::Join { device, with } => write!(formatter, "opening {device} beside {}", with.join(", ")),
            Self::Share { device: Some(device), bytes, mode, .. } => {
                write!(formatter, "{mode} of {bytes} bytes with {device}")
            }
            Self::Share { device: None, bytes, mode, .. } => write!(formatter, "{mode} of {bytes} bytes"),
            Self::Connect { service, .. } => write!(formatter, "connecting to service {service}"),
        }
    }
}

impl fmt::Display for AskedDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.is_empty(), self.subchannel) {
            (true, 0) => write!(formatter, "{}", self.instance),
            (false, 0) => write!(formatter, "`{}`", self.name),
            (true, index) => write!(formatter, "sub-channel {index} of {}", self.instance),
            (false, index) => write!(formatter, "sub-channel {index} of `{}`", self.name),
        }
    }
}
