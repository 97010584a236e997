//! The guest's end of the control plane, without I/O: one [`Client`] for each guest.
//!
//! Calls say what the guest wants, [`Client::handle_message`] takes what the host sends, and [`Client::poll_action`]
//! says what is to be done: messages to post, and events for whoever drives the devices. Take all actions after each
//! call, in order.
//!
//! Whatever was begun ends once: by the host's answer, by a rescind, by our own policy, or by the end of the
//! connection ([`Failure`]). The host is not trusted: a message that does not fit is a [`Fault`] and has no effect.
//!
//! Rings, signals and clocks are not here.

mod channel;
mod connection;
mod fault;
mod gpadl;
mod opening;
mod pause;
mod policy;
mod reserved;
mod restoring;
mod saving;
mod watch;

use alloc::collections::VecDeque;

pub use channel::{ChannelInfo, ChannelState, OfferInfo};
pub use connection::{ClientConfig, ConnectFailure, Connection};
pub use fault::{ClientError, Failure, Fault};
pub use opening::{OpenRequest, SignalParameters};
pub use policy::{Policy, Question};
pub use reserved::{AnswerSlot, ReservedOpenRequest};

pub use crate::server::{Answer, AskId, ConnectRequest, MonitorPages, Whose};

use crate::message::{Direction, Message, Payload, to_host};
use channel::Channels;
use gpadl::Gpadls;
use policy::Questions;
use watch::Watch;

/// What a client holds. All zero once a connection has ended, but for channels that are left open-reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Channels that were offered and not released.
    pub channels: usize,
    /// Page lists, from [`Client::create_gpadl`] until nobody but us uses their pages.
    pub gpadls: usize,
    /// Questions that our policy has not answered.
    pub questions: usize,
    /// Messages that are not posted before a pause ends.
    pub held: usize,
}

/// What is to be done, or has happened.
#[derive(Clone, Debug)]
pub enum ClientAction {
    /// Post a message to the host. Order matters.
    Post {
        /// The connection to post to. Report one that does not exist with [`Client::connection_refused`].
        connection_id: u32,
        /// The message.
        payload: Payload,
    },
    /// Our policy must decide; answer with [`Client::decided`].
    Ask {
        /// Name of the question.
        id: AskId,
        /// The question.
        question: Question,
    },
    /// A version is agreed on.
    Connected(Connection),
    /// No connection came to be.
    ConnectFailed(ConnectFailure),
    /// A channel may be opened.
    Offered(OfferInfo),
    /// Whatever was to be offered when the offers were requested has been.
    AllOffersDelivered,
    /// The host took a channel back. What was under way on it has been reported as failed, its page lists are gone and
    /// their pages free. Stop using the rings, then [`Client::release`] it.
    Rescinded {
        /// The channel.
        relid: u32,
    },
    /// End of [`Client::create_gpadl`].
    GpadlCreated {
        /// The channel.
        relid: u32,
        /// The page list.
        gpadl: u32,
        /// Failed, the list is gone and its pages are free; but after [`Client::teardown_gpadl`] wait for
        /// [`ClientAction::GpadlTorndown`].
        result: Result<(), Failure>,
    },
    /// End of [`Client::teardown_gpadl`]: the pages are free.
    GpadlTorndown {
        /// The page list.
        gpadl: u32,
    },
    /// End of [`Client::open`].
    Opened {
        /// The channel.
        relid: u32,
        /// As `open` returned it.
        open_id: u32,
        /// Whether the rings are in use now.
        result: Result<(), Failure>,
    },
    /// End of [`Client::close_reserved`], or of a close that an open given up by [`Client::close`] needed.
    ReservedClosed {
        /// The channel.
        relid: u32,
        /// Whether the host has said that it is closed.
        result: Result<(), Failure>,
    },
    /// End of [`Client::modify`].
    Modified {
        /// The channel.
        relid: u32,
        /// Before 5.3 nothing answers: then the old virtual processor may see signals for a while.
        result: Result<(), Failure>,
    },
    /// End of [`Client::modify_connection`].
    MonitorPagesModified(Result<(), Failure>),
    /// An hvsock connect was refused. One that succeeds ends in an offer whose instance is the endpoint.
    ConnectRefused {
        /// As in the request; its silo is not repeated by the host.
        request: ConnectRequest,
        /// Why.
        failure: Failure,
    },
    /// End of [`Client::pause`]: the host is silent until [`Client::resume`].
    Paused,
    /// End of [`Client::unload`]: the host has let go of everything.
    Unloaded,
    /// The host broke a rule; the client goes on.
    Fault(Fault),
}

