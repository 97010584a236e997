//! INITIATE_CONTACT: what the guest asks for, and the answer (`docs/src/protocol/control.md`, "Handshake").

use zerocopy::little_endian::{U16, U32, U64};

use super::config::{LEGACY_CONNECTION, MULTI_CLIENT_CONNECTION};
use super::connection::{Connected, LOW_RESOURCES, State, Then, UNKNOWN_FAILURE};
use super::question::Subject;
use super::{Answer, Connection, Fault, MonitorPages, Question, Server, ServerAction};
use crate::message::{InitiateContact, Message, VersionResponse};
use crate::{FeatureFlags, Status, Version};

/// The interrupt source of the bus.
const SINT: u8 = 2;
pub(super) const SINTS: u8 = 16;

/// One contact, decoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contact {
    /// `None`: nobody knows this version.
    pub(super) version: Option<Version>,
    /// Where the answer goes.
    pub(super) vp: u32,
    pub(super) sint: u8,
    pub(super) message: InitiateContact,
}

/// Why a contact fails.
enum Failure {
    NotSupported,
    State(u8),
}

impl Contact {
    /// An error drops the whole message.
    fn new(connection_id: u32, message: &InitiateContact) -> Result<Self, Fault> {
        let word = message.version.get();
        let version = Version::from_word(word);
        // Interrupt source and trust level count only where a guest can know that they are looked at.
        let multi_client = connection_id == MULTI_CLIENT_CONNECTION
            && version.is_some_and(|version| version.is_multi_client());
        let sint = if multi_client { message.target_sint() } else { SINT };
        if sint >= SINTS {
            return Err(Fault::NoSuchSint { sint });
        }
        if let Some(version) = version
            && multi_client
            && version >= Version::Win10Rs4
            && message.target_vtl() != 0
        {
            return Err(Fault::UnservedTrustLevel { version, vtl: message.target_vtl() });
        }
        let vp = if word >= Version::Win8_1.word() { message.target_vp.get() } else { 0 };
        Ok(Self { version, vp, sint, message: *message })
    }

    /// The connection as it would be if everything is granted, for the address of an answer.
    pub(super) fn connection(&self) -> Option<Connection> {
        let version = self.version?;
        let message = &self.message;
        let multi_client = version.is_multi_client();
        let features = if version >= Version::Copper { message.features() } else { FeatureFlags::empty() };
        let interrupt_page = message.interrupt_page_or_target.get();
        Some(Connection {
            version,
            features,
            target_vp: self.vp,
            sint: self.sint,
            message_connection_id: if multi_client { MULTI_CLIENT_CONNECTION } else { LEGACY_CONNECTION },
            interrupt_page: (!multi_client && interrupt_page != 0).then_some(interrupt_page),
            monitor_pages: None,
            client_id: features.contains(FeatureFlags::CLIENT_ID).then_some(message.client_id),
        })
    }
}

impl Server {
    pub(super) fn contact(&mut self, connection_id: u32, message: &InitiateContact) {
        let contact = match Contact::new(connection_id, message) {
            Ok(contact) => contact,
            Err(fault) => return self.fault(fault),
        };
        match core::mem::replace(&mut self.connection, State::Disconnected) {
            State::Disconnected => self.answer_contact(contact),
            State::Connecting { asked, .. } => {
                self.withdraw_question(asked);
                self.answer_contact(contact);
            }
            State::Connected(_) => self.start_disconnecting(Then::Contact(contact)),
            State::Disconnecting { .. } | State::Unloaded => self.keep_nothing(Then::Contact(contact)),
        }
    }

    /// Judges a contact while nobody is connected.
    pub(super) fn answer_contact(&mut self, contact: Contact) {
        let failure = match self.judge(&contact) {
            Ok(connection) => {
                let Connection { version, features, client_id, .. } = connection;
                let question = Question::Version { version, features, client_id };
                match self.ask(Subject::Version, question) {
                    Some(asked) => {
                        self.connection = State::Connecting { asked, connection };
                        return;
                    }
                    None => Failure::State(LOW_RESOURCES),
                }
            }
            Err(failure) => failure,
        };
        self.refuse_contact(contact.version, contact.vp, contact.sint, &failure);
    }

    fn judge(&mut self, contact: &Contact) -> Result<Connection, Failure> {
        let mut connection = contact.connection().ok_or(Failure::NotSupported)?;
        if !self.config.versions.contains(&connection.version) || connection.sint != SINT {
            return Err(Failure::NotSupported);
        }
        let message = &contact.message;
        let pages =
            MonitorPages::new(message.parent_to_child_monitor.get(), message.child_to_parent_monitor.get());
        connection.monitor_pages = pages.map_err(|fault| {
            self.fault(fault);
            Failure::State(UNKNOWN_FAILURE)
        })?;
        connection.features &= self.config.grantable();
        if connection.features.contains(FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES) {
            connection.monitor_pages = self.config.monitor_pages;
        }
        if connection.version.is_multi_client() {
            connection.message_connection_id = self.config.message_connection_id;
        }
        if !connection.features.contains(FeatureFlags::CLIENT_ID) {
            connection.client_id = None;
        }
        Ok(connection)
    }

    pub(super) fn version_decided(&mut self, answer: Answer) {
        let State::Connecting { connection, .. } = self.connection else { return };
        match answer {
            Answer::Allow => {
                self.connection = State::Connected(Connected::new(connection));
                self.act(ServerAction::Connected(connection));
                self.send(accepted(&connection));
            }
            Answer::Deny(status) => {
                self.connection = State::Disconnected;
                let failure = match status {
                    Status::INSUFFICIENT_RESOURCES => Failure::State(LOW_RESOURCES),
                    _ => Failure::NotSupported,
                };
                self.refuse_contact(
                    Some(connection.version),
                    connection.target_vp,
                    connection.sint,
                    &failure,
                );
            }
        }
    }

    fn refuse_contact(&mut self, version: Option<Version>, vp: u32, sint: u8, failure: &Failure) {
        // Before Win8 there is no connection state: the guest can only be told that its version is not supported.
        let response = match (failure, version) {
            (Failure::State(state), Some(version)) if version >= Version::Win8 => {
                VersionResponse { supported: 1, connection_state: *state, ..Default::default() }
            }
            (Failure::State(_) | Failure::NotSupported, _) => VersionResponse::default(),
        };
        let version = version.unwrap_or(Version::OLDEST);
        let payload = Message::from(response).encode(version, FeatureFlags::empty());
        self.act(ServerAction::Send { vp, sint, payload });
    }
}

fn accepted(connection: &Connection) -> VersionResponse {
    let version = connection.version;
    // Only the form with our own pages has room for them.
    let pages = connection.monitor_pages;
    VersionResponse {
        supported: 1,
        connection_state: 0,
        padding: U16::ZERO,
        version_or_connection_id: U32::new(if version.is_multi_client() {
            connection.message_connection_id
        } else {
            version.word()
        }),
        features: U32::new(connection.features.bits()),
        padding2: U32::ZERO,
        parent_to_child_monitor: U64::new(pages.map_or(0, |pages| pages.parent_to_child)),
        child_to_parent_monitor: U64::new(pages.map_or(0, |pages| pages.child_to_parent)),
    }
}
