//! The client's connection: versions tried from the highest down, then connected, then unloaded.

use core::ops::RangeInclusive;

use zerocopy::little_endian::{U32, U64};

use super::pause::{Held, Pausing};
use super::policy::Subject;
use super::watch::For;
use super::{Answer, AskId, Client, ClientAction, ClientError, ConnectRequest, Failure, Fault, MonitorPages};
use super::{Policy, Question};
use crate::message::{
    InitiateContact, Message, ModifyConnection, ModifyConnectionResponse, RequestOffers, TlConnectRequest,
    TlConnectResult, Unload, VersionResponse,
};
use crate::{FeatureFlags, Guid, Status, Version};

const LEGACY_CONNECTION: u32 = 1;
const MULTI_CLIENT_CONNECTION: u32 = 4;
pub(super) const CONNECTION_ID_BITS: u32 = 0x00ff_ffff;
/// The interrupt source of the bus.
const SINT: u8 = 2;

/// Settings of one client.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Features to ask for with 6.0.
    pub features: FeatureFlags,
    /// Virtual processor that is to get control messages (3.0 and later; before it is 0).
    pub target_vp: u32,
    /// Guest-physical address of the interrupt page, for versions before 5.0; 0 for none.
    pub interrupt_page: u64,
    /// Our monitor pages.
    pub monitor_pages: Option<MonitorPages>,
    /// Who we are, told to the host if it is asked for the client-id feature.
    pub client_id: Option<Guid>,
    /// Who decides what we do.
    pub policy: Policy,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            features: FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS
                | FeatureFlags::MODIFY_CONNECTION
                | FeatureFlags::CLIENT_ID
                | FeatureFlags::PAUSE_RESUME,
            target_vp: 0,
            interrupt_page: 0,
            monitor_pages: None,
            client_id: None,
            policy: Policy::AllowAll,
        }
    }
}

/// What guest and host agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The version.
    pub version: Version,
    /// The features.
    pub features: FeatureFlags,
    /// Connection that messages are posted to.
    pub message_connection_id: u32,
    /// Guest-physical address of the interrupt page, before 5.0 if we have one.
    pub interrupt_page: Option<u64>,
    /// The monitor pages: ours, or the host's where it names them.
    pub monitor_pages: Option<MonitorPages>,
}

/// Why no connection came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectFailure {
    /// The host supports none of our versions, or our policy allows none that it supports.
    #[error("host and guest have no version in common")]
    NoCommonVersion,
    /// The host supports the version and cannot connect.
    #[error("the host cannot connect, its connection state is {0}")]
    Host(u8),
    /// There is no host at all.
    #[error("there is no host on this bus")]
    NoHost,
    /// The client was reset.
    #[error("the attempt was given up")]
    Cancelled,
}

/// The state of the connection.
#[derive(Debug)]
pub(super) enum State {
    Disconnected,
    /// Our policy decides about the next version.
    Asking {
        asked: Option<AskId>,
        version: Version,
        lowest: Version,
    },
    /// INITIATE_CONTACT was posted.
    Contacting {
        version: Version,
        lowest: Version,
    },
    Connected {
        connection: Connection,
        offers: Offers,
        /// Monitor pages that the host was told and has not accepted.
        modifying: Option<Option<MonitorPages>>,
        pause: Pausing,
        held: Held,
    },
    /// UNLOAD was posted.
    Unloading {
        connection: Connection,
    },
}

/// How far the offers of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offers {
    NotRequested,
    Requested,
    /// The host has sent all; our policy still decides about some.
    Deciding,
    Delivered,
}

impl State {
    pub(super) fn connected(&self) -> Option<Connection> {
        match self {
            Self::Connected { connection, .. } => Some(*connection),
            Self::Disconnected | Self::Asking { .. } | Self::Contacting { .. } | Self::Unloading { .. } => {
                None
            }
        }
    }
}

