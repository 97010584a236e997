//! The host's end of the control plane, without I/O: one [`Server`] for each attached partition.
//!
//! Inputs go in ([`Server::handle`]): messages that the guest posted, what the host wants, what its devices report and
//! what policy decided. Actions come out ([`Server::poll_action`]): messages to send, devices to open and close,
//! questions for policy. Take all actions after each input, in order.
//!
//! The peer is hostile: whatever it sends, it gets the answer that `docs/src/protocol/control.md` prescribes or a
//! typed [`Fault`] is reported, and what the server holds for it stays within [`Quotas`]. The cost of an input does not
//! grow with the number of channels, but for those that concern all of them (the offers, the end of a connection).
//!
//! Rings, signals and clocks are not here.

mod channel;
mod config;
mod connection;
mod contact;
mod fault;
mod gpadl;
mod hvsock;
mod monitor;
mod offer;
mod opening;
mod question;
mod relids;
mod reserved;
mod restoring;
mod saving;
mod watch;

use alloc::collections::VecDeque;
use alloc::sync::Arc;

pub use channel::{ChannelInfo, ChannelState, Open};
pub use config::{Quota, Quotas, ServerConfig, Usage};
pub use connection::{Connection, MonitorPages};
pub use fault::{Fault, Whose};
pub use hvsock::ConnectRequest;
pub use monitor::Monitor;
pub use offer::OfferParams;
pub use question::{Answer, AskId, Question};
pub use restoring::Presence;

use crate::Status;
use crate::message::{Message, Payload, to_guest};
use crate::pages::PageRanges;
use channel::{Channels, OpenRequested};
use gpadl::Gpadls;
use hvsock::Connects;
use question::Questions;
use restoring::Attaching;
use watch::Watch;