/// The guest's end of the control plane.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    connection: connection::State,
    channels: Channels,
    gpadls: Gpadls,
    questions: Questions,
    actions: VecDeque<ClientAction>,
    watch: Watch,
}

impl Client {
    /// A client that has contacted nobody.
    pub fn new(config: ClientConfig) -> Self {
        Self {
            config,
            connection: connection::State::Disconnected,
            channels: Channels::default(),
            gpadls: Gpadls::default(),
            questions: Questions::default(),
            actions: VecDeque::new(),
            watch: Watch::default(),
        }
    }

    /// The next thing to do or to know, or `None` until the next call.
    pub fn poll_action(&mut self) -> Option<ClientAction> {
        self.watched();
        self.actions.pop_front()
    }

    /// The connection, while there is one.
    pub fn connection(&self) -> Option<Connection> {
        self.connection.connected()
    }

    /// The channels that were offered and not released, in order of their ids.
    pub fn channels(&self) -> impl Iterator<Item = ChannelInfo> {
        self.channels.iter().map(|channel| channel.info())
    }

    /// What we hold for this host at present.
    pub fn usage(&self) -> Usage {
        Usage {
            channels: self.channels.len(),
            gpadls: self.gpadls.len(),
            questions: self.questions.len(),
            held: self.held(),
        }
    }

    /// Takes a message that the host sent, in private memory.
    pub fn handle_message(&mut self, payload: &[u8]) {
        let negotiated = self.connection().map(|connection| (connection.version, connection.features));
        let message = Message::parse(payload, Direction::ToGuest, negotiated);
        self.watch_message(message.as_ref().ok());
        let message = match message {
            Ok(message) => message,
            Err(error) => return self.fault(Fault::Malformed(error)),
        };
        match message {
            Message::VersionResponse(response) => self.version_response(&response),
            Message::UnloadResponse(_) => self.unload_response(),
            Message::CloseReservedResponse(response) => self.reserved_closed(&response),
            Message::OpenChannelResult(result) if self.connection().is_none() => {
                self.opened_while_unloading(&result);
            }
            // Sent to a connection that we have left or that was before us.
            _ if self.connection().is_none() => {}
            Message::OfferChannel(offer) => self.offered(&offer),
            Message::RescindChannelOffer(rescind) => self.rescinded(rescind.relid.get()),
            Message::AllOffersDelivered(_) => self.offers_delivered(),
            Message::OpenChannelResult(result) => self.opened(&result),
            Message::GpadlCreated(created) => self.gpadl_created(&created),
            Message::GpadlTorndown(torndown) => self.gpadl_torndown(torndown.gpadl.get()),
            Message::ModifyChannelResponse(response) => self.modified(&response),
            Message::ModifyConnectionResponse(response) => self.connection_modified(&response),
            Message::TlConnectResult(result) => self.connect_refused(&result),
            Message::PauseResponse(_) => self.paused(),
            // Let through by no parser.
            to_host!() => self.fault(Fault::Unexpected { message: message.info().name }),
        }
    }

    fn act(&mut self, action: ClientAction) {
        self.actions.push_back(action);
    }

    fn fault(&mut self, fault: Fault) {
        self.actions.push_back(ClientAction::Fault(fault));
    }
}
