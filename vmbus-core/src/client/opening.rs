//! Opening a channel and closing it: our policy is asked first, then the host.

use alloc::boxed::Box;

use zerocopy::little_endian::{U16, U32};

use super::channel::State;
use super::policy::Subject;
use super::watch::For;
use super::{Answer, AnswerSlot, Client, ClientAction, ClientError, Failure, Fault, Question};
use crate::message::{CloseChannel, OpenChannel, OpenChannelResult, OpenFlags, UserDefined};
use crate::{FeatureFlags, Status};

/// How to open a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenRequest {
    /// Page list of both rings.
    pub ring_gpadl: u32,
    /// Page of the list where the host-to-guest ring starts.
    pub downstream_page: u32,
    /// Virtual processor for the host's signals; `u32::MAX` for none.
    pub target_vp: u32,
    /// Meaning by device protocol.
    pub user_data: UserDefined,
    /// Other signals than those of the offer, where that is negotiated.
    pub signals: Option<SignalParameters>,
    /// What else is wanted, where that is negotiated.
    pub flags: OpenFlags,
}

/// Signals that the guest chooses for one open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalParameters {
    /// Connection on which the guest will signal, 24 bits, not 0.
    pub connection_id: u32,
    /// Event flag that the host is to set, 1 to 2047.
    pub event_flag: u16,
}

impl Client {
    /// Opens a channel on rings in a page list of it that the host has accepted. Ends in [`ClientAction::Opened`]
    /// with the number returned.
    pub fn open(&mut self, relid: u32, request: OpenRequest) -> Result<u32, ClientError> {
        self.watch("open()", For::Channel(relid));
        let connection = self.talking()?;
        let mut wanted = FeatureFlags::empty();
        wanted.set(FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS, request.signals.is_some());
        wanted.set(FeatureFlags::CHANNEL_INTERRUPT_REDIRECTION, !request.flags.is_empty());
        if !connection.features.contains(wanted) {
            return Err(ClientError::NotNegotiated(connection.version));
        }
        let open_id = self.channels.last_open_id.wrapping_add(1);
        let message = Box::new(OpenChannel {
            relid: U32::new(relid),
            open_id: U32::new(open_id),
            ring_gpadl: U32::new(request.ring_gpadl),
            target_vp: U32::new(request.target_vp),
            downstream_page_offset: U32::new(request.downstream_page),
            user_data: request.user_data,
            connection_id: U32::new(request.signals.map_or(0, |signals| signals.connection_id)),
            event_flag: U16::new(request.signals.map_or(0, |signals| signals.event_flag)),
            flags: U16::new(request.flags.bits()),
        });
        self.begin_open(relid, message, None)?;
        self.channels.last_open_id = open_id;
        Ok(open_id)
    }

    /// Asks our policy about an open and posts it.
    pub(super) fn begin_open(
        &mut self,
        relid: u32,
        message: Box<OpenChannel>,
        reserved: Option<AnswerSlot>,
    ) -> Result<(), ClientError> {
        let channel = self.channels.get(relid)?;
        if !matches!(channel.state, State::Closed) {
            return Err(ClientError::ChannelState { relid, state: channel.state() });
        }
        let (open_id, ring_gpadl) = (message.open_id.get(), message.ring_gpadl.get());
        if !self.gpadls.is_created(relid, ring_gpadl) {
            return Err(ClientError::NoGpadl(ring_gpadl));
        }
        if reserved.is_some()
            && let Some(gpadl) = self.gpadls.unfinished(relid)
        {
            return Err(ClientError::NoGpadl(gpadl));
        }
        let asked = self.ask(Subject::Open { relid }, Question::Open { relid, open_id });
        self.channels.get_mut(relid)?.state = State::Asked { asked, message, reserved };
        self.allow_if_nobody_decides(asked);
        Ok(())
    }