impl Client {
    /// Contacts the host with the highest of these versions, then with lower ones until it accepts. Reserved channels
    /// that the last connection has left open end now.
    pub fn connect(&mut self, versions: RangeInclusive<Version>) -> Result<(), ClientError> {
        self.watch("connect()", For::Connection);
        match self.connection {
            State::Disconnected => {}
            State::Asking { .. } | State::Contacting { .. } => {
                return Err(ClientError::Connection("connecting"));
            }
            State::Connected { .. } => return Err(ClientError::Connection("connected")),
            State::Unloading { .. } => return Err(ClientError::Connection("unloading")),
        }
        if versions.is_empty() {
            return Err(ClientError::NoVersion);
        }
        self.forget_all_left_behind();
        self.try_version(*versions.end(), *versions.start());
        Ok(())
    }

    /// The connection that a message was posted to does not exist. For a contact that means: the host is older.
    pub fn connection_refused(&mut self, connection_id: u32) {
        self.watch("connection refused", For::Connection);
        match self.connection {
            State::Contacting { version, lowest } if connection_id == contact_connection(version) => {
                if version.is_multi_client() {
                    self.try_lower(Version::Win10Rs3_1, lowest);
                } else {
                    self.connect_failed(ConnectFailure::NoHost);
                }
            }
            State::Unloading { .. } => self.unload_response(),
            State::Connected { .. } => self.fault(Fault::ConnectionGone { connection_id }),
            State::Disconnected | State::Asking { .. } | State::Contacting { .. } => {}
        }
    }

    fn try_version(&mut self, version: Version, lowest: Version) {
        let question = Question::Version { version, features: self.features_for(version) };
        self.connection = State::Asking { asked: None, version, lowest };
        let id = self.ask(Subject::Version, question);
        if let State::Asking { asked, .. } = &mut self.connection {
            *asked = Some(id);
        }
        self.allow_if_nobody_decides(id);
    }

    /// Tries the next version below `version`, or gives up.
    fn try_lower(&mut self, version: Version, lowest: Version) {
        match Version::ALL.into_iter().rev().find(|lower| *lower < version && *lower >= lowest) {
            Some(lower) => self.try_version(lower, lowest),
            None => self.connect_failed(ConnectFailure::NoCommonVersion),
        }
    }

    fn connect_failed(&mut self, failure: ConnectFailure) {
        self.connection = State::Disconnected;
        self.act(ClientAction::ConnectFailed(failure));
    }

    pub(super) fn version_decided(&mut self, answer: Answer) {
        let State::Asking { version, lowest, .. } = self.connection else { return };
        match answer {
            Answer::Allow => {
                self.connection = State::Contacting { version, lowest };
                let features = self.features_for(version);
                let contact = Message::from(self.contact(version, features));
                self.act(ClientAction::Post {
                    connection_id: contact_connection(version),
                    payload: contact.encode(version, features),
                });
            }
            Answer::Deny(_) => self.try_lower(version, lowest),
        }
    }

    pub(super) fn features_for(&self, version: Version) -> FeatureFlags {
        let mut features =
            if version >= Version::Copper { self.config.features } else { FeatureFlags::empty() };
        if self.config.client_id.is_none() {
            features -= FeatureFlags::CLIENT_ID;
        }
        features
    }

    fn contact(&self, version: Version, features: FeatureFlags) -> InitiateContact {
        let pages = self.config.monitor_pages;
        InitiateContact {
            version: U32::new(version.word()),
            target_vp: U32::new(if version >= Version::Win8_1 { self.config.target_vp } else { 0 }),
            interrupt_page_or_target: if version.is_multi_client() {
                InitiateContact::target(SINT, 0, features)
            } else {
                U64::new(self.config.interrupt_page)
            },
            parent_to_child_monitor: U64::new(pages.map_or(0, |pages| pages.parent_to_child)),
            child_to_parent_monitor: U64::new(pages.map_or(0, |pages| pages.child_to_parent)),
            client_id: self.config.client_id.unwrap_or_default(),
        }
    }

