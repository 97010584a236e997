//! One guest's conversation with a controller, without any I/O.
//!
//! Packet payloads go in, decisions come out: [`Vstor::handle`] answers what it can answer alone, and hands commands
//! and resets to its caller, which answers them later by [`Vstor::completion`]. Nothing a guest sends ends the
//! conversation but a packet that cannot be answered at all (`docs/src/protocol/storage.md`, "Conversation").

use vmbus_core::Status;
use vmbus_core::storage::scsi::{Failure, Sense};
use vmbus_core::storage::{
    Address, Notice, Outcome, Packet, PacketError, Properties, PropertyFlags, Request, ScsiStatus, Srb,
    Version,
};
use zerocopy::little_endian::{U16, U32};

use super::saved::SavedSession;

/// What the controller offers to every guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Newest version that is accepted.
    pub newest: Version,
    /// Oldest version that is accepted.
    pub oldest: Version,
    /// Sub-channels that a guest may ask for, where the version has them.
    pub max_sub_channels: u16,
    /// Longest transfer of one command in bytes.
    pub max_transfer: u32,
}

impl Default for Limits {
    /// Every version, 15 sub-channels, transfers of up to 1 MiB.
    fn default() -> Self {
        Self { newest: Version::V6_2, oldest: Version::V0_1, max_sub_channels: 15, max_transfer: 1 << 20 }
    }
}

/// The state of a conversation: what may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// BEGIN_INITIALIZATION.
    Begin,
    /// A version that both know.
    QueryVersion,
    /// QUERY_PROPERTIES.
    QueryProperties(Version),
    /// CREATE_SUB_CHANNELS, END_INITIALIZATION.
    EndInitialization(Version),
    /// Commands.
    Ready(Version),
}

/// A packet payload to send to the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    bytes: [u8; Packet::MAX_SIZE],
    length: usize,
}

/// What to do with a packet of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Complete it with this.
    Reply(Reply),
    /// Run the command and complete it with [`Vstor::completion`].
    Execute(Srb),
    /// Reset what the scope names, then complete it with the reply.
    Reset(ResetScope, Reply),
    /// Offer this many sub-channels, indices 1 and up; then complete it with the reply.
    CreateSubChannels(u16, Reply),
}

/// What a reset concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetScope {
    /// One unit.
    Lun(Address),
    /// Every unit of the controller: a reset of the bus or of the adapter.
    Controller,
}

/// A packet that cannot be answered. The guest's fault; its channel must close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VstorFault {
    /// Shorter than a header.
    #[error("the guest sent a storage packet of {len} bytes")]
    TooShort {
        /// Its length in bytes.
        len: usize,
    },
}

/// The host's end of one conversation. Its primary channel and all sub-channels share it.
#[derive(Clone, Debug)]
pub struct Vstor {
    limits: Limits,
    state: State,
    sub_channels: u16,
}

