//! One channel: what the guest was shown, and what the device does for it.
//!
//! The specification's states are pairs of these two sides (see [`Channel::state`]). They are kept apart because a
//! device needs time to close, whatever the guest or the host do meanwhile.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::monitor::{Monitor, Monitors};
use super::relids::Relids;
use super::reserved::Address;
use super::{AskId, DeviceKey, OfferParams};
use crate::Guid;
use crate::message::{OpenChannel, OpenFlags, UserDefined};
use crate::pages::PageRanges;

/// How a channel is opened.
#[derive(Clone, Debug)]
pub struct Open {
    /// The guest's name for this open.
    pub open_id: u32,
    /// The pages of both rings, whole pages only: guest to host first, then host to guest.
    pub ring: Arc<PageRanges>,
    /// The guest's name for that list.
    pub ring_gpadl: u32,
    /// Page of the list where the host-to-guest ring starts. Both rings have two pages at least.
    pub downstream_page: u32,
    /// Virtual processor for signals to the guest; `u32::MAX` for none, 0 before Win8.
    pub target_vp: u32,
    /// Event flag for signals to the guest, 1 to 2047: the channel id unless the guest chose another.
    pub event_flag: u16,
    /// Connection on which the guest will signal: the offered one unless the guest chose another for this open.
    pub connection_id: u32,
    /// Where the guest may signal instead, in the monitor pages.
    pub monitor: Option<Monitor>,
    /// What else the guest wants, as far as it was negotiated.
    pub flags: OpenFlags,
    /// Opened by OPEN_RESERVED_CHANNEL: the guest polls and wants no signals, and the channel outlives UNLOAD.
    pub reserved: bool,
    /// Meaning by device protocol.
    pub user_data: UserDefined,
}

/// One channel as `ls` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Channel id, if it has one at present.
    pub relid: Option<u32>,
    /// Our name for it.
    pub device: DeviceKey,
    /// 0 for the primary channel.
    pub subchannel_index: u16,
    /// Its state.
    pub state: ChannelState,
    /// Class of the device.
    pub class: Guid,
    /// The device.
    pub instance: Guid,
    /// The primary channel's device, of a sub-channel that names it.
    pub primary: Option<DeviceKey>,
    /// Its place in the monitor pages, if it has one at present.
    pub monitor: Option<Monitor>,
}

/// State of a channel, as the specification names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// Not shown to this guest, or given back by it.
    ClientReleased,
    /// Shown to the guest and not open.
    Closed,
    /// Policy or the device decides about an open.
    Opening,
    /// Open.
    Open,
    /// Open by OPEN_RESERVED_CHANNEL, perhaps beyond the connection.
    OpenReserved,
    /// The device is closing.
    Closing,
    /// The device is closing, and the guest has asked for the next open already.
    ClosingReopen,
    /// Opening for a guest that is gone meanwhile.
    OpeningClientRelease,
    /// Closing for a guest that is gone meanwhile.
    ClosingClientRelease,
    /// Rescinded and not yet released by the guest.
    Revoked,
    /// Rescinded and not yet released by the guest, and the device is back.
    Reoffered,
}

impl core::fmt::Display for ChannelState {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str(match self {
            Self::ClientReleased => "not offered",
            Self::Closed => "closed",
            Self::Opening => "opening",
            Self::Open => "open",
            Self::OpenReserved => "open for a crash dump",
            Self::Closing => "closing",
            Self::ClosingReopen => "closing to be opened again",
            Self::OpeningClientRelease => "opening for nobody",
            Self::ClosingClientRelease => "closing for nobody",
            Self::Revoked => "revoked",
            Self::Reoffered => "revoked and back",
        })
    }
}

/// The guest's side of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The guest does not know it. It keeps its id until the device is done.
    Hidden,
    /// Policy decides whether the guest gets to know it.
    Proposed(AskId),
    /// The guest was sent the offer.
    Offered,
    /// The host took it back. RESCIND follows when the device is done.
    Rescinding,
    /// RESCIND was sent; the guest must release the id.
    Revoked,
    /// The guest has released the id and the device is back: to be offered again when the last use has ended.
    Returning,
    /// The guest has unloaded and left the channel open-reserved.
    Unloaded,
}