    pub(super) fn version_response(&mut self, response: &VersionResponse) {
        let State::Contacting { version, lowest } = self.connection else {
            return self.fault(Fault::Unexpected { message: "VERSION_RESPONSE" });
        };
        if response.supported == 0 {
            return self.try_lower(version, lowest);
        }
        if version >= Version::Win8 && response.connection_state != 0 {
            return self.connect_failed(ConnectFailure::Host(response.connection_state));
        }
        let message_connection_id = if version.is_multi_client() {
            response.version_or_connection_id.get()
        } else {
            LEGACY_CONNECTION
        };
        if message_connection_id == 0 || message_connection_id > CONNECTION_ID_BITS {
            self.fault(Fault::BadVersionResponse { version, what: "a connection id that cannot be" });
            return self.try_lower(version, lowest);
        }
        let granted = FeatureFlags::from_bits_retain(response.features.get());
        let features = self.features_for(version) & granted;
        let mut monitor_pages = self.config.monitor_pages;
        if features.contains(FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES) {
            let child_to_parent = response.child_to_parent_monitor.get();
            if child_to_parent == 0 {
                self.fault(Fault::BadVersionResponse { version, what: "no monitor page for us to write" });
                return self.try_lower(version, lowest);
            }
            let parent_to_child = response.parent_to_child_monitor.get();
            monitor_pages = Some(MonitorPages { parent_to_child, child_to_parent });
        }
        let interrupt_page = (!version.is_multi_client() && self.config.interrupt_page != 0)
            .then_some(self.config.interrupt_page);
        let connection =
            Connection { version, features, message_connection_id, interrupt_page, monitor_pages };
        self.connection = State::Connected {
            connection,
            offers: Offers::NotRequested,
            modifying: None,
            pause: Pausing::No,
            held: Held::default(),
        };
        self.act(ClientAction::Connected(connection));
    }

    /// Asks for the offers, once per connection. Be ready for them.
    pub fn request_offers(&mut self) -> Result<(), ClientError> {
        self.watch("request_offers()", For::Connection);
        self.talking()?;
        if let State::Connected { offers, .. } = &mut self.connection {
            if *offers != Offers::NotRequested {
                return Err(ClientError::Connection("offers were requested before"));
            }
            *offers = Offers::Requested;
        }
        self.post(RequestOffers {});
        Ok(())
    }

    /// Whether offers that come now were there at the request.
    pub(super) fn expects_offers(&self) -> Option<Offers> {
        match self.connection {
            State::Connected { offers, .. } => Some(offers),
            State::Disconnected
            | State::Asking { .. }
            | State::Contacting { .. }
            | State::Unloading { .. } => None,
        }
    }

    pub(super) fn offers_delivered(&mut self) {
        match &mut self.connection {
            State::Connected { offers: offers @ Offers::Requested, .. } => {
                *offers = Offers::Deciding;
                self.report_offers_delivered();
            }
            State::Connected { .. }
            | State::Disconnected
            | State::Asking { .. }
            | State::Contacting { .. }
            | State::Unloading { .. } => self.fault(Fault::Unexpected { message: "ALLOFFERS_DELIVERED" }),
        }
    }

    pub(super) fn report_offers_delivered(&mut self) {
        if let State::Connected { offers: offers @ Offers::Deciding, .. } = &mut self.connection
            && self.questions.initial_offers() == 0
        {
            *offers = Offers::Delivered;
            self.act(ClientAction::AllOffersDelivered);
        }
    }

    /// Leaves the bus. All pages are the guest's own again with [`ClientAction::Unloaded`]; before 3.0 that comes at
    /// once, as hosts need not answer. Channels that are open-reserved stay so, with their page lists.
    pub fn unload(&mut self) -> Result<(), ClientError> {
        self.watch("unload()", For::All);
        let connection = self.connection().ok_or(ClientError::Connection("not connected"))?;
        self.post(Unload {});
        let closes = self.held_closes_of_reserved();
        self.connection = State::Unloading { connection };
        self.actions.extend(closes);
        if connection.version < Version::Win8_1 {
            self.unload_response();
        }
        Ok(())
    }

    pub(super) fn unload_response(&mut self) {
        // Where we did not wait for it, it comes while we do something else.
        if let State::Unloading { connection } = self.connection {
            let staying = self.leave_reserved_behind(connection);
            self.end(&staying);
            self.act(ClientAction::Unloaded);
        }
    }

    /// The guest was reset, or the host vanished: everything under way ends as failed, nothing is posted.
    pub fn reset(&mut self) {
        self.watch("reset()", For::All);
        match self.connection {
            State::Asking { .. } | State::Contacting { .. } => self.connect_failed(ConnectFailure::Cancelled),
            State::Disconnected | State::Connected { .. } | State::Unloading { .. } => {}
        }
        self.forget_all_left_behind();
        self.end(&[]);
    }

