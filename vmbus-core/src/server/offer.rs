//! Offers: what a guest is shown, from the host's wish to the moment when the channel's id is free again.
//!
//! RESCIND is sent when nobody uses the guest's pages for this channel any more, as the guest may then use them for
//! something else without asking.

use alloc::vec::Vec;

use zerocopy::little_endian::{U16, U32, U64};

use super::channel::{Channel, Serving, Shown};
use super::connection::{Offers, Then};
use super::{Answer, DeviceKey, Fault, Quota, Server, ServerAction};
use crate::message::{AllOffersDelivered, OfferChannel, OfferFlags, RescindChannelOffer, UserDefined};
use crate::synic::ChannelConnection;
use crate::{FeatureFlags, Guid, Version};

/// No monitor is allocated.
const NO_MONITOR: u8 = 0xff;

/// What a guest is told of a device's channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfferParams {
    /// Class of the device.
    pub class: Guid,
    /// The device; the same for all its sub-channels.
    pub instance: Guid,
    /// Flags; those that the negotiated version does not know are left out on the wire.
    pub flags: OfferFlags,
    /// MMIO window that the device needs, in MiB.
    pub mmio_megabytes: u16,
    /// MMIO window that it likes to have beyond, in MiB.
    pub mmio_megabytes_optional: u16,
    /// Meaning by device protocol.
    pub user_defined: UserDefined,
    /// 0 for the primary channel. Guests before Win8 are not shown others.
    pub subchannel_index: u16,
    /// The device whose sub-channel this is. A sub-channel that names its primary is rescinded with it and before it,
    /// and when the primary closes or its connection ends: then [`ServerAction::Released`] comes unasked.
    pub primary: Option<DeviceKey>,
    /// Asks that the guest may signal through its monitor pages, with at most this delay in units of 100 ns.
    pub monitor_latency: Option<u16>,
    /// Connection id for the guest's signals, 24 bits, unique; `None` for that of [`ChannelConnection`].
    pub connection_id: Option<u32>,
    /// The worker that the default connection id names.
    pub worker: u8,
}

impl OfferParams {
    /// An ordinary device with raw packets.
    pub fn new(class: Guid, instance: Guid) -> Self {
        Self { class, instance, flags: OfferFlags::ENUMERATE_DEVICE_INTERFACE, ..Self::default() }
    }

    /// The connection id under which the guest signals this channel.
    pub(super) fn connection_id(&self, relid: u32) -> u32 {
        self.connection_id.unwrap_or(ChannelConnection { relid, worker: self.worker.into() }.id())
    }

    fn message(
        &self,
        relid: u32,
        monitor: Option<u8>,
        version: Version,
        features: FeatureFlags,
    ) -> OfferChannel {
        let mut known = OfferFlags::ENUMERATE_DEVICE_INTERFACE | OfferFlags::NAMED_PIPE_MODE;
        if version >= Version::Win10 {
            known |= OfferFlags::TLNPI_PROVIDER;
        }
        if features.contains(FeatureFlags::CONFIDENTIAL_CHANNELS) {
            known |= OfferFlags::CONFIDENTIAL_RING_BUFFER | OfferFlags::CONFIDENTIAL_EXTERNAL_MEMORY;
        }
        if features.contains(FeatureFlags::GPA_PINNING) {
            known |= OfferFlags::PINNED_EXTERNAL_MEMORY;
        }
        OfferChannel {
            interface_type: self.class,
            interface_instance: self.instance,
            reserved_latency: U64::ZERO,
            reserved_revision: U32::ZERO,
            reserved_context: U32::ZERO,
            flags: U16::new((self.flags & known).bits()),
            mmio_megabytes: U16::new(self.mmio_megabytes),
            user_defined: self.user_defined,
            subchannel_index: U16::new(self.subchannel_index),
            mmio_megabytes_optional: U16::new(self.mmio_megabytes_optional),
            relid: U32::new(relid),
            monitor_id: monitor.unwrap_or(NO_MONITOR),
            monitor_allocated: u8::from(monitor.is_some()),
            is_dedicated: U16::new(1),
            connection_id: U32::new(self.connection_id(relid)),
        }
    }
}

impl Server {
    pub(super) fn offer(&mut self, device: DeviceKey, offer: OfferParams) {
        if let Some(primary) = offer.primary
            && !self.channels.get(primary).is_some_and(Channel::may_have_subchannels)
        {
            return self.fault(Fault::NotOffered { device: primary });
        }
        let Some(channel) = self.channels.get_mut(device) else {
            self.channels.insert(device, offer);
            return self.propose(device, false);
        };
        if !channel.withdrawn {
            return self.fault(Fault::OfferedTwice { device });
        }
        self.channels.offer_again(device, offer);
        let Some(channel) = self.channels.get_mut(device) else { return };
        match channel.shown {
            Shown::Hidden | Shown::Returning => {
                channel.shown = Shown::Returning;
                self.settle(device);
            }
            // Reoffered: the guest must release the channel first. The others exclude a withdrawn device.
            Shown::Rescinding | Shown::Revoked | Shown::Proposed(_) | Shown::Offered | Shown::Unloaded => {}
        }
    }

