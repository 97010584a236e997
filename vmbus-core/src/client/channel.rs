//! Channels as the guest sees them: offered, rescinded, released. How they open and close is in `opening`.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use zerocopy::little_endian::U32;

use super::connection::Offers;
use super::policy::Subject;
use super::watch::For;
use super::{
    Answer, AnswerSlot, AskId, Client, ClientAction, ClientError, Connection, Failure, Fault, Question,
};
use crate::message::{
    ModifyChannel, ModifyChannelResponse, OfferChannel, OfferFlags, OpenChannel, RelidReleased, UserDefined,
};
use crate::{FeatureFlags, Guid, Status, Version};

/// Channel ids are 1 to 2047.
pub(super) const LAST_RELID: u32 = 2047;
pub(super) const LAST_MONITOR: u8 = 127;
pub(super) const CONNECTION_ID_BITS: u32 = 0x00ff_ffff;

/// One offered channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfferInfo {
    /// Channel id, 1 to 2047.
    pub relid: u32,
    /// Class of the device.
    pub class: Guid,
    /// The device; the same for all its sub-channels.
    pub instance: Guid,
    /// Flags. Those of confidential channels only where that is negotiated.
    pub flags: OfferFlags,
    /// MMIO window that the device needs, in MiB.
    pub mmio_megabytes: u16,
    /// MMIO window that it likes to have beyond, in MiB.
    pub mmio_megabytes_optional: u16,
    /// Meaning by device protocol.
    pub user_defined: UserDefined,
    /// 0 for the primary channel.
    pub subchannel_index: u16,
    /// Monitor id, 0 to 127.
    pub monitor: Option<u8>,
    /// Whether the host is signalled by [`Self::connection_id`] alone, without the interrupt page.
    pub is_dedicated: bool,
    /// Connection id for signals to the host; `None` in V1, where all channels share connection 2.
    pub connection_id: Option<u32>,
}

/// One channel as `ls` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelInfo {
    /// The offer.
    pub offer: OfferInfo,
    /// Its state.
    pub state: ChannelState,
}

/// State of a channel at the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// Our policy decides whether it may be used.
    Proposed,
    /// Offered and not open.
    Closed,
    /// Our policy or the host decides about an open.
    Opening,
    /// Open.
    Open,
    /// Open by OPEN_RESERVED_CHANNEL, perhaps beyond the connection.
    OpenReserved,
    /// The host closes a reserved channel.
    ClosingReserved,
    /// The host took it back; to be released.
    Rescinded,
}

impl core::fmt::Display for ChannelState {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str(match self {
            Self::Proposed => "waiting for our policy",
            Self::Closed => "closed",
            Self::Opening => "opening",
            Self::Open => "open",
            Self::OpenReserved => "open for a crash dump",
            Self::ClosingReserved => "closing",
            Self::Rescinded => "rescinded",
        })
    }
}

#[derive(Debug)]
pub(super) enum State {
    Proposed(AskId),
    Closed,
    /// Our policy decides about an open.
    Asked {
        asked: AskId,
        message: Box<OpenChannel>,
        /// Where a reserved channel's answers go.
        reserved: Option<AnswerSlot>,
    },
    /// OPENCHANNEL was posted. `cancelled`: to be closed as soon as it is open.
    Opening {
        open_id: u32,
        ring_gpadl: u32,
        cancelled: bool,
        reserved: Option<AnswerSlot>,
    },
    Open {
        ring_gpadl: u32,
    },
    OpenReserved {
        ring_gpadl: u32,
        answers: AnswerSlot,
    },
    /// CLOSE_RESERVED_CHANNEL was posted.
    ClosingReserved {
        ring_gpadl: u32,
    },
    Rescinded,
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) offer: OfferInfo,
    pub(super) state: State,
    /// A response to MODIFYCHANNEL is to come.
    pub(super) modifying: bool,
}

impl Channel {
    pub(super) fn info(&self) -> ChannelInfo {
        ChannelInfo { offer: self.offer, state: self.state() }
    }

    pub(super) fn state(&self) -> ChannelState {
        match self.state {
            State::Proposed(_) => ChannelState::Proposed,
            State::Closed => ChannelState::Closed,
            State::Asked { .. } | State::Opening { .. } => ChannelState::Opening,
            State::Open { .. } => ChannelState::Open,
            State::OpenReserved { .. } => ChannelState::OpenReserved,
            State::ClosingReserved { .. } => ChannelState::ClosingReserved,
            State::Rescinded => ChannelState::Rescinded,
        }
    }

    /// Whether the host takes no page lists for the channel and gives none back.
    pub(super) fn is_reserved(&self) -> bool {
        match &self.state {
            State::Asked { reserved, .. } | State::Opening { reserved, .. } => reserved.is_some(),
            State::OpenReserved { .. } => true,
            State::Proposed(_)
            | State::Closed
            | State::Open { .. }
            | State::ClosingReserved { .. }
            | State::Rescinded => false,
        }
    }

