//! The client's half of the conversation, without I/O: what to say next, and what an answer means
//! (`docs/src/protocol/network.md`, "NVSP" and "RNDIS").
//!
//! Inputs go in by [`handle`](Conversation::handle), and [`poll_action`](Conversation::poll_action) says what they
//! lead to. Frames do not come by here.

mod bring_up;
mod requests;

use std::collections::VecDeque;

use vmbus_core::network::nvsp::{self, Buffer, INDIRECTION_ENTRIES, Sender};
use vmbus_core::network::rndis::{self, Status};
use vmbus_core::network::{Oid, Version};

pub(super) use self::bring_up::Agreement;
use self::bring_up::{BringUp, Step};
use self::requests::Requests;
pub(super) use self::requests::{Ended, Ticket};
use super::error::NicError;
use super::options::{NicInfo, NicOptions};

/// Our name for the send buffer.
const SEND_BUFFER: u16 = 0xface;
/// Longest RNDIS message about the device that we take, in bytes; stated in INITIALIZE.
pub(super) const LONGEST_CONTROL: u32 = 0x4000;

/// What happened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input<'a> {
    /// The provider knows our memory by this page list.
    Shared(Buffer, u32),
    /// The completion of the last [`Action::Ask`].
    Answer(&'a [u8]),
    /// An RNDIS message about the device.
    Control(&'a [u8]),
    /// An NVSP message that answers nothing.
    Notice(&'a [u8]),
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Send this NVSP message; its completion is an [`Input::Answer`]. There is one at a time.
    Ask(nvsp::Encoded),
    /// Send this NVSP message; whatever completes it says nothing.
    Tell(nvsp::Encoded),
    /// Describe this memory to the root, for [`Input::Shared`].
    Share(Buffer),
    /// Send this RNDIS message about the device.
    Control(Vec<u8>),
    /// Something is not as it was.
    Event(Event),
}

/// What a provider tells of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// There is a link, or there is none.
    Link(bool),
    /// In bit/s.
    LinkSpeed(u64),
    /// Another network is behind the link.
    NetworkChanged,
    /// Which queue flows are best sent by.
    Table([u32; INDIRECTION_ENTRIES]),
    /// A virtual function came, with this serial number, or went.
    VirtualFunction(Option<u32>),
    /// The device has forgotten addresses and filters.
    AddressesForgotten,
}

/// The two buffers, as far as a conversation speaks of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffers {
    /// Bytes.
    pub(super) receive_len: usize,
    /// Our name for it: set id of transfer-page packets.
    pub(super) receive_name: u16,
    /// Bytes; 0 for none.
    pub(super) send_len: usize,
}

/// One conversation, from the opening of the channel to its end.
#[derive(Debug)]
pub(super) struct Conversation {
    bring_up: BringUp,
    requests: Requests,
    /// What became of the last request for sub-channels, until somebody asks.
    sub_channels: Option<Result<u32, nvsp::Status>>,
    asks_for_sub_channels: bool,
    actions: VecDeque<Action>,
    /// Messages of the provider that made no sense since it was ready.
    malformed: u64,
}

impl Conversation {
    /// Begins on a channel that has just been opened, for these buffers. With `again`, on a channel to
    /// another root, where nothing may have changed.
    pub(super) fn begin(options: &NicOptions, buffers: Buffers, again: Option<(Agreement, NicInfo)>) -> Self {
        let mut conversation = Self {
            bring_up: BringUp::new(options, buffers, again),
            requests: Requests::default(),
            sub_channels: None,
            asks_for_sub_channels: false,
            actions: VecDeque::new(),
            malformed: 0,
        };
        conversation.begin_bring_up();
        conversation
    }

    /// What was agreed, once the start is over.
    pub(super) fn ready(&self) -> Option<(Agreement, NicInfo)> {
        self.bring_up.result()
    }

    /// How the receive buffer is divided, once the provider has said so.
    pub(super) fn dividing(&self) -> Option<Agreement> {
        self.bring_up.dividing()
    }