    pub(super) fn rescind(&mut self, device: DeviceKey) {
        match self.channels.get(device) {
            Some(channel) if !channel.withdrawn => self.withdraw(device),
            // Its primary may have taken it along before the caller learned of it.
            Some(channel) if channel.offer.primary.is_some() => {}
            Some(_) | None => self.fault(Fault::NotOffered { device }),
        }
    }

    /// Rescinds the sub-channels of a device.
    pub(super) fn withdraw_subchannels(&mut self, primary: DeviceKey) {
        for device in self.channels.subchannels(primary) {
            if self.channels.get(device).is_some_and(|channel| !channel.withdrawn) {
                self.withdraw(device);
            }
        }
    }

    fn withdraw(&mut self, device: DeviceKey) {
        self.withdraw_subchannels(device);
        let Some(channel) = self.channels.get_mut(device) else { return };
        channel.withdrawn = true;
        match channel.shown {
            Shown::Hidden => self.channels.stop_waiting(device),
            Shown::Returning => channel.shown = Shown::Hidden,
            Shown::Proposed(asked) => {
                channel.shown = Shown::Hidden;
                self.withdraw_question(asked);
            }
            Shown::Offered => {
                channel.shown = Shown::Rescinding;
                self.stop_serving(device);
                self.recall_gpadls(device);
            }
            Shown::Rescinding | Shown::Revoked => {}
            Shown::Unloaded => self.end_kept(device),
        }
        self.settle(device);
    }

    pub(super) fn request_offers(&mut self) {
        let Some(connected) = self.connection.connected_mut() else { return };
        match connected.offers {
            Offers::NotRequested => connected.offers = Offers::Requested,
            Offers::Requested | Offers::Delivered => return self.fault(Fault::OffersRequestedTwice),
        }
        let devices: Vec<DeviceKey> = self.channels.iter().map(|(device, _)| *device).collect();
        for device in devices {
            self.propose(device, true);
        }
        self.offers_delivered();
    }

    /// Says that all offers were sent, once policy has decided about those that existed at the request.
    pub(super) fn offers_delivered(&mut self) {
        if self.questions.initial_offers() > 0 {
            return;
        }
        if let Some(connected) = self.connection.connected_mut()
            && connected.offers == Offers::Requested
        {
            connected.offers = Offers::Delivered;
            self.send(AllOffersDelivered {});
        }
    }

    /// Asks whether a hidden device may be shown, if the guest wants offers and can understand this one.
    fn propose(&mut self, device: DeviceKey, initial: bool) {
        let Some(connected) = self.connection.connected() else { return };
        let version = connected.connection.version;
        let Some(channel) = self.channels.get_mut(device) else { return };
        if connected.offers == Offers::NotRequested
            || channel.withdrawn
            || (version < Version::Win8 && channel.offer.subchannel_index != 0)
        {
            return;
        }
        // A sub-channel comes after its primary: see `show`.
        if let Some(primary) = channel.offer.primary
            && !self.channels.get(primary).is_some_and(|primary| primary.shown == Shown::Offered)
        {
            return;
        }
        let asked = self.ask_offer(device, initial);
        if let Some(channel) = self.channels.get_mut(device) {
            channel.shown = Shown::Proposed(asked);
        }
    }

    pub(super) fn offer_decided(&mut self, device: DeviceKey, answer: Answer) {
        let Some(channel) = self.channels.get_mut(device) else { return };
        let Shown::Proposed(_) = channel.shown else { return };
        channel.shown = Shown::Hidden;
        match answer {
            Answer::Allow => self.show(device),
            Answer::Deny(_) => self.free_relid(device),
        }
    }

    /// Sends the offer, or lets the device wait until a channel id is free.
    fn show(&mut self, device: DeviceKey) {
        let limit = self.config.quotas.channels;
        let Some(relid) = self.channels.assign_relid(device, limit) else {
            self.channels.wait(device);
            return self.over_quota(Quota::Channels, limit);
        };
        let Some(connection) = self.connection() else { return };
        let monitor = self.channels.assign_monitor(device, connection.monitor_pages.is_some());
        let Some(channel) = self.channels.get_mut(device) else { return };
        channel.shown = Shown::Offered;
        let message = channel.offer.message(relid, monitor, connection.version, connection.features);
        self.send(message);
        for subchannel in self.channels.subchannels(device) {
            if self.channels.is_hidden(subchannel) {
                self.propose(subchannel, false);
            }
        }
    }

