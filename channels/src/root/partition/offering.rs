//! What one partition is offered.

use vmbus_core::server::{DeviceKey, OfferParams, ServerInput};

use super::super::devices::Device;
use super::super::lock;
use super::{Offered, Partition};

impl Partition {
    /// Brings what this partition is offered in line with the root's devices.
    pub(super) fn reconsider(&mut self) {
        let devices: Vec<(u64, Device)> =
            lock(&self.root.devices).iter().map(|(id, device)| (id, device.clone())).collect();
        for (id, device) in &devices {
            let key = DeviceKey(*id);
            if !self.offered.contains_key(&key) && device.provider.visible_to(&self.client) {
                self.offer(key, *id, device.clone());
            }
        }
        let gone: Vec<DeviceKey> = self
            .offered
            .iter()
            .filter(|(_, offered)| !offered.withdrawn && !devices.iter().any(|(id, _)| *id == offered.id))
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            if let Some(offered) = self.offered.get_mut(&key) {
                offered.withdrawn = true;
            }
            self.server.handle(ServerInput::Rescind { device: key });
        }
    }

    pub(super) fn offer(&mut self, key: DeviceKey, id: u64, device: Device) {
        let area = self.areas.take();
        let params = OfferParams {
            class: device.offer.class,
            instance: device.instance,
            flags: device.offer.flags(),
            user_defined: device.offer.wire_user_defined(),
            worker: u8::try_from(area).unwrap_or(0),
            ..OfferParams::default()
        };
        self.offered.insert(key, Offered { device, id, area, withdrawn: false });
        self.server.handle(ServerInput::Offer { device: key, offer: params });
    }

    /// The guest has let go of a rescinded device: it is offered again unless it was withdrawn.
    pub(super) fn released(&mut self, key: DeviceKey) {
        let Some(offered) = self.offered.remove(&key) else { return };
        self.areas.give_back(offered.area);
        if offered.withdrawn {
            offered.device.provider.left(&self.client);
        } else {
            self.offer(key, offered.id, offered.device);
        }
    }
}