    /// The page list of the rings, while the host may use them.
    pub(super) fn ring_gpadl(&self) -> Option<u32> {
        match &self.state {
            State::Proposed(_) | State::Closed | State::Rescinded => None,
            State::Asked { message, .. } => Some(message.ring_gpadl.get()),
            State::Opening { ring_gpadl, .. }
            | State::Open { ring_gpadl }
            | State::OpenReserved { ring_gpadl, .. }
            | State::ClosingReserved { ring_gpadl } => Some(*ring_gpadl),
        }
    }
}

/// All channels of a connection.
#[derive(Debug, Default)]
pub(super) struct Channels {
    /// In boxes: a map moves what stands beside an entry that comes or goes.
    pub(super) by_relid: BTreeMap<u32, Box<Channel>>,
    pub(super) last_open_id: u32,
    /// The connection that was unloaded and has left reserved channels open.
    pub(super) left_behind: Option<Connection>,
}

impl Channels {
    pub(super) fn len(&self) -> usize {
        self.by_relid.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Channel> {
        self.by_relid.values().map(|channel| &**channel)
    }

    pub(super) fn get(&self, relid: u32) -> Result<&Channel, ClientError> {
        self.by_relid.get(&relid).map(|channel| &**channel).ok_or(ClientError::NoChannel(relid))
    }

    pub(super) fn remove(&mut self, relid: u32) {
        self.by_relid.remove(&relid);
    }

    /// Channels that are open-reserved or closing so.
    pub(super) fn reserved(&self) -> impl Iterator<Item = u32> {
        let all = self.by_relid.iter();
        all.filter(|(_, channel)| {
            matches!(channel.state, State::OpenReserved { .. } | State::ClosingReserved { .. })
        })
        .map(|(relid, _)| *relid)
    }

    pub(super) fn get_mut(&mut self, relid: u32) -> Result<&mut Channel, ClientError> {
        self.by_relid.get_mut(&relid).map(|channel| &mut **channel).ok_or(ClientError::NoChannel(relid))
    }
}

impl Client {
    pub(super) fn offered(&mut self, offer: &OfferChannel) {
        let relid = offer.relid.get();
        let Some(connection) = self.connection() else { return };
        let initial = match self.expects_offers() {
            Some(Offers::Requested) => true,
            Some(Offers::Deciding | Offers::Delivered) => false,
            Some(Offers::NotRequested) | None => {
                return self.fault(Fault::Unexpected { message: "OFFERCHANNEL" });
            }
        };
        let info = match offer_info(offer, &connection) {
            Ok(info) => info,
            Err(what) => return self.fault(Fault::BadOffer { relid, what }),
        };
        if self.channels.by_relid.contains_key(&relid) || self.holds_release_of(relid) {
            return self.fault(Fault::BadOffer { relid, what: "an id that is in use" });
        }
        let asked = self.ask(Subject::Offer { relid, initial }, Question::Offer(info));
        let channel = Channel { offer: info, state: State::Proposed(asked), modifying: false };
        self.channels.by_relid.insert(relid, Box::new(channel));
        self.allow_if_nobody_decides(asked);
    }

    pub(super) fn offer_decided(&mut self, relid: u32, answer: Answer) {
        let Ok(channel) = self.channels.get_mut(relid) else { return };
        channel.state = State::Closed;
        let offer = channel.offer;
        match answer {
            Answer::Allow => self.act(ClientAction::Offered(offer)),
            Answer::Deny(_) => self.give_back(relid),
        }
    }

    /// Moves the host's signals for an open channel to another virtual processor. Ends in
    /// [`ClientAction::Modified`].
    pub fn modify(&mut self, relid: u32, vp: u32) -> Result<(), ClientError> {
        self.watch("modify()", For::Channel(relid));
        let message = ModifyChannel { relid: U32::new(relid), target_vp: U32::new(vp) };
        self.negotiated(&message.into())?;
        let answered = self.connection().is_some_and(|connection| connection.version >= Version::Iron);
        let channel = self.channels.get_mut(relid)?;
        if channel.modifying || !matches!(channel.state, State::Open { .. }) {
            return Err(ClientError::ChannelState { relid, state: channel.state() });
        }
        channel.modifying = answered;
        self.post(message);
        if !answered {
            self.act(ClientAction::Modified { relid, result: Ok(()) });
        }
        Ok(())
    }