/// The caller's name for an offered device's channel (a sub-channel has a key of its own).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum ServerInput<'a> {
    /// The guest posted a message.
    Message {
        /// The connection that it was posted to.
        connection_id: u32,
        /// Its payload, at most 240 bytes, in private memory.
        payload: &'a [u8],
    },
    /// The host offers a device's channel, now or as soon as a guest wants offers.
    Offer {
        /// Our name for it; free, or of a rescinded device, which then returns.
        device: DeviceKey,
        /// What the guest is told.
        offer: OfferParams,
    },
    /// The host takes a device's channel back.
    Rescind {
        /// Our name for it.
        device: DeviceKey,
    },
    /// Answer to [`ServerAction::Open`].
    Opened {
        /// The channel.
        relid: u32,
        /// Whether the device serves the channel now.
        result: Result<(), Status>,
    },
    /// Answer to [`ServerAction::Close`]: the rings are unmapped, nobody works on the channel.
    Closed {
        /// The channel.
        relid: u32,
    },
    /// Answer to [`ServerAction::ReleaseGpadl`]: nobody uses the pages any more.
    GpadlReleased {
        /// The channel.
        relid: u32,
        /// The page list.
        gpadl: u32,
    },
    /// Policy's answer to [`ServerAction::Ask`]. One that comes for a thing that is gone meanwhile is ignored.
    Decided {
        /// The question.
        id: AskId,
        /// The answer.
        answer: Answer,
    },
    /// The hvsock connect of [`ServerAction::Connect`] was refused (a failure), or its channel was offered (success).
    ConnectResult {
        /// As in the request.
        request: ConnectRequest,
        /// What the guest is told.
        result: Result<(), Status>,
    },
    /// After [`Server::restore`]: whether one of [`Server::unattached`] is back. Once all were spoken for, what
    /// they have to do comes again. All other inputs come later.
    Restored {
        /// The device.
        device: DeviceKey,
        /// Whether it is there.
        presence: Presence,
    },
    /// The partition was reset or vanished: everything closes and no message is sent.
    /// Always ends in one [`ServerAction::Disconnected`].
    Reset,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum ServerAction {
    /// Deliver a message to the guest. Order matters.
    Send {
        /// Virtual processor.
        vp: u32,
        /// Synthetic interrupt source, 0 to 15.
        sint: u8,
        /// The message.
        payload: Payload,
    },
    /// Policy must decide; answer with [`ServerInput::Decided`]. Only the thing asked about waits for the answer.
    Ask {
        /// Name of the question.
        id: AskId,
        /// The question.
        question: Question,
    },
    /// Map the rings and serve the channel; answer with [`ServerInput::Opened`].
    Open {
        /// The channel.
        relid: u32,
        /// Its device.
        device: DeviceKey,
        /// How it is opened.
        open: Open,
    },
    /// After a restore: serve the channel again, which is open and stays so, on rings that stand where they stood.
    /// Nothing answers. A device that cannot is rescinded.
    Reattach {
        /// The channel.
        relid: u32,
        /// Its device.
        device: DeviceKey,
        /// How it is opened.
        open: Open,
    },
    /// Stop serving the channel and unmap the rings; answer with [`ServerInput::Closed`].
    /// Follows each successful [`ServerInput::Opened`] once.
    Close {
        /// The channel.
        relid: u32,
        /// Its device.
        device: DeviceKey,
    },
    /// The device may use this page list from now on. The rings' list comes this way too, before the open.
    Gpadl {
        /// The channel.
        relid: u32,
        /// Its device.
        device: DeviceKey,
        /// The guest's name for the list.
        gpadl: u32,
        /// The pages.
        pages: Arc<PageRanges>,
    },
    /// Stop using the page list; answer with [`ServerInput::GpadlReleased`]. Follows each [`ServerAction::Gpadl`] once,
    /// for the rings' list only after the channel has closed.
    ReleaseGpadl {
        /// The channel.
        relid: u32,
        /// Its device.
        device: DeviceKey,
        /// The list.
        gpadl: u32,
    },
    /// Signals of this open channel go to another virtual processor from now on.
    Retarget {
        /// The channel.
        relid: u32,
        /// Its device.
        device: DeviceKey,
        /// The new virtual processor; `u32::MAX` for none.
        vp: u32,
    },
    /// The guest released an hvsock channel that was not rescinded: it refuses the connection, if it had not opened it.
    Declined {
        /// The device.
        device: DeviceKey,
    },
    /// A rescinded device's channel id is free; the key may be forgotten or used again.
    Released {
        /// The device.
        device: DeviceKey,
    },
    /// A version is agreed on.
    Connected(Connection),
    /// The guest gives other monitor pages, or none.
    MonitorPages(Option<MonitorPages>),
    /// Nothing of the last connection is left: unloaded, replaced by a new contact, or reset.
    Disconnected,
    /// The guest connects to an hvsock service: offer a channel whose instance is the endpoint, then answer with
    /// [`ServerInput::ConnectResult`]; or only answer, with a failure.
    Connect(ConnectRequest),
    /// Somebody broke a rule; the server goes on.
    Fault(Fault),
}

/// The host's end of one partition's control plane.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    connection: connection::State,
    channels: Channels,
    gpadls: Gpadls,
    connects: Connects,
    questions: Questions,
    actions: VecDeque<ServerAction>,
    attaching: Attaching,
    watch: Watch,
}

impl Server {
    /// A server that nobody has contacted and that offers nothing.
    pub fn new(config: ServerConfig) -> Self {
        Self {
            config,
            connection: connection::State::Disconnected,
            channels: Channels::default(),
            gpadls: Gpadls::default(),
            connects: Connects::default(),
            questions: Questions::default(),
            actions: VecDeque::new(),
            attaching: Attaching::default(),
            watch: Watch::default(),
        }
    }

    /// Takes one input. What is to be done about it comes from [`Self::poll_action`].
    pub fn handle(&mut self, input: ServerInput<'_>) {
        if !self.attaching.is_over() && !matches!(input, ServerInput::Restored { .. }) {
            self.end_attaching();
        }
        self.watch(&input);
        match input {
            ServerInput::Message { connection_id, payload } => self.message(connection_id, payload),
            ServerInput::Offer { device, offer } => self.offer(device, offer),
            ServerInput::Rescind { device } => self.rescind(device),
            ServerInput::Opened { relid, result } => self.opened(relid, result),
            ServerInput::Closed { relid } => self.closed(relid),
            ServerInput::GpadlReleased { relid, gpadl } => self.gpadl_released(relid, gpadl),
            ServerInput::Decided { id, answer } => self.decided(id, answer),
            ServerInput::ConnectResult { request, result } => self.connect_result(request, result),
            ServerInput::Restored { device, presence } => self.restored(device, presence),
            ServerInput::Reset => self.reset(),
        }
        self.finish_disconnecting();
    }