    /// The version agreed on, or proposed.
    pub(super) fn version(&self) -> Version {
        self.bring_up.version()
    }

    /// Messages that made no sense.
    pub(super) fn malformed(&self) -> u64 {
        self.malformed
    }

    /// The next thing to do.
    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes an input.
    ///
    /// # Errors
    /// Until the start is over, what keeps the device from being used. After that, what makes no sense is counted and
    /// has no effect.
    pub(super) fn handle(&mut self, input: Input<'_>) -> Result<(), NicError> {
        let result = match input {
            Input::Shared(buffer, gpadl) => {
                self.shared(buffer, gpadl);
                Ok(())
            }
            Input::Answer(bytes) => self.answered(bytes),
            Input::Control(bytes) => self.control(bytes),
            Input::Notice(bytes) => self.notice(bytes),
        };
        match (self.bring_up.step(), result) {
            (Step::Ready | Step::Halted, Err(_)) => {
                self.malformed += 1;
                Ok(())
            }
            (_, result) => result,
        }
    }

    /// Asks for the value of an object.
    pub(super) fn query(&mut self, oid: Oid, data: &[u8]) -> Ticket {
        self.begin_request(|request| rndis::Message::Query { request, oid, data })
    }

    /// Sets an object.
    pub(super) fn set(&mut self, oid: Oid, data: &[u8]) -> Ticket {
        self.begin_request(|request| rndis::Message::Set { request, oid, data })
    }

    /// Asks whether anybody is there.
    pub(super) fn keep_alive(&mut self) -> Ticket {
        self.begin_request(|request| rndis::Message::KeepAlive { request })
    }

    /// Resets the device.
    pub(super) fn reset(&mut self) -> Ticket {
        self.begin_request(|_| rndis::Message::Reset)
    }

