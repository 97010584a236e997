//! Reserved channels: opened for a crash dump or by firmware, polled, and open beyond UNLOAD
//! (`docs/src/protocol/control.md`, "Reserved channels").

use alloc::boxed::Box;
use alloc::vec::Vec;

use zerocopy::little_endian::U32;

use super::channel::{Channel, State};
use super::watch::For;
use super::{Client, ClientAction, ClientError, Connection, Failure, Fault, connection};
use crate::message::{
    CloseReservedChannel, CloseReservedResponse, Message, OpenChannel, OpenChannelResult, OpenReservedChannel,
};

/// How to open a reserved channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedOpenRequest {
    /// Page list of both rings.
    pub ring_gpadl: u32,
    /// Page of the list where the host-to-guest ring starts.
    pub downstream_page: u32,
    /// Where the host's answers for this channel are looked for.
    pub answers: AnswerSlot,
}

/// One message slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerSlot {
    /// Virtual processor.
    pub vp: u32,
    /// Synthetic interrupt source, 0 to 15.
    pub sint: u8,
}

impl Client {
    /// Opens a channel whose rings are polled, on a page list of it that the host has accepted; none of its lists may
    /// wait for the host's answer. Ends in
    /// [`ClientAction::Opened`] with open id 0. Until [`Self::close_reserved`] nothing else can be done with it; it
    /// stays open, with its page lists, when the connection is unloaded.
    pub fn open_reserved(&mut self, relid: u32, request: ReservedOpenRequest) -> Result<(), ClientError> {
        self.watch("open_reserved()", For::Channel(relid));
        let ReservedOpenRequest { ring_gpadl, downstream_page, answers } = request;
        self.negotiated(&OpenReservedChannel::default().into())?;
        let message = Box::new(OpenChannel {
            relid: U32::new(relid),
            ring_gpadl: U32::new(ring_gpadl),
            downstream_page_offset: U32::new(downstream_page),
            ..OpenChannel::default()
        });
        self.begin_open(relid, message, Some(answers))
    }

    pub(super) fn post_open_reserved(&mut self, message: &OpenChannel, answers: AnswerSlot) {
        self.post(OpenReservedChannel {
            relid: message.relid,
            target_vp: U32::new(answers.vp),
            target_sint: U32::new(answers.sint.into()),
            ring_gpadl: message.ring_gpadl,
            downstream_page_offset: message.downstream_page_offset,
        });
    }

    /// Closes a reserved channel, also one that the connection has left behind. Ends in
    /// [`ClientAction::ReservedClosed`].
    pub fn close_reserved(&mut self, relid: u32) -> Result<(), ClientError> {
        self.watch("close_reserved()", For::Channel(relid));
        if self.unloaded_connection().is_none() {
            self.talking()?;
        }
        let channel = self.channels.get_mut(relid)?;
        let State::OpenReserved { ring_gpadl, answers } = channel.state else {
            return Err(ClientError::ChannelState { relid, state: channel.state() });
        };
        channel.state = State::ClosingReserved { ring_gpadl };
        self.post_close_reserved(relid, answers);
        Ok(())
    }

    pub(super) fn post_close_reserved(&mut self, relid: u32, answers: AnswerSlot) {
        let message = Message::from(CloseReservedChannel {
            relid: U32::new(relid),
            target_vp: U32::new(answers.vp),
            target_sint: U32::new(answers.sint.into()),
        });
        match self.unloaded_connection() {
            Some(Connection { version, features, message_connection_id, .. }) => {
                let payload = message.encode(version, features);
                self.act(ClientAction::Post { connection_id: message_connection_id, payload });
            }
            None => self.post(message),
        }
    }

    /// The connection that is being unloaded, or was and has left channels open.
    fn unloaded_connection(&self) -> Option<Connection> {
        match self.connection {
            connection::State::Unloading { connection } => Some(connection),
            connection::State::Disconnected
            | connection::State::Asking { .. }
            | connection::State::Contacting { .. }
            | connection::State::Connected { .. } => self.channels.left_behind,
        }
    }

    /// A channel may turn out to be open-reserved while we unload, and stays so.
    pub(super) fn opened_while_unloading(&mut self, result: &OpenChannelResult) {
        let unloading = matches!(self.connection, connection::State::Unloading { .. });
        let channel = self.channels.get(result.relid.get());
        if unloading && channel.is_ok_and(|channel| channel.is_reserved()) {
            self.opened(result);
        }
    }

    pub(super) fn reserved_closed(&mut self, response: &CloseReservedResponse) {
        let relid = response.relid.get();
        let channel = self.channels.get_mut(relid);
        let Ok(channel @ Channel { state: State::ClosingReserved { .. }, .. }) = channel else {
            return self.fault(Fault::UnexpectedForChannel { message: "CLOSE_RESERVED_RESPONSE", relid });
        };
        channel.state = State::Closed;
        self.act(ClientAction::ReservedClosed { relid, result: Ok(()) });
        if self.channels.left_behind.is_some() {
            self.forget_left_behind(relid);
        }
    }

    /// After UNLOAD: the channels that stay open, with the connection they belong to.
    pub(super) fn leave_reserved_behind(&mut self, connection: Connection) -> Vec<u32> {
        let reserved: Vec<u32> = self.channels.reserved().collect();
        self.channels.left_behind = (!reserved.is_empty()).then_some(connection);
        reserved
    }

    /// Forgets the channels that an earlier connection has left: the host ends them for a new contact.
    pub(super) fn forget_all_left_behind(&mut self) {
        if self.channels.left_behind.is_none() {
            return;
        }
        let reserved: Vec<u32> = self.channels.reserved().collect();
        for relid in reserved {
            if let Ok(Channel { state: State::ClosingReserved { .. }, .. }) = self.channels.get(relid) {
                self.act(ClientAction::ReservedClosed { relid, result: Err(Failure::Disconnected) });
            }
            self.forget_left_behind(relid);
        }
        self.channels.left_behind = None;
    }

    fn forget_left_behind(&mut self, relid: u32) {
        self.channels.remove(relid);
        self.fail_gpadls(relid, Failure::Disconnected);
        if self.channels.reserved().next().is_none() {
            self.channels.left_behind = None;
        }
    }
}