    pub(super) fn relid_released(&mut self, relid: u32) {
        let Some(device) = self.visible("RELID_RELEASED", relid) else { return };
        let Some(channel) = self.channels.get_mut(device) else { return };
        let declined =
            channel.shown == Shown::Offered && channel.offer.flags.contains(OfferFlags::TLNPI_PROVIDER);
        channel.shown = match (channel.shown, &channel.serving) {
            // A guest that releases a channel unasked does not see the device again during this connection.
            (Shown::Offered, Serving::Idle | Serving::Closing { reopen: None, .. }) => Shown::Hidden,
            (
                Shown::Offered,
                Serving::Asked { .. } | Serving::Opening(_) | Serving::Open(_) | Serving::Closing { .. },
            ) => return self.wrong_state("RELID_RELEASED", device),
            (Shown::Rescinding | Shown::Revoked, _) if channel.withdrawn => Shown::Hidden,
            // Its device is back already.
            (Shown::Rescinding | Shown::Revoked, _) => Shown::Returning,
            // Not visible.
            (Shown::Hidden | Shown::Proposed(_) | Shown::Returning | Shown::Unloaded, _) => return,
        };
        let primary = channel.offer.primary;
        self.withdraw_subchannels(device);
        self.drop_gpadls(device);
        if declined {
            self.act(ServerAction::Declined { device });
        }
        self.settle(device);
        if let Some(primary) = primary {
            self.settle(primary);
        }
    }

    /// Ends everything that guests were shown. A guest that unloads keeps what is open-reserved.
    pub(super) fn disconnect_channels(&mut self, then: &Then) {
        self.channels.stop_all_waiting();
        let unloads = match then {
            Then::Unloaded(_) => true,
            Then::Quiet | Then::Contact(_) => false,
        };
        let devices: Vec<DeviceKey> = self.channels.iter().map(|(device, _)| *device).collect();
        for device in devices {
            if unloads && self.keep_reserved(device) {
                continue;
            }
            if let Some(channel) = self.channels.get_mut(device) {
                channel.shown = Shown::Hidden;
                channel.withdrawn |= channel.offer.primary.is_some();
            }
            self.stop_serving(device);
            self.drop_gpadls(device);
            self.settle(device);
        }
    }

    /// Takes the next step of a channel that waited for its device, once the device uses nothing of the guest's.
    pub(super) fn settle(&mut self, device: DeviceKey) {
        let Some(channel) = self.channels.get_mut(device) else { return };
        if !channel.is_settled() {
            return;
        }
        if channel.closing_for.is_some() {
            self.reserved_closed(device);
        }
        let Some(channel) = self.channels.get_mut(device) else { return };
        match channel.shown {
            Shown::Rescinding => {
                if self.has_rescinding_subchannel(device) {
                    return;
                }
                let Some(channel) = self.channels.get_mut(device) else { return };
                channel.shown = Shown::Revoked;
                let primary = channel.offer.primary;
                if let Some(relid) = channel.relid {
                    self.send(RescindChannelOffer { relid: U32::new(relid) });
                }
                if let Some(primary) = primary {
                    self.settle(primary);
                }
            }
            Shown::Returning => {
                // The id is kept while policy is asked again.
                channel.shown = Shown::Hidden;
                self.propose(device, false);
                if self.channels.is_hidden(device) {
                    self.free_relid(device);
                }
            }
            Shown::Hidden => {
                let withdrawn = channel.withdrawn;
                let freed = self.channels.free_relid(device);
                if withdrawn {
                    self.channels.remove(device);
                    self.act(ServerAction::Released { device });
                }
                if freed {
                    self.show_next_waiting();
                }
            }
            Shown::Proposed(_) | Shown::Offered | Shown::Revoked | Shown::Unloaded => {}
        }
    }

    /// Whether RESCIND of a sub-channel is to come, which is to come before its primary's.
    pub(super) fn has_rescinding_subchannel(&self, primary: DeviceKey) -> bool {
        let subchannels = self.channels.subchannels(primary).into_iter();
        let mut subchannels = subchannels.filter_map(|device| self.channels.get(device));
        subchannels.any(|channel| channel.shown == Shown::Rescinding)
    }

    fn free_relid(&mut self, device: DeviceKey) {
        if self.channels.free_relid(device) {
            self.show_next_waiting();
        }
    }

    /// A channel id is free: for the first device that waits for one.
    fn show_next_waiting(&mut self) {
        if let Some(next) = self.channels.next_waiting() {
            self.show(next);
        }
    }
}
