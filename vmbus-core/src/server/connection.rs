//! The connection of one guest: connected, paused, disconnecting. How it begins stands in `contact`.
//!
//! A connection ends by UNLOAD, by a new contact or by a reset. All three close every channel and release every page
//! list first; only then the guest gets its answer. Of several reasons that come meanwhile the latest counts.

use alloc::collections::VecDeque;

use super::contact::Contact;
use super::reserved::{Address, send_to};
use super::{AskId, Fault, Server, ServerAction};
use crate::message::{
    Direction, Message, MessageError, ModifyConnection, ModifyConnectionResponse, PauseResponse, Payload,
    UnloadResponse,
};
use crate::{FeatureFlags, Guid, Version};

/// Connection state on the wire: not enough resources.
pub(super) const LOW_RESOURCES: u8 = 1;
/// Connection state on the wire: another failure.
pub(super) const UNKNOWN_FAILURE: u8 = 2;

/// What guest and host agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The version.
    pub version: Version,
    /// The features, those that both ends know.
    pub features: FeatureFlags,
    /// Virtual processor that gets control messages; 0 before 3.0. Not checked against the number there is.
    pub target_vp: u32,
    /// Synthetic interrupt source that gets control messages and signals.
    pub sint: u8,
    /// Connection id that the guest posts its messages to.
    pub message_connection_id: u32,
    /// Guest-physical address of the interrupt page, before 5.0 if the guest has one. Not checked.
    pub interrupt_page: Option<u64>,
    /// The monitor pages: the guest's, or ours where it asked for them.
    pub monitor_pages: Option<MonitorPages>,
    /// Who the guest says it is, with the client-id feature.
    pub client_id: Option<Guid>,
}

/// Guest-physical addresses of the two monitor pages. Not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonitorPages {
    /// The host writes it.
    pub parent_to_child: u64,
    /// The guest writes it.
    pub child_to_parent: u64,
}

impl MonitorPages {
    /// Both or neither; one alone is an error of the guest.
    pub(super) fn new(parent_to_child: u64, child_to_parent: u64) -> Result<Option<Self>, Fault> {
        match (parent_to_child, child_to_parent) {
            (0, 0) => Ok(None),
            (0, _) | (_, 0) => Err(Fault::HalfMonitor),
            _ => Ok(Some(Self { parent_to_child, child_to_parent })),
        }
    }
}

/// The state of the connection.
#[derive(Debug)]
pub(super) enum State {
    /// Only a contact means anything.
    Disconnected,
    /// Policy decides whether this connection comes to be.
    Connecting { asked: AskId, connection: Connection },
    /// A version is agreed on.
    Connected(Connected),
    /// Devices are letting go of the last connection; `then` follows.
    Disconnecting { then: Then },
    /// UNLOAD was answered, and channels that are open-reserved are left.
    Unloaded,
}

/// A connection in use.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) connection: Connection,
    pub(super) offers: Offers,
    /// Messages held back while the guest has us pause. Each belongs to a channel id, page list or question, so that
    /// their quotas bound this too: while paused the guest can cause nothing new.
    pub(super) held: Option<VecDeque<ServerAction>>,
}

/// How far the offers of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offers {
    NotRequested,
    /// Policy still decides about some that existed at the request.
    Requested,
    /// ALLOFFERS_DELIVERED was sent.
    Delivered,
}

/// What follows when everything is let go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Then {
    /// Nothing: the partition was reset.
    Quiet,
    /// UNLOAD_RESPONSE on the connection that was unloaded.
    Unloaded(Connection),
    /// The answer to a contact.
    Contact(Contact),
}

impl Connected {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, offers: Offers::NotRequested, held: None }
    }
}

impl State {
    pub(super) fn connected(&self) -> Option<&Connected> {
        match self {
            Self::Connected(connected) => Some(connected),
            Self::Disconnected | Self::Connecting { .. } | Self::Disconnecting { .. } | Self::Unloaded => {
                None
            }
        }
    }

    pub(super) fn connected_mut(&mut self) -> Option<&mut Connected> {
        match self {
            Self::Connected(connected) => Some(connected),
            Self::Disconnected | Self::Connecting { .. } | Self::Disconnecting { .. } | Self::Unloaded => {
                None
            }
        }
    }