impl Vstor {
    /// A conversation that has not begun.
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: State::Begin, sub_channels: 0 }
    }

    /// What is to be remembered of the conversation when it is saved.
    pub(super) fn save(&self) -> SavedSession {
        SavedSession::new(self.state, self.sub_channels, self.limits.max_transfer)
    }

    /// The conversation that was saved, where these limits allow it. Why not, otherwise: then the guest begins anew.
    pub(super) fn restore(limits: Limits, saved: &SavedSession) -> Result<Self, &'static str> {
        let (state, sub_channels) = saved.conversation().ok_or("the saved conversation is none")?;
        let vstor = Self { limits, state, sub_channels };
        if vstor.version().is_some_and(|version| !(limits.oldest..=limits.newest).contains(&version)) {
            return Err("the version agreed on is not spoken any more");
        }
        if sub_channels > limits.max_sub_channels {
            return Err("the guest has more sub-channels than it may");
        }
        if saved.max_transfer > limits.max_transfer {
            return Err("the guest was told of longer transfers than it may make");
        }
        Ok(vstor)
    }

    /// Longest transfer of one command in bytes, as guests were told.
    #[inline]
    pub fn max_transfer(&self) -> u32 {
        self.limits.max_transfer
    }

    /// What may come next.
    pub fn state(&self) -> State {
        self.state
    }

    /// The version agreed on, if the conversation has come so far.
    pub fn version(&self) -> Option<Version> {
        match self.state {
            State::Begin | State::QueryVersion => None,
            State::QueryProperties(version) | State::EndInitialization(version) | State::Ready(version) => {
                Some(version)
            }
        }
    }

    /// Decides on a packet that came over the primary channel. `payload` is a private copy.
    ///
    /// Every packet that can be answered is, also a malformed one: a guest that waits for an answer waits for ever.
    #[inline]
    pub fn handle(&mut self, payload: &[u8]) -> Result<Step, VstorFault> {
        let Ok(packet) = Packet::parse(payload) else {
            return Err(VstorFault::TooShort { len: payload.len() });
        };
        match (self.state, packet.request()) {
            (State::Ready(_), Ok(Request::ExecuteSrb(srb))) => Ok(Step::Execute(srb)),
            (_, request) => Ok(self.converse(request, payload.len())),
        }
    }

    /// Decides on a packet that came over a sub-channel: commands alone, once the primary channel is ready for them.
    pub fn handle_on_sub_channel(&self, payload: &[u8]) -> Result<Step, VstorFault> {
        let Ok(packet) = Packet::parse(payload) else {
            return Err(VstorFault::TooShort { len: payload.len() });
        };
        match (self.state, packet.request()) {
            (State::Ready(_), Ok(Request::ExecuteSrb(srb))) => Ok(Step::Execute(srb)),
            (_, Err(error)) => Ok(self.status(malformed(&error), payload.len())),
            (_, Ok(_)) => Ok(self.status(Status::INVALID_DEVICE_STATE, payload.len())),
        }
    }

    /// The completion of a command that [`Vstor::handle`] or [`Vstor::handle_on_sub_channel`] handed out.
    #[inline]
    pub fn completion(&self, request: &Srb, outcome: &Outcome) -> Reply {
        self.reply(&Packet::srb_completion(&request.answer(outcome)), Packet::MAX_SIZE)
    }

    /// The completion of a request that was given up: nobody knows whether it was done.
    ///
    /// Guests look at the SCSI request block alone, so it is that of an aborted command whatever the request was.
    pub fn abandoned(&self) -> Reply {
        let aborted =
            Outcome { scsi_status: ScsiStatus::CHECK_CONDITION, ..Failure::AbortedByPreemption.outcome() };
        let version = self.version().unwrap_or(self.limits.newest);
        let request =
            Srb { length: U16::new(version.srb_length()), sense_length: Sense::FIXED_SIZE, ..Srb::default() };
        self.completion(&request, &aborted)
    }

    /// A notice to send unasked, with transaction id 0 and no answer wanted; `None` while the guest could not
    /// understand it.
    pub fn notice(&self, notice: Notice) -> Option<Reply> {
        match self.state {
            State::Ready(version) if version.has_notices() => {
                Some(self.reply(&notice.to_packet(), Packet::MAX_SIZE))
            }
            State::Begin
            | State::QueryVersion
            | State::QueryProperties(_)
            | State::EndInitialization(_)
            | State::Ready(_) => None,
        }
    }

    /// Everything but commands in the state for commands.
    #[cold]
    fn converse(&mut self, request: Result<Request, PacketError>, asked: usize) -> Step {
        match request {
            Ok(request) => self.converse_about(request, asked),
            Err(error) => self.status(malformed(&error), asked),
        }
    }

    fn converse_about(&mut self, request: Request, asked: usize) -> Step {
        let state = self.state;
        match (request, state) {
            (Request::BeginInitialization, State::Begin) => {
                self.state = State::QueryVersion;
                self.status(Status::SUCCESS, asked)
            }
            (Request::QueryProtocolVersion { version: word, .. }, State::QueryVersion) => {
                let known = Version::from_word(word)
                    .filter(|version| (self.limits.oldest..=self.limits.newest).contains(version));
                let status = match known {
                    Some(version) => {
                        self.state = State::QueryProperties(version);
                        Status::SUCCESS
                    }
                    None => Status::REVISION_MISMATCH,
                };
                Step::Reply(self.reply(&Packet::version_completion(status, word), asked))
            }
            (Request::QueryProperties, State::QueryProperties(version)) => {
                self.state = State::EndInitialization(version);
                Step::Reply(self.reply(&Packet::properties_completion(&self.properties(version)), asked))
            }
            (Request::EndInitialization, State::EndInitialization(version)) => {
                self.state = State::Ready(version);
                self.status(Status::SUCCESS, asked)
            }
            (
                Request::CreateSubChannels(count),
                State::EndInitialization(version) | State::Ready(version),
            ) => self.create_sub_channels(count, version, asked),
            (Request::ResetLun(address), State::Ready(_)) => {
                Step::Reset(ResetScope::Lun(address), self.success(asked))
            }
            (Request::ResetAdapter | Request::ResetBus, State::Ready(_)) => {
                Step::Reset(ResetScope::Controller, self.success(asked))
            }
            // A SCSI controller has no names of a Fibre Channel adapter.
            (Request::FibreChannelData, _) => self.status(Status::INVALID_DEVICE_REQUEST, asked),
            (Request::ExecuteSrb(srb), State::Ready(_)) => Step::Execute(srb),
            (
                Request::BeginInitialization
                | Request::QueryProtocolVersion { .. }
                | Request::QueryProperties
                | Request::EndInitialization
                | Request::CreateSubChannels(_)
                | Request::ResetLun(_)
                | Request::ResetAdapter
                | Request::ResetBus
                | Request::ExecuteSrb(_),
                State::Begin
                | State::QueryVersion
                | State::QueryProperties(_)
                | State::EndInitialization(_)
                | State::Ready(_),
            ) => self.status(Status::INVALID_DEVICE_STATE, asked),
        }
    }

    /// Sub-channels are made once; asking for none is a way to say that none are wanted.
    fn create_sub_channels(&mut self, count: u16, version: Version, asked: usize) -> Step {
        let possible = version.has_sub_channels() && self.sub_channels == 0;
        if !possible || count > self.limits.max_sub_channels {
            return self.status(Status::INVALID_PARAMETER, asked);
        }
        self.sub_channels = count;
        Step::CreateSubChannels(count, self.success(asked))
    }

    /// The sub-channels of [`Step::CreateSubChannels`] could not be offered: what to complete it with in place of
    /// `reply`. The guest may ask for fewer.
    pub fn sub_channels_refused(&mut self, reply: &Reply, status: Status) -> Reply {
        self.sub_channels = 0;
        self.reply(&Packet::completion(status), reply.length)
    }

    fn properties(&self, version: Version) -> Properties {
        let sub_channels = if version.has_sub_channels() { self.limits.max_sub_channels } else { 0 };
        let flags = match sub_channels {
            0 => PropertyFlags::empty(),
            _ => PropertyFlags::MULTI_CHANNEL,
        };
        Properties {
            max_sub_channels: U16::new(sub_channels),
            flags: U32::new(flags.bits()),
            max_transfer_bytes: U32::new(self.limits.max_transfer),
            ..Properties::default()
        }
    }

    fn status(&self, status: Status, asked: usize) -> Step {
        Step::Reply(self.reply(&Packet::completion(status), asked))
    }

    fn success(&self, asked: usize) -> Reply {
        self.reply(&Packet::completion(Status::SUCCESS), asked)
    }

    /// Once commands run, every packet has the size of the version. Before that an answer is as long as its request
    /// was: guests send 64 bytes from the first packet on and take a shorter completion for a broken host.
    #[inline]
    fn reply(&self, packet: &Packet, asked: usize) -> Reply {
        let length = match self.state {
            State::Ready(version) => version.packet_size(),
            State::Begin | State::QueryVersion | State::QueryProperties(_) | State::EndInitialization(_) => {
                asked.clamp(Packet::HEADER_SIZE, Packet::MAX_SIZE)
            }
        };
        Reply { bytes: packet.to_bytes(), length }
    }
}

/// What a guest is told about a packet that is no request.
fn malformed(error: &PacketError) -> Status {
    match error {
        PacketError::NotARequest(_) => Status::INVALID_DEVICE_REQUEST,
        PacketError::TooShort { .. } => Status::INVALID_PARAMETER,
    }
}

impl Reply {
    /// The bytes to send.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl AsRef<[u8]> for Reply {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Packet::parse(self.as_bytes()).fmt(formatter)
    }
}
