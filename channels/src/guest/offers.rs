//! What a guest is offered, found without a look at everything else that is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use vmbus_core::Guid;

use super::{Device, OfferedDevice};
use crate::error::Refusal;

/// What is offered at present.
#[derive(Clone, Debug, Default)]
pub(super) struct Offers {
    /// In the order of their arrival.
    devices: BTreeMap<u64, OfferedDevice>,
    places: HashMap<u32, u64>,
    by_instance: Index,
    by_class: Index,
    arrived: u64,
    /// All that existed when this guest joined have arrived.
    pub(super) complete: bool,
    /// There is a root.
    pub(super) attached: bool,
    /// The bus is gone.
    pub(super) ended: bool,
    /// What the root said about that.
    pub(super) why: Option<Refusal>,
}

/// Arrivals by class or instance, and sub-channel.
type Index = BTreeMap<(Guid, u16), BTreeSet<u64>>;

impl Offers {
    pub(super) fn add(&mut self, device: OfferedDevice) {
        // One that a root offers twice is there once.
        self.remove(device.relid);
        let place = self.arrived;
        self.arrived += 1;
        self.places.insert(device.relid, place);
        for (index, guid) in [(&mut self.by_instance, device.instance), (&mut self.by_class, device.class)] {
            index.entry((guid, device.subchannel_index)).or_default().insert(place);
        }
        self.devices.insert(place, device);
    }

    pub(super) fn remove(&mut self, relid: u32) {
        let Some(place) = self.places.remove(&relid) else { return };
        let Some(device) = self.devices.remove(&place) else { return };
        for (index, guid) in [(&mut self.by_instance, device.instance), (&mut self.by_class, device.class)] {
            let key = (guid, device.subchannel_index);
            if let Some(places) = index.get_mut(&key) {
                places.remove(&place);
                if places.is_empty() {
                    index.remove(&key);
                }
            }
        }
    }

    /// The sub-channels of `instance` are not to be found any more; whether there were any.
    pub(super) fn remove_subchannels(&mut self, instance: Guid) -> bool {
        let all = self.by_instance.range((instance, 1)..=(instance, u16::MAX));
        let all = all.flat_map(|(_, places)| places).filter_map(|place| self.devices.get(place));
        let all: Vec<u32> = all.map(|device| device.relid).collect();
        for &relid in &all {
            self.remove(relid);
        }
        !all.is_empty()
    }

    /// The bus is gone, and all that it offered.
    pub(super) fn end(&mut self, why: Option<Refusal>) {
        *self = Self {
            ended: true,
            attached: self.attached,
            why,
            complete: self.complete,
            arrived: self.arrived,
            ..Self::default()
        };
    }

    /// The first that fits.
    pub(super) fn find(&self, device: Device) -> Option<&OfferedDevice> {
        let index = device.subchannel_index;
        let places = match (device.instance, device.class) {
            (Some(instance), _) => self.by_instance.get(&(instance, index)),
            (None, Some(class)) => self.by_class.get(&(class, index)),
            (None, None) => return self.devices.values().find(|offered| device.fits(offered)),
        };
        places?.iter().filter_map(|place| self.devices.get(place)).find(|offered| device.fits(offered))
    }

    /// Nothing is offered any more, for now.
    pub(super) fn clear(&mut self) {
        self.devices.clear();
        self.places.clear();
        self.by_instance.clear();
        self.by_class.clear();
    }

    /// Whether just this one is offered.
    pub(super) fn contains(&self, device: &OfferedDevice) -> bool {
        self.by_relid(device.relid) == Some(device)
    }

    /// The one with this channel id.
    pub(super) fn by_relid(&self, relid: u32) -> Option<&OfferedDevice> {
        self.devices.get(self.places.get(&relid)?)
    }

    /// All, in the order of their arrival.
    pub(super) fn list(&self) -> Vec<OfferedDevice> {
        self.devices.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus_core::guid;
    use vmbus_core::message::UserDefined;

    const DISK: Guid = guid!("00000000-0000-0000-0000-000000000001");
    const NIC: Guid = guid!("00000000-0000-0000-0000-000000000002");

    fn offered(relid: u32, class: Guid, subchannel_index: u16) -> OfferedDevice {
        let instance = Guid::from_wire([u8::try_from(relid % 100).unwrap(); 16]);
        OfferedDevice { relid, class, instance, subchannel_index, user_defined: UserDefined::default() }
    }

    #[test]
    fn the_first_that_fits_is_found_and_what_went_is_not() {
        let mut offers = Offers::default();
        for (relid, class, index) in [(1, NIC, 0), (2, DISK, 0), (3, DISK, 0), (102, DISK, 1)] {
            offers.add(offered(relid, class, index));
        }
        let relid = |offers: &Offers, device| offers.find(device).map(|offered| offered.relid);
        assert_eq!(relid(&offers, Device::class(DISK)), Some(2));
        let second = offered(2, DISK, 0).instance;
        assert_eq!(relid(&offers, Device::instance(second).subchannel(1)), Some(102));
        assert!(offers.remove_subchannels(second) && !offers.remove_subchannels(second));
        assert_eq!(relid(&offers, Device::instance(second).subchannel(1)), None);
        assert_eq!(relid(&offers, Device::instance(second)), Some(2));
        offers.add(offered(102, DISK, 1));
        offers.remove(2);
        offers.remove(2);
        assert_eq!(relid(&offers, Device::class(DISK)), Some(3));
        assert_eq!(relid(&offers, Device::instance(second)), None);
        assert_eq!(offers.list().iter().map(|offered| offered.relid).collect::<Vec<_>>(), [1, 3, 102]);
        offers.end(None);
        assert!(offers.ended && offers.list().is_empty());
        assert_eq!(relid(&offers, Device::class(NIC)), None);
    }
}
