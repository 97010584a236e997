//! What can be observed on a bus. Logs, listings and tests subscribe to these.

use std::path::PathBuf;
use std::sync::Arc;

use vmbus_core::Version;
use vmbus_core::server::Fault;

use crate::policy::{Decided, Decision};
use crate::provider::Client;

/// One observable fact.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A partition joined.
    Attached {
        /// Who.
        client: Client,
        /// Whether it speaks the attach extensions.
        extended: bool,
    },
    /// A partition is gone, and nothing of it is held any more.
    Detached {
        /// Who.
        client: Client,
        /// Why.
        why: String,
    },
    /// A partition agreed on a protocol version.
    Connected {
        /// Who.
        client: Client,
        /// The version.
        version: Version,
    },
    /// A partition unloaded, was reset or contacts anew.
    Disconnected {
        /// Who.
        client: Client,
    },
    /// A channel was opened.
    Opened {
        /// Who.
        client: Client,
        /// The device.
        device: String,
        /// The channel.
        relid: u32,
    },
    /// A channel was closed.
    Closed {
        /// Who.
        client: Client,
        /// The device.
        device: String,
        /// The channel.
        relid: u32,
        /// The session's error, if it ended with one.
        error: Option<String>,
    },
    /// The policy agent was asked.
    Decided(Arc<Decided>),
    /// Something was refused.
    Refused {
        /// To whom.
        client: Client,
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
    /// Somebody broke a rule of the protocol; the bus goes on.
    Fault {
        /// At which partition.
        client: Client,
        /// What.
        fault: Fault,
    },
    /// A session went on after its channel's end for longer than it may, and was told to stop. One that is told so
    /// twice blocks a thread: its partition is forgotten without it.
    Overdue {
        /// Whose channel it was.
        client: Client,
        /// The device.
        device: String,
        /// The channel.
        relid: u32,
    },
    /// A partition has caused more work than it may and is read on a little later; told the first time, the second,
    /// the fourth and so on.
    Throttled {
        /// Who.
        client: Client,
    },
    /// The guest's operating system crashed.
    Crashed {
        /// Who.
        client: Client,
        /// Its last words, as far as they are text.
        message: String,
    },
    /// A connection did not become a partition.
    AttachFailed {
        /// Why.
        why: String,
    },
    /// A socket does not work at present.
    ListenerFailed {
        /// Where.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl Event {
    /// Writes the event to the log.
    pub(crate) fn trace(&self) {
        match self {
            Self::Attached { client, extended } => tracing::info!(guest = %client.name, extended, "attached"),
            Self::Detached { client, why } => tracing::info!(guest = %client.name, why, "detached"),
            Self::Connected { client, version } => {
                tracing::info!(guest = %client.name, %version, "connected")
            }
            Self::Disconnected { client } => tracing::info!(guest = %client.name, "disconnected"),
            Self::Opened { client, device, relid } => {
                tracing::info!(guest = %client.name, device, relid, "channel opened");
            }
            Self::Closed { client, device, relid, error } => {
                tracing::info!(guest = %client.name, device, relid, error, "channel closed");
            }
            Self::Decided(decided) => match decided.decision {
                Decision::Allow | Decision::Change(_) => tracing::debug!(seq = decided.seq, "{decided}"),
                Decision::Deny(_) => tracing::info!(seq = decided.seq, "{decided}"),
            },
            Self::Refused { client, what, reason } => {
                tracing::warn!(guest = %client.name, what, reason, "refused")
            }
            Self::Overdue { client, device, relid } => {
                tracing::warn!(guest = %client.name, device, relid, "session goes on after its channel's end");
            }
            Self::Throttled { client } => {
                tracing::warn!(guest = %client.name, "causes too much work, is read on later")
            }
            Self::Fault { client, fault } => tracing::warn!(guest = %client.name, %fault, "protocol fault"),
            Self::Crashed { client, message } => {
                tracing::warn!(guest = %client.name, last_words = message, "guest crashed")
            }
            Self::AttachFailed { why } => tracing::warn!(why, "attach failed"),
            Self::ListenerFailed { path, why } => {
                tracing::warn!(path = %path.display(), why, "listener failed")
            }
        }
    }
}