    /// Forgets a connection; whatever was under way ends. Reserved channels may stay.
    fn end(&mut self, staying: &[u32]) {
        let modifying = matches!(self.connection, State::Connected { modifying: Some(_), .. });
        self.connection = State::Disconnected;
        self.questions.clear();
        self.end_channels(staying);
        self.end_gpadls(staying);
        if modifying {
            self.act(ClientAction::MonitorPagesModified(Err(Failure::Disconnected)));
        }
    }

    /// The connection, if messages may be posted now.
    pub(super) fn talking(&self) -> Result<Connection, ClientError> {
        match self.connection {
            State::Connected { connection, pause: Pausing::No, .. } => Ok(connection),
            State::Connected { pause: Pausing::Asked | Pausing::Paused, .. } => {
                Err(ClientError::Connection("paused"))
            }
            State::Disconnected | State::Asking { .. } | State::Contacting { .. } => {
                Err(ClientError::Connection("not connected"))
            }
            State::Unloading { .. } => Err(ClientError::Connection("unloading")),
        }
    }

    /// Whether version and features allow a message.
    pub(super) fn negotiated(&self, message: &Message<'_>) -> Result<(), ClientError> {
        let connection = self.talking()?;
        let info = message.info();
        let known = connection.version >= info.first_version;
        if known && (info.gate.is_empty() || connection.features.intersects(info.gate)) {
            Ok(())
        } else {
            Err(ClientError::NotNegotiated(connection.version))
        }
    }

    /// Gives the host other monitor pages, or none. Ends in [`ClientAction::MonitorPagesModified`].
    pub fn modify_connection(&mut self, pages: Option<MonitorPages>) -> Result<(), ClientError> {
        self.watch("modify_connection()", For::Connection);
        let message = ModifyConnection {
            parent_to_child_monitor: U64::new(pages.map_or(0, |pages| pages.parent_to_child)),
            child_to_parent_monitor: U64::new(pages.map_or(0, |pages| pages.child_to_parent)),
        };
        self.negotiated(&message.into())?;
        if let State::Connected { modifying, .. } = &mut self.connection {
            if modifying.is_some() {
                return Err(ClientError::Connection("monitor pages are being modified"));
            }
            *modifying = Some(pages);
        }
        self.post(message);
        Ok(())
    }

    pub(super) fn connection_modified(&mut self, response: &ModifyConnectionResponse) {
        let (connection, pages) = match &mut self.connection {
            State::Connected { connection, modifying: modifying @ Some(_), .. } => {
                (connection, modifying.take().flatten())
            }
            State::Connected { modifying: None, .. }
            | State::Disconnected
            | State::Asking { .. }
            | State::Contacting { .. }
            | State::Unloading { .. } => {
                return self.fault(Fault::Unexpected { message: "MODIFY_CONNECTION_RESPONSE" });
            }
        };
        let result = match response.connection_state {
            0 => {
                connection.monitor_pages = pages;
                Ok(())
            }
            _ => Err(Failure::Refused(Status::FAILURE)),
        };
        self.act(ClientAction::MonitorPagesModified(result));
    }

    /// Connects to an hvsock service of the host.
    pub fn connect_service(&mut self, request: ConnectRequest) -> Result<(), ClientError> {
        self.watch("connect_service()", For::Connection);
        let message = TlConnectRequest {
            endpoint_id: request.endpoint,
            service_id: request.service,
            silo_id: request.silo,
        };
        self.negotiated(&message.into())?;
        self.post(message);
        Ok(())
    }

    pub(super) fn connect_refused(&mut self, result: &TlConnectResult) {
        let status = u32::from_le_bytes(result.status.to_bytes());
        self.act(ClientAction::ConnectRefused {
            request: ConnectRequest {
                endpoint: result.endpoint_id,
                service: result.service_id,
                silo: Guid::ZERO,
            },
            failure: Failure::Refused(Status(status)),
        });
    }
}

/// Connection that a contact is posted to.
fn contact_connection(version: Version) -> u32 {
    if version.is_multi_client() { MULTI_CLIENT_CONNECTION } else { LEGACY_CONNECTION }
}
