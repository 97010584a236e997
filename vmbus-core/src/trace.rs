//! What the state machines do, seen from outside: for tests that say which transitions they exercise.
//!
//! Only with the feature `test-utils`. [`record`] notes what servers and clients do on this thread while it runs, as
//! [`Item`]s; [`Machine`] names every state and event there is. The book's page on coverage is made of both.

extern crate std;

use alloc::collections::BTreeSet;
use core::cell::RefCell;
use std::thread_local;

use crate::{FeatureFlags, Version};

/// One of the two ends of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The server.
    Host,
    /// The client.
    Guest,
}

/// One thing that can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// A message was said.
    Said {
        /// By whom.
        end: End,
        /// Its number.
        number: u32,
    },
    /// A message was heard and understood.
    Heard {
        /// By whom.
        end: End,
        /// Its number.
        number: u32,
    },
    /// A version was agreed on.
    Version {
        /// Who thinks so.
        end: End,
        /// The version.
        version: Version,
    },
    /// A feature was agreed on.
    Feature {
        /// Who thinks so.
        end: End,
        /// One bit of [`FeatureFlags`].
        bit: u32,
    },
    /// A state machine took an event.
    Step {
        /// Which.
        machine: Machine,
        /// Its state before.
        state: &'static str,
        /// The event.
        event: &'static str,
        /// Its state after.
        next: &'static str,
    },
}

macro_rules! machines {
    ($($(#[$doc:meta])* $name:ident $title:literal { states: $($state:literal)*; events: $($event:literal)*; })*) => {
        /// A state machine.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Machine {
            $($(#[$doc])* $name,)*
        }

        impl Machine {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What the book calls it.
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// Its states.
            pub fn states(self) -> &'static [&'static str] {
                match self { $(Self::$name => &[$($state,)*],)* }
            }

            /// Its events: messages in capitals, calls of the client with parentheses.
            pub fn events(self) -> &'static [&'static str] {
                match self { $(Self::$name => &[$($event,)*],)* }
            }
        }
    };
}

machines! {
    /// A server's connection.
    ServerConnection "Server: connection" {
        states: "Disconnected" "Connecting" "Connected" "Paused" "Unloading" "Replacing" "Resetting" "Unloaded";
        events: "INITIATE_CONTACT" "UNLOAD" "REQUESTOFFERS" "MODIFY_CONNECTION" "TL_CONNECT_REQUEST" "PAUSE" "RESUME"
                "CLOSE_RESERVED_CHANNEL" "message for a channel" "nonsense" "policy allows" "policy denies" "connect answered"
                "device answers" "device offered" "device withdrawn" "reset";
    }
    /// A channel of a server.
    ServerChannel "Server: channel" {
        states: "None" "ClientReleased" "Closed" "Opening" "Open" "OpenReserved" "Closing" "ClosingReopen"
                "OpeningClientRelease" "ClosingClientRelease" "Revoked" "Reoffered";
        events: "OPENCHANNEL" "CLOSECHANNEL" "MODIFYCHANNEL" "RELID_RELEASED" "OPEN_RESERVED_CHANNEL"
                "CLOSE_RESERVED_CHANNEL" "REQUESTOFFERS" "policy allows" "policy denies" "device opened" "device refused"
                "device closed" "pages returned" "device offered" "device withdrawn" "primary withdrawn or closed" "UNLOAD"
                "INITIATE_CONTACT" "reset";
    }
    /// A page list at a server.
    ServerGpadl "Server: page list" {
        states: "None" "InProgress" "Offered" "Accepted" "Recalled" "TearingDown" "Dropped";
        events: "GPADL_HEADER" "GPADL_BODY" "GPADL_TEARDOWN" "policy allows" "policy denies" "pages returned"
                "channel closed" "device withdrawn" "RELID_RELEASED" "UNLOAD" "INITIATE_CONTACT" "reset";
    }
    /// A client's connection.
    ClientConnection "Client: connection" {
        states: "Disconnected" "Asking" "Contacting" "Connected" "Pausing" "Paused" "Unloading";
        events: "connect()" "request_offers()" "modify_connection()" "connect_service()" "pause()" "resume()" "unload()"
                "reset()" "connection refused" "policy allows" "policy denies" "VERSION_RESPONSE" "ALLOFFERS_DELIVERED"
                "MODIFY_CONNECTION_RESPONSE" "TL_CONNECT_RESULT" "PAUSE_RESPONSE" "UNLOAD_RESPONSE"
                "message for a channel" "nonsense";
    }
    /// A channel of a client.
    ClientChannel "Client: channel" {
        states: "None" "Proposed" "Closed" "Opening" "Open" "OpenReserved" "ClosingReserved" "Rescinded";
        events: "OFFERCHANNEL" "RESCIND_CHANNELOFFER" "open()" "OPENCHANNEL_RESULT" "close()" "open_reserved()"
                "close_reserved()" "CLOSE_RESERVED_RESPONSE" "modify()" "MODIFYCHANNEL_RESPONSE" "release()" "policy allows"
                "policy denies" "unload()" "UNLOAD_RESPONSE" "reset()";
    }
    /// A page list at a client.
    ClientGpadl "Client: page list" {
        states: "None" "Asked" "Creating" "GivenUp" "Created" "TearingDown";
        events: "create_gpadl()" "GPADL_CREATED" "teardown_gpadl()" "GPADL_TORNDOWN" "policy allows" "policy denies"
                "RESCIND_CHANNELOFFER" "CLOSE_RESERVED_RESPONSE" "unload()" "UNLOAD_RESPONSE" "reset()";
    }
}

thread_local! {
    static SEEN: RefCell<Option<BTreeSet<Item>>> = const { RefCell::new(None) };
}

/// Runs `act` and returns what servers and clients did on this thread meanwhile. Whoever records already sees it too.
pub fn record<R>(act: impl FnOnce() -> R) -> (R, BTreeSet<Item>) {
    let mut outer = SEEN.replace(Some(BTreeSet::new()));
    let result = act();
    let seen = SEEN.take().unwrap_or_default();
    if let Some(outer) = &mut outer {
        outer.extend(&seen);
    }
    SEEN.set(outer);
    (result, seen)
}

/// Whether somebody looks.
pub(crate) fn is_on() -> bool {
    SEEN.with_borrow(Option::is_some)
}

pub(crate) fn see(item: Item) {
    SEEN.with_borrow_mut(|seen| {
        if let Some(seen) = seen {
            seen.insert(item);
        }
    });
}

pub(crate) fn see_agreement(end: End, version: Version, features: FeatureFlags) {
    see(Item::Version { end, version });
    for flag in features.iter() {
        see(Item::Feature { end, bit: flag.bits() });
    }
}
