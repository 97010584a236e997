//! What one partition is offered.

use vmbus_core::server::{DeviceKey, OfferParams, ServerInput};

use super::super::devices::Device;
use super::super::lock;
use super::{Offered, Partition};

impl Partition {
    /// Offers what this partition may see of the devices that are there.
    pub(super) fn offer_all(&mut self) {
        let devices: Vec<u64> = lock(&self.root.devices).iter().map(|(id, _)| id).collect();
        for id in devices {
            self.offer_if_visible(id);
        }
    }

    /// Offers a device that came, unless it has gone meanwhile or is known already. The cost does not grow with the
    /// number of devices.
    pub(super) fn offer_if_visible(&mut self, id: u64) {
        let key = DeviceKey(id);
        if self.offered.contains_key(&key) {
            return;
        }
        let Some(device) = lock(&self.root.devices).get(id).cloned() else { return };
        if device.provider.visible_to(&self.client) {
            self.unseen.remove(&id);
            self.offer(key, id, device);
        } else {
            self.unseen.insert(id);
        }
    }

    /// Takes back a device that went.
    pub(super) fn withdraw(&mut self, id: u64) {
        self.unseen.remove(&id);
        let key = DeviceKey(id);
        if let Some(offered) = self.offered.get_mut(&key)
            && !offered.withdrawn
        {
            offered.withdrawn = true;
            self.rescind(key);
        }
    }

    /// Offers what may be seen now that another guest has left.
    pub(super) fn ask_again(&mut self) {
        for id in std::mem::take(&mut self.unseen) {
            self.offer_if_visible(id);
        }
    }

    pub(super) fn offer(&mut self, key: DeviceKey, id: u64, device: Device) {
        let area = self.areas.take();
        let params = device.params(area);
        self.offered.insert(
            key,
            Offered { device, id, area, withdrawn: false, rescinded: false, denied: false, subchannel: None },
        );
        self.server.handle(ServerInput::Offer { device: key, offer: params });
    }

    /// The guest has let go of a rescinded device: it is offered again unless it was withdrawn.
    pub(super) fn released(&mut self, key: DeviceKey) {
        let Some(offered) = self.offered.remove(&key) else { return };
        if offered.subchannel.is_some() {
            return self.subchannel_released(&offered);
        }
        self.areas.give_back(offered.area);
        if offered.withdrawn {
            offered.device.provider.left(&self.client);
        } else {
            self.offer(key, offered.id, offered.device);
        }
    }
}

impl Device {
    /// The offer of the primary channel, whose signals arrive in our event area `area`.
    pub(super) fn params(&self, area: u32) -> OfferParams {
        OfferParams {
            class: self.offer.class,
            instance: self.instance,
            flags: self.offer.flags(),
            user_defined: self.offer.wire_user_defined(),
            monitor_latency: self.offer.monitor_latency,
            worker: u8::try_from(area).unwrap_or(0),
            ..OfferParams::default()
        }
    }
}