    /// Decodes a payload as what was negotiated allows.
    pub(super) fn parse<'a>(&self, payload: &'a [u8]) -> Result<Message<'a>, MessageError> {
        let negotiated = self.connected().map(|c| (c.connection.version, c.connection.features));
        Message::parse(payload, Direction::ToHost, negotiated)
    }

    /// Why this state does not allow a message, if so.
    pub(super) fn forbids(&self, message: &Message<'_>) -> Option<Fault> {
        let contact = matches!(message, Message::InitiateContact(_));
        let unload = matches!(message, Message::Unload(_));
        let resume = matches!(message, Message::Resume(_));
        let close_reserved = matches!(message, Message::CloseReservedChannel(_));
        let (state, allowed) = match self {
            Self::Disconnected => ("disconnected", contact),
            Self::Connecting { .. } => ("connecting", contact || unload),
            Self::Connected(Connected { held: Some(_), .. }) => ("paused", contact || unload || resume),
            Self::Connected(Connected { held: None, .. }) => ("not paused", !resume),
            Self::Disconnecting { then: Then::Contact(_) } => ("disconnecting", contact || unload),
            Self::Disconnecting { then: Then::Unloaded(_) } => ("disconnecting", contact || close_reserved),
            Self::Disconnecting { then: Then::Quiet } => ("disconnecting", contact),
            Self::Unloaded => ("unloaded", contact || close_reserved),
        };
        (!allowed).then_some(Fault::OutOfPlace { message: message.info().name, state })
    }

    /// The action that sends a message, unless it is held back or nobody is connected.
    pub(super) fn send(&mut self, message: &Message<'_>) -> Option<ServerAction> {
        let connection = self.connected()?.connection;
        self.unless_held(send_on(&connection, message))
    }

    /// The same for a message that goes elsewhere, also when nobody is connected.
    pub(super) fn send_to(&mut self, address: Address, message: &Message<'_>) -> Option<ServerAction> {
        let agreed = self.connected().map(|connected| connected.connection);
        let (version, features) = agreed
            .map_or((Version::NEWEST, FeatureFlags::empty()), |agreed| (agreed.version, agreed.features));
        self.unless_held(send_to(address, message.encode(version, features)))
    }

    fn unless_held(&mut self, action: ServerAction) -> Option<ServerAction> {
        match self.connected_mut().and_then(|connected| connected.held.as_mut()) {
            Some(held) => {
                held.push_back(action);
                None
            }
            None => Some(action),
        }
    }
}

/// The action that sends a message on a connection.
fn send_on(connection: &Connection, message: &Message<'_>) -> ServerAction {
    let payload: Payload = message.encode(connection.version, connection.features);
    ServerAction::Send { vp: connection.target_vp, sint: connection.sint, payload }
}

impl Server {
    pub(super) fn unload(&mut self) {
        match core::mem::replace(&mut self.connection, State::Disconnected) {
            State::Connected(connected) => self.start_disconnecting(Then::Unloaded(connected.connection)),
            State::Connecting { asked, connection } => {
                self.withdraw_question(asked);
                self.unloaded(&connection);
            }
            State::Disconnecting { then: Then::Contact(contact) } => {
                let then = contact.connection().map_or(Then::Quiet, Then::Unloaded);
                self.connection = State::Disconnecting { then };
            }
            // Not allowed by `State::forbids`.
            state @ (State::Disconnected
            | State::Disconnecting { then: Then::Quiet | Then::Unloaded(_) }
            | State::Unloaded) => self.connection = state,
        }
    }

    pub(super) fn reset(&mut self) {
        match core::mem::replace(&mut self.connection, State::Disconnected) {
            State::Disconnected => self.act(ServerAction::Disconnected),
            State::Connecting { asked, .. } => {
                self.withdraw_question(asked);
                self.act(ServerAction::Disconnected);
            }
            State::Connected(_) => self.start_disconnecting(Then::Quiet),
            State::Disconnecting { .. } | State::Unloaded => self.keep_nothing(Then::Quiet),
        }
    }

    /// Lets go of everything that a connection held; `then` follows when the devices are done.
    pub(super) fn start_disconnecting(&mut self, then: Then) {
        self.connection = State::Disconnecting { then };
        self.questions.clear();
        self.connects.clear();
        self.disconnect_channels(&then);
    }

    /// Goes on disconnecting for another reason than UNLOAD.
    pub(super) fn keep_nothing(&mut self, then: Then) {
        self.connection = State::Disconnecting { then };
        self.end_all_kept();
    }

    /// Ends the connection if nothing of it is left; called after each input.
    pub(super) fn finish_disconnecting(&mut self) {
        let then = match self.connection {
            State::Disconnected | State::Connecting { .. } | State::Connected(_) => return,
            State::Disconnecting { then } => then,
            // UNLOAD_RESPONSE was sent before.
            State::Unloaded => Then::Quiet,
        };
        if self.channels.served() > 0 || self.gpadls.with_devices() > 0 {
            return;
        }
        if self.channels.any_kept().is_some() {
            self.connection = State::Unloaded;
            if let Then::Unloaded(connection) = then {
                self.unloaded(&connection);
            }
            return;
        }
        self.connection = State::Disconnected;
        self.channels.forget_relids();
        self.act(ServerAction::Disconnected);
        match then {
            Then::Quiet => {}
            Then::Unloaded(connection) => self.unloaded(&connection),
            Then::Contact(contact) => self.answer_contact(contact),
        }
    }

    fn unloaded(&mut self, connection: &Connection) {
        let message = Message::from(UnloadResponse {});
        if connection.version >= message.info().first_version {
            self.act(send_on(connection, &message));
        }
    }

    pub(super) fn pause(&mut self) {
        self.send(PauseResponse {});
        if let Some(connected) = self.connection.connected_mut() {
            connected.held = Some(VecDeque::new());
        }
    }

    pub(super) fn resume(&mut self) {
        if let Some(held) = self.connection.connected_mut().and_then(|connected| connected.held.take()) {
            self.actions.extend(held);
        }
    }

    pub(super) fn modify_connection(&mut self, request: &ModifyConnection) {
        let pages =
            MonitorPages::new(request.parent_to_child_monitor.get(), request.child_to_parent_monitor.get());
        let connection_state = match pages {
            Ok(pages) => {
                if let Some(connected) = self.connection.connected_mut() {
                    connected.connection.monitor_pages = pages;
                }
                self.act(ServerAction::MonitorPages(pages));
                0
            }
            Err(fault) => {
                self.fault(fault);
                UNKNOWN_FAILURE
            }
        };
        self.send(ModifyConnectionResponse { connection_state });
    }
}
