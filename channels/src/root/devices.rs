//! The devices of a root.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use vmbus_core::Guid;

use super::{Command, Inner, lock};
use crate::error::Error;
use crate::offer::Offer;
use crate::provider::AnyProvider;

/// Name for an instance that the root makes: `root` in the node part, a counter in front.
const MADE_INSTANCE: Guid = vmbus_core::guid!("00000000-766d-4275-8d72-6f6f74000000");

/// One offered device.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) offer: Arc<Offer>,
    pub(crate) instance: Guid,
    pub(crate) provider: Arc<dyn AnyProvider>,
}

#[derive(Default)]
pub(crate) struct Devices {
    by_id: BTreeMap<u64, Device>,
    by_instance: BTreeMap<Guid, u64>,
    next: u64,
}

impl Devices {
    pub(super) fn add(&mut self, offer: Offer, provider: Arc<dyn AnyProvider>) -> Result<u64, Error> {
        let id = self.next;
        let instance = offer.instance.unwrap_or_else(|| made_instance(id));
        if self.by_instance.contains_key(&instance) {
            return Err(Error::InstanceTaken(instance));
        }
        self.next += 1;
        self.by_instance.insert(instance, id);
        self.by_id.insert(id, Device { offer: Arc::new(offer), instance, provider });
        Ok(id)
    }

    fn remove(&mut self, id: u64) {
        if let Some(device) = self.by_id.remove(&id) {
            self.by_instance.remove(&device.instance);
        }
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Device> {
        self.by_id.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Device)> {
        self.by_id.iter().map(|(&id, device)| (id, device))
    }
}

fn made_instance(id: u64) -> Guid {
    let mut wire = MADE_INSTANCE.to_wire();
    let number = u32::try_from(id).unwrap_or(u32::MAX);
    wire[..4].copy_from_slice(&number.to_le_bytes());
    Guid::from_wire(wire)
}

/// An offered device. Dropping the handle leaves the device offered.
pub struct DeviceHandle {
    root: Weak<Inner>,
    id: u64,
}

impl DeviceHandle {
    pub(super) fn new(root: &Arc<Inner>, id: u64) -> Self {
        Self { root: Arc::downgrade(root), id }
    }

    /// The instance GUID under which guests see the device; `None` once it is withdrawn.
    pub fn instance(&self) -> Option<Guid> {
        let root = self.root.upgrade()?;
        lock(&root.devices).get(self.id).map(|device| device.instance)
    }

    /// Takes the device back from all guests. Open channels close; what is in flight ends as the session ends it.
    pub fn rescind(self) {
        if let Some(root) = self.root.upgrade() {
            lock(&root.devices).remove(self.id);
            root.command_all(|| Command::Withdraw(self.id));
        }
    }
}