/// An open as the guest asked for it.
#[derive(Clone, Debug)]
pub(super) struct OpenRequested {
    pub(super) message: OpenChannel,
    /// Where the answer goes, of OPEN_RESERVED_CHANNEL.
    pub(super) reserved: Option<Address>,
}

impl OpenRequested {
    /// The name of the message.
    pub(super) fn name(&self) -> &'static str {
        if self.reserved.is_some() { "OPEN_RESERVED_CHANNEL" } else { "OPENCHANNEL" }
    }
}

/// The device's side of a channel.
#[derive(Debug)]
pub(super) enum Serving {
    /// It does nothing.
    Idle,
    /// Policy decides about an open.
    Asked { asked: AskId, request: Box<OpenRequested> },
    /// It was told to open.
    Opening(Box<OpenRequested>),
    /// It serves the rings.
    Open(Box<OpenRequested>),
    /// It was told to close.
    Closing { ring_gpadl: u32, reopen: Option<Box<OpenRequested>> },
}

impl Serving {
    /// Whether the device was told to open and has not said that it is closed.
    pub(super) fn is_with_device(&self) -> bool {
        match self {
            Self::Idle | Self::Asked { .. } => false,
            Self::Opening(_) | Self::Open(_) | Self::Closing { .. } => true,
        }
    }
}

/// One offered device's channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) offer: OfferParams,
    pub(super) relid: Option<u32>,
    /// Monitor id; only together with a channel id.
    pub(super) monitor: Option<u8>,
    pub(super) shown: Shown,
    /// The host took the device back. Not while it is [`Shown::Offered`], [`Shown::Proposed`] or [`Shown::Returning`].
    pub(super) withdrawn: bool,
    pub(super) serving: Serving,
    /// Who is told when a reserved channel has closed.
    pub(super) closing_for: Option<Address>,
    /// Page lists that the device may use.
    pub(super) lists_with_device: usize,
}

impl Channel {
    pub(super) fn new(offer: OfferParams) -> Self {
        Self {
            offer,
            relid: None,
            monitor: None,
            shown: Shown::Hidden,
            withdrawn: false,
            serving: Serving::Idle,
            closing_for: None,
            lists_with_device: 0,
        }
    }