    pub(super) fn open_decided(&mut self, relid: u32, answer: Answer) {
        let Ok(channel) = self.channels.get_mut(relid) else { return };
        let State::Asked { message, reserved, .. } = &channel.state else { return };
        let (message, reserved) = (message.clone(), *reserved);
        let open_id = message.open_id.get();
        match answer {
            Answer::Allow => {
                let ring_gpadl = message.ring_gpadl.get();
                channel.state = State::Opening { open_id, ring_gpadl, cancelled: false, reserved };
                match reserved {
                    Some(answers) => self.post_open_reserved(&message, answers),
                    None => self.post(*message),
                }
            }
            Answer::Deny(status) => {
                channel.state = State::Closed;
                let result = Err(Failure::Denied(status));
                self.act(ClientAction::Opened { relid, open_id, result });
            }
        }
    }

    pub(super) fn opened(&mut self, message: &OpenChannelResult) {
        let (relid, status) = (message.relid.get(), Status(message.status.get()));
        let unexpected = Fault::UnexpectedForChannel { message: "OPENCHANNEL_RESULT", relid };
        let Ok(channel) = self.channels.get_mut(relid) else { return self.fault(unexpected) };
        let State::Opening { open_id, ring_gpadl, cancelled, reserved } = channel.state else {
            return self.fault(unexpected);
        };
        if open_id != message.open_id.get() {
            return self.fault(unexpected);
        }
        let opened = status.is_success();
        channel.state = match (opened, cancelled, reserved) {
            (true, false, None) => State::Open { ring_gpadl },
            (true, false, Some(answers)) => State::OpenReserved { ring_gpadl, answers },
            (true, true, Some(_)) => State::ClosingReserved { ring_gpadl },
            (true, true, None) | (false, _, _) => State::Closed,
        };
        if opened && cancelled {
            match reserved {
                Some(answers) => self.post_close_reserved(relid, answers),
                None => self.post(CloseChannel { relid: U32::new(relid) }),
            }
        }
        let result = match (cancelled, opened) {
            (true, _) => Err(Failure::Cancelled),
            (false, true) => Ok(()),
            (false, false) => Err(Failure::Refused(status)),
        };
        self.act(ClientAction::Opened { relid, open_id, result });
    }

    /// Closes a channel, or gives up an open that has not ended. Nothing answers: the rings are free when their page
    /// list is torn down.
    pub fn close(&mut self, relid: u32) -> Result<(), ClientError> {
        self.watch("close()", For::Channel(relid));
        self.talking()?;
        let channel = self.channels.get_mut(relid)?;
        match &mut channel.state {
            State::Proposed(_)
            | State::Closed
            | State::OpenReserved { .. }
            | State::ClosingReserved { .. }
            | State::Rescinded => {
                return Err(ClientError::ChannelState { relid, state: channel.state() });
            }
            State::Asked { asked, message, .. } => {
                let (asked, open_id) = (*asked, message.open_id.get());
                channel.state = State::Closed;
                self.withdraw_question(asked);
                self.act(ClientAction::Opened { relid, open_id, result: Err(Failure::Cancelled) });
            }
            // The host refuses a close before its result.
            State::Opening { cancelled, .. } => *cancelled = true,
            State::Open { .. } => {
                channel.state = State::Closed;
                self.post(CloseChannel { relid: U32::new(relid) });
            }
        }
        Ok(())
    }

    /// Reports the open, or the close of a reserved channel, as failed if one was under way.
    pub(super) fn fail_open(&mut self, relid: u32, state: &State, failure: Failure) {
        let open_id = match state {
            State::Asked { asked, message, .. } => {
                self.withdraw_question(*asked);
                message.open_id.get()
            }
            State::Opening { open_id, .. } => *open_id,
            State::ClosingReserved { .. } => {
                return self.act(ClientAction::ReservedClosed { relid, result: Err(failure) });
            }
            State::Proposed(_)
            | State::Closed
            | State::Open { .. }
            | State::OpenReserved { .. }
            | State::Rescinded => return,
        };
        self.act(ClientAction::Opened { relid, open_id, result: Err(failure) });
    }
}