    /// How a request ended, once.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Ended> {
        self.requests.take(ticket)
    }

    /// Nobody waits for this request any more.
    pub(super) fn forget(&mut self, ticket: Ticket) {
        self.requests.forget(ticket);
    }

    /// The last root took a request for sub-channels to its grave: it never ends. Other requests are for those who wait
    /// for them to give up.
    pub(super) fn interrupt_sub_channels(&mut self) {
        self.asks_for_sub_channels = false;
    }

    /// Asks for sub-channels. `false`: somebody does already, or this version knows none.
    pub(super) fn ask_for_sub_channels(&mut self, count: u32) -> bool {
        if self.asks_for_sub_channels || self.version() < Version::V5 || self.bring_up.step() != Step::Ready {
            return false;
        }
        (self.asks_for_sub_channels, self.sub_channels) = (true, None);
        let message = nvsp::Message::SubchannelRequest { operation: 1, count };
        self.actions.push_back(Action::Ask(message.encode(self.version())));
        true
    }

    /// How many sub-channels there will be, once the provider has said so.
    pub(super) fn take_sub_channels(&mut self) -> Option<Result<u32, nvsp::Status>> {
        self.sub_channels.take()
    }

    /// Ends it in order.
    pub(super) fn halt(&mut self) {
        if self.bring_up.step() != Step::Ready {
            return;
        }
        let version = self.version();
        self.requests.clear();
        self.begin_request(|request| rndis::Message::Halt { request });
        let receive = self.bring_up.buffers().receive_name;
        for (buffer, id) in [(Buffer::Receive, receive), (Buffer::Send, SEND_BUFFER)] {
            self.actions.push_back(Action::Tell(nvsp::Message::Revoke { buffer, id }.encode(version)));
        }
        self.bring_up.halt();
    }

    fn begin_request<'a>(&mut self, message: impl FnOnce(u32) -> rndis::Message<'a>) -> Ticket {
        let (ticket, bytes) = self.requests.begin(message);
        self.actions.push_back(Action::Control(bytes));
        ticket
    }

    fn answered(&mut self, bytes: &[u8]) -> Result<(), NicError> {
        if self.bring_up.step() != Step::Ready {
            return self.bring_up_answered(bytes);
        }
        if !std::mem::take(&mut self.asks_for_sub_channels) {
            return Err(NicError::Answer("nothing"));
        }
        let answer = nvsp::Message::parse(bytes, Sender::Host, Some(self.version()));
        self.sub_channels = Some(match answer {
            Ok(nvsp::Message::SubchannelComplete { status: nvsp::Status::SUCCESS, count }) => Ok(count),
            Ok(nvsp::Message::SubchannelComplete { status, .. }) => Err(status),
            Ok(_) | Err(_) => Err(nvsp::Status::FAILURE),
        });
        Ok(())
    }

    fn control(&mut self, bytes: &[u8]) -> Result<(), NicError> {
        match rndis::Message::parse(bytes)? {
            rndis::Message::InitializeComplete(complete) => self.initialized(&complete),
            rndis::Message::QueryComplete { request, status, data } => {
                self.ended(request, rndis::MessageType::QUERY, status, data)
            }
            rndis::Message::SetComplete { request, status } => {
                self.ended(request, rndis::MessageType::SET, status, &[])
            }
            rndis::Message::KeepAliveComplete { request, status } => {
                self.ended(request, rndis::MessageType::KEEPALIVE, status, &[])
            }
            rndis::Message::ResetComplete { status, addressing_reset } => {
                // One that nobody asked for has no effect: it would cost us more than the provider.
                if self.requests.reset_ended(status) && addressing_reset {
                    self.event(Event::AddressesForgotten);
                }
                Ok(())
            }
            rndis::Message::IndicateStatus { status, data } => {
                self.indicated(status, data);
                Ok(())
            }
            rndis::Message::KeepAlive { request } => {
                let mut answer = Vec::new();
                let status = Status::SUCCESS;
                rndis::Message::KeepAliveComplete { request, status }.encode(&mut answer);
                // A provider that asks faster than it reads gets fewer answers.
                if self.actions.len() < ACTIONS_AT_MOST {
                    self.actions.push_back(Action::Control(answer));
                }
                Ok(())
            }
            rndis::Message::Initialize { .. }
            | rndis::Message::Halt { .. }
            | rndis::Message::Query { .. }
            | rndis::Message::Set { .. }
            | rndis::Message::Reset => Err(NicError::Answer("us")),
        }
    }

    fn ended(
        &mut self,
        request: u32,
        kind: rndis::MessageType,
        status: Status,
        data: &[u8],
    ) -> Result<(), NicError> {
        // One that nobody waits for any more is in order.
        let Some(ticket) = self.requests.ended(request, kind, status, data) else { return Ok(()) };
        self.bring_up_ended(ticket)
    }

    fn indicated(&mut self, status: Status, data: &[u8]) {
        match status {
            Status::MEDIA_CONNECT => self.event(Event::Link(true)),
            Status::MEDIA_DISCONNECT => self.event(Event::Link(false)),
            Status::NETWORK_CHANGE => self.event(Event::NetworkChanged),
            Status::LINK_SPEED_CHANGE => {
                if let Some(&speed) = data.first_chunk::<4>() {
                    self.event(Event::LinkSpeed(100 * u64::from(u32::from_le_bytes(speed))));
                }
            }
            // What else there may be concerns nobody here.
            _ => {}
        }
    }

    fn notice(&mut self, bytes: &[u8]) -> Result<(), NicError> {
        match nvsp::Message::parse(bytes, Sender::Host, Some(self.version()))? {
            nvsp::Message::IndirectionTable { table } => self.event(Event::Table(table)),
            nvsp::Message::VfAssociation { allocated, serial } => {
                self.event(Event::VirtualFunction(allocated.then_some(serial)));
            }
            // There is no other path here.
            nvsp::Message::SwitchDataPath { .. } => {}
            _ => return Err(NicError::Answer("nothing")),
        }
        Ok(())
    }

    fn event(&mut self, event: Event) {
        if self.actions.len() < ACTIONS_AT_MOST {
            self.actions.push_back(Action::Event(event));
        }
    }
}

/// Things to do that a provider can make wait.
const ACTIONS_AT_MOST: usize = 64;