    pub(super) fn modified(&mut self, response: &ModifyChannelResponse) {
        let (relid, status) = (response.relid.get(), Status(response.status.get()));
        match self.channels.by_relid.get_mut(&relid) {
            Some(channel) if channel.modifying => {
                channel.modifying = false;
                let result = if status.is_success() { Ok(()) } else { Err(Failure::Refused(status)) };
                self.act(ClientAction::Modified { relid, result });
            }
            Some(_) | None => {
                self.fault(Fault::UnexpectedForChannel { message: "MODIFYCHANNEL_RESPONSE", relid });
            }
        }
    }

    pub(super) fn rescinded(&mut self, relid: u32) {
        // Unknown: we have released it meanwhile, and the two messages crossed.
        let Ok(channel) = self.channels.get_mut(relid) else { return };
        if let State::Rescinded = channel.state {
            return;
        }
        let before = core::mem::replace(&mut channel.state, State::Rescinded);
        let modifying = core::mem::take(&mut channel.modifying);
        self.fail_open(relid, &before, Failure::Rescinded);
        if modifying {
            self.act(ClientAction::Modified { relid, result: Err(Failure::Rescinded) });
        }
        self.fail_gpadls(relid, Failure::Rescinded);
        if let State::Proposed(asked) = before {
            // Nobody was told of it.
            self.channels.by_relid.remove(&relid);
            self.post(RelidReleased { relid: U32::new(relid) });
            return self.withdraw_question(asked);
        }
        self.act(ClientAction::Rescinded { relid });
    }

    /// Gives a channel's id back to the host, which may use it for another offer then. The channel must be rescinded,
    /// or closed and without page lists; nothing may use it any more.
    pub fn release(&mut self, relid: u32) -> Result<(), ClientError> {
        self.watch("release()", For::Channel(relid));
        self.talking()?;
        let channel = self.channels.get(relid)?;
        match channel.state {
            State::Rescinded => {}
            State::Closed if !channel.modifying => {
                if self.gpadls.are_left(relid) {
                    return Err(ClientError::GpadlsLeft(relid));
                }
            }
            State::Closed
            | State::Proposed(_)
            | State::Asked { .. }
            | State::Opening { .. }
            | State::Open { .. }
            | State::OpenReserved { .. }
            | State::ClosingReserved { .. } => {
                return Err(ClientError::ChannelState { relid, state: channel.state() });
            }
        }
        self.give_back(relid);
        Ok(())
    }

    fn give_back(&mut self, relid: u32) {
        self.channels.by_relid.remove(&relid);
        self.post(RelidReleased { relid: U32::new(relid) });
    }

    /// Reports everything that is under way on any channel as failed and forgets the channels, but for those that stay open.
    pub(super) fn end_channels(&mut self, staying: &[u32]) {
        let (stay, end) = core::mem::take(&mut self.channels.by_relid)
            .into_iter()
            .partition(|(relid, _)| staying.contains(relid));
        self.channels.by_relid = stay;
        let end: BTreeMap<u32, Box<Channel>> = end;
        for (relid, channel) in end {
            self.fail_open(relid, &channel.state, Failure::Disconnected);
            if channel.modifying {
                self.act(ClientAction::Modified { relid, result: Err(Failure::Disconnected) });
            }
        }
    }
}

/// Checks an offer.
fn offer_info(offer: &OfferChannel, connection: &Connection) -> Result<OfferInfo, &'static str> {
    let version = connection.version;
    if !(1..=LAST_RELID).contains(&offer.relid.get()) {
        return Err("an id that cannot be");
    }
    let monitor = (offer.monitor_allocated & 1 != 0).then_some(offer.monitor_id);
    if monitor.is_some_and(|monitor| monitor > LAST_MONITOR) {
        return Err("a monitor that cannot be");
    }
    let connection_id = (version >= Version::Win7).then_some(offer.connection_id.get());
    if connection_id.is_some_and(|id| id > CONNECTION_ID_BITS) {
        return Err("a connection id of more than 24 bits");
    }
    let mut flags = OfferFlags::from_bits_retain(offer.flags.get());
    // Old hosts mean something else by these bits.
    if !connection.features.contains(FeatureFlags::CONFIDENTIAL_CHANNELS) {
        flags -= OfferFlags::CONFIDENTIAL_RING_BUFFER | OfferFlags::CONFIDENTIAL_EXTERNAL_MEMORY;
    }
    Ok(OfferInfo {
        relid: offer.relid.get(),
        class: offer.interface_type,
        instance: offer.interface_instance,
        flags,
        mmio_megabytes: offer.mmio_megabytes.get(),
        mmio_megabytes_optional: offer.mmio_megabytes_optional.get(),
        user_defined: offer.user_defined,
        subchannel_index: offer.subchannel_index.get(),
        monitor,
        is_dedicated: version >= Version::Win7 && offer.is_dedicated.get() & 1 != 0,
        connection_id,
    })
}