    /// The next thing to do, or `None` until the next input.
    pub fn poll_action(&mut self) -> Option<ServerAction> {
        self.watched();
        self.actions.pop_front()
    }

    /// All devices that are offered or not yet released, in order of their keys.
    pub fn channels(&self) -> impl Iterator<Item = ChannelInfo> {
        self.channels.iter().map(|(device, channel)| channel.info(*device))
    }

    /// Other bounds from now on. What exceeds them already stays.
    pub fn set_quotas(&mut self, quotas: Quotas) {
        self.config.quotas = quotas;
    }

    /// What the guest makes us hold at present.
    pub fn usage(&self) -> Usage {
        Usage {
            channels: self.channels.relids_in_use(),
            half_built_gpadls: self.gpadls.half_built(),
            half_built_words: self.gpadls.half_built_words(),
            gpadls: self.gpadls.built(),
            pages: self.gpadls.pages(),
            questions: self.questions.caused_by_guest(),
            connects: self.connects.len(),
        }
    }

    /// The connection, while a guest is connected.
    pub fn connection(&self) -> Option<Connection> {
        self.connection.connected().map(|connected| connected.connection)
    }

    /// Hands one message of the guest to whoever is responsible for it.
    fn message(&mut self, connection_id: u32, payload: &[u8]) {
        if !self.config.takes_messages_on(connection_id) {
            return self.fault(Fault::UnknownConnection { connection_id });
        }
        let message = match self.connection.parse(payload) {
            Ok(message) => message,
            Err(error) => return self.fault(Fault::Malformed(error)),
        };
        if let Some(fault) = self.connection.forbids(&message) {
            return self.fault(fault);
        }
        match message {
            Message::InitiateContact(contact) => self.contact(connection_id, &contact),
            Message::Unload(_) => self.unload(),
            Message::RequestOffers(_) => self.request_offers(),
            Message::OpenChannel(message) => self.open(OpenRequested { message, reserved: None }),
            Message::CloseChannel(request) => self.close(request.relid.get()),
            Message::GpadlHeader(header, ranges) => self.gpadl_header(&header, ranges),
            Message::GpadlBody(body, ranges) => self.gpadl_body(body.gpadl.get(), ranges),
            Message::GpadlTeardown(request) => self.gpadl_teardown(request.relid.get(), request.gpadl.get()),
            Message::RelidReleased(request) => self.relid_released(request.relid.get()),
            Message::ModifyChannel(request) => self.modify(request.relid.get(), request.target_vp.get()),
            Message::OpenReservedChannel(request) => self.open_reserved(&request),
            Message::CloseReservedChannel(request) => self.close_reserved(&request),
            Message::TlConnectRequest(request) => self.connect(&request),
            Message::ModifyConnection(request) => self.modify_connection(&request),
            Message::Pause(_) => self.pause(),
            Message::Resume(_) => self.resume(),
            // The parser lets through only what goes to the host.
            to_guest!() => self.fault(Fault::out_of_place(&message)),
        }
    }

    /// Sends a message on the present connection; without one there is nobody to send it to.
    fn send<'a>(&mut self, message: impl Into<Message<'a>>) {
        let message = message.into();
        if let Some(action) = self.connection.send(&message) {
            self.actions.push_back(action);
        }
    }

    fn act(&mut self, action: ServerAction) {
        self.actions.push_back(action);
    }

    fn fault(&mut self, fault: Fault) {
        self.actions.push_back(ServerAction::Fault(fault));
    }
}

/// The status on the wire for a refusal: everybody takes a value with bit 31 set for a failure.
fn refusal(status: Status) -> u32 {
    const FAILURE_BIT: u32 = 1 << 31;
    if status.0 & FAILURE_BIT == 0 { Status::FAILURE.0 } else { status.0 }
}