    /// Whether the device uses nothing of the guest's and was not asked to.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.serving, Serving::Idle) && self.lists_with_device == 0
    }

    /// Whether another channel may name this one as its primary.
    pub(super) fn may_have_subchannels(&self) -> bool {
        !self.withdrawn && self.offer.primary.is_none()
    }

    /// The page list of the rings, from the moment of the request until the device has closed.
    pub(super) fn ring_gpadl(&self) -> Option<u32> {
        match &self.serving {
            Serving::Idle => None,
            Serving::Asked { request, .. } | Serving::Opening(request) | Serving::Open(request) => {
                Some(request.message.ring_gpadl.get())
            }
            Serving::Closing { ring_gpadl, .. } => Some(*ring_gpadl),
        }
    }

    /// Whether the guest may do nothing with the channel but close it by CLOSE_RESERVED_CHANNEL.
    pub(super) fn is_reserved(&self) -> bool {
        match &self.serving {
            Serving::Asked { request, .. } | Serving::Opening(request) | Serving::Open(request) => {
                self.shown == Shown::Offered && request.reserved.is_some()
            }
            Serving::Idle | Serving::Closing { .. } => false,
        }
    }

    pub(super) fn state(&self) -> ChannelState {
        match (self.shown, &self.serving) {
            (Shown::Rescinding | Shown::Revoked, _) if self.withdrawn => ChannelState::Revoked,
            (Shown::Rescinding | Shown::Revoked, _) => ChannelState::Reoffered,
            (Shown::Offered, Serving::Idle) => ChannelState::Closed,
            (Shown::Offered, Serving::Asked { .. } | Serving::Opening(_)) => ChannelState::Opening,
            (Shown::Offered, Serving::Open(open)) if open.reserved.is_none() => ChannelState::Open,
            (Shown::Offered, Serving::Open(_)) | (Shown::Unloaded, _) => ChannelState::OpenReserved,
            (Shown::Offered, Serving::Closing { reopen: None, .. }) => ChannelState::Closing,
            (Shown::Offered, Serving::Closing { reopen: Some(_), .. }) => ChannelState::ClosingReopen,
            (
                Shown::Hidden | Shown::Proposed(_) | Shown::Returning,
                Serving::Idle | Serving::Asked { .. },
            ) => ChannelState::ClientReleased,
            (Shown::Hidden | Shown::Proposed(_) | Shown::Returning, Serving::Opening(_)) => {
                ChannelState::OpeningClientRelease
            }
            (
                Shown::Hidden | Shown::Proposed(_) | Shown::Returning,
                Serving::Open(_) | Serving::Closing { .. },
            ) => ChannelState::ClosingClientRelease,
        }
    }

    pub(super) fn info(&self, device: DeviceKey) -> ChannelInfo {
        ChannelInfo {
            relid: self.relid,
            device,
            subchannel_index: self.offer.subchannel_index,
            state: self.state(),
            class: self.offer.class,
            instance: self.offer.instance,
            primary: self.offer.primary,
            monitor: self.monitor(),
        }
    }

    pub(super) fn monitor(&self) -> Option<Monitor> {
        let (id, latency) = (self.monitor?, self.offer.monitor_latency?);
        Some(Monitor { id, latency })
    }
}

/// All channels, by device and by id.
#[derive(Debug, Default)]
pub(super) struct Channels {
    /// In boxes: a map moves what stands beside an entry that comes or goes.
    pub(super) by_device: BTreeMap<DeviceKey, Box<Channel>>,
    pub(super) relids: Relids,
    pub(super) monitors: Monitors,
    /// Sub-channels by primary.
    pub(super) subchannels: BTreeSet<(DeviceKey, DeviceKey)>,
    /// Devices that the guest may see and for which no id is free.
    pub(super) waiting: BTreeSet<DeviceKey>,
    /// Channels whose device was told to open and has not closed, without those that are kept.
    pub(super) served: usize,
    /// Channels that are [`Shown::Unloaded`].
    pub(super) kept: BTreeSet<DeviceKey>,
}

impl Channels {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&DeviceKey, &Channel)> {
        self.by_device.iter().map(|(device, channel)| (device, &**channel))
    }

    pub(super) fn get_mut(&mut self, device: DeviceKey) -> Option<&mut Channel> {
        self.by_device.get_mut(&device).map(|channel| &mut **channel)
    }

    pub(super) fn get(&self, device: DeviceKey) -> Option<&Channel> {
        self.by_device.get(&device).map(|channel| &**channel)
    }

    /// The device that has this channel id, whether the guest knows it or not.
    pub(super) fn owner(&self, relid: u32) -> Option<DeviceKey> {
        self.relids.owner(relid)
    }

    pub(super) fn insert(&mut self, device: DeviceKey, offer: OfferParams) {
        self.by_device.insert(device, Box::new(Channel::new(offer)));
        self.note_primary(device, offer.primary, true);
    }

    pub(super) fn remove(&mut self, device: DeviceKey) {
        if let Some(channel) = self.by_device.remove(&device) {
            self.note_primary(device, channel.offer.primary, false);
        }
    }

    /// A device that was withdrawn is back with another offer.
    pub(super) fn offer_again(&mut self, device: DeviceKey, offer: OfferParams) {
        let Some(channel) = self.by_device.get_mut(&device) else { return };
        channel.withdrawn = false;
        let before = core::mem::replace(&mut channel.offer, offer);
        self.note_primary(device, before.primary, false);
        self.note_primary(device, offer.primary, true);
    }

    fn note_primary(&mut self, device: DeviceKey, primary: Option<DeviceKey>, offered: bool) {
        match primary {
            Some(primary) if offered => self.subchannels.insert((primary, device)),
            Some(primary) => self.subchannels.remove(&(primary, device)),
            None => false,
        };
    }

    /// The sub-channels that name this device as their primary, rescinded ones included.
    pub(super) fn subchannels(&self, primary: DeviceKey) -> Vec<DeviceKey> {
        let all = (primary, DeviceKey(0))..=(primary, DeviceKey(u64::MAX));
        self.subchannels.range(all).map(|(_, device)| *device).collect()
    }

    pub(super) fn is_hidden(&self, device: DeviceKey) -> bool {
        self.get(device).is_some_and(|channel| channel.shown == Shown::Hidden)
    }

    /// Changes what the device does and returns what it did before.
    pub(super) fn set_serving(&mut self, device: DeviceKey, serving: Serving) -> Serving {
        let Some(channel) = self.by_device.get_mut(&device) else { return Serving::Idle };
        self.served += usize::from(serving.is_with_device());
        let before = core::mem::replace(&mut channel.serving, serving);
        self.served -= usize::from(before.is_with_device());
        before
    }

    pub(super) fn served(&self) -> usize {
        self.served
    }

    /// Keeps an open channel beyond its connection.
    pub(super) fn keep(&mut self, device: DeviceKey) {
        if let Some(channel) = self.by_device.get_mut(&device)
            && self.kept.insert(device)
        {
            channel.shown = Shown::Unloaded;
            self.served -= 1;
        }
    }

    /// Lets a kept channel end.
    pub(super) fn unkeep(&mut self, device: DeviceKey) {
        if let Some(channel) = self.by_device.get_mut(&device)
            && self.kept.remove(&device)
        {
            channel.shown = Shown::Hidden;
            self.served += 1;
        }
    }

    pub(super) fn any_kept(&self) -> Option<DeviceKey> {
        self.kept.first().copied()
    }

    pub(super) fn relids_in_use(&self) -> usize {
        self.relids.in_use()
    }

    /// The id that the channel has, or a new one unless `limit` are in use.
    pub(super) fn assign_relid(&mut self, device: DeviceKey, limit: usize) -> Option<u32> {
        let channel = self.by_device.get_mut(&device)?;
        if channel.relid.is_none() && self.relids.in_use() < limit {
            channel.relid = self.relids.allocate(device);
        }
        channel.relid
    }

    /// The monitor id that the channel has or, if its offer asks for one and the guest has pages, a new one.
    pub(super) fn assign_monitor(&mut self, device: DeviceKey, guest_has_pages: bool) -> Option<u8> {
        let channel = self.by_device.get_mut(&device)?;
        if channel.offer.monitor_latency.is_none() || !guest_has_pages {
            if let Some(monitor) = channel.monitor.take() {
                self.monitors.free(monitor);
            }
        } else if channel.monitor.is_none() {
            channel.monitor = self.monitors.allocate();
        }
        channel.monitor
    }

    /// Frees the channel's id and its monitor. Whether there was an id to free.
    pub(super) fn free_relid(&mut self, device: DeviceKey) -> bool {
        let Some(channel) = self.by_device.get_mut(&device) else { return false };
        if let Some(monitor) = channel.monitor.take() {
            self.monitors.free(monitor);
        }
        let Some(relid) = channel.relid.take() else { return false };
        self.relids.free(relid);
        true
    }

    /// Lets ids begin anew; none may be in use.
    pub(super) fn forget_relids(&mut self) {
        self.relids.clear();
    }

    pub(super) fn wait(&mut self, device: DeviceKey) {
        self.waiting.insert(device);
    }

    pub(super) fn next_waiting(&mut self) -> Option<DeviceKey> {
        self.waiting.pop_first()
    }

    pub(super) fn stop_waiting(&mut self, device: DeviceKey) {
        self.waiting.remove(&device);
    }

    pub(super) fn stop_all_waiting(&mut self) {
        self.waiting.clear();
    }
}
