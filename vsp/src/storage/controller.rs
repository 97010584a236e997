//! The synthetic SCSI controller as a device of the bus.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use vmbus_channels::{Client, Offer, OpenRequest, Provider, Refusal};
use vmbus_core::Guid;
use vmbus_core::storage::{Packet, SCSI_CLASS};

use super::lun::Lun;
use super::saved::SavedSession;
use super::session::{Family, Role, StorageSession};
use super::target::{Target, Units};
use super::vstor::{Limits, Vstor};
use crate::audience::Audience;

/// A controller with up to 256 disks, to be given to `Root::offer`.
///
/// Without [`for_one_guest`](Self::for_one_guest) or [`only_for`](Self::only_for) all guests see it at the same time,
/// which is right for disks that nobody writes, and for guests that know of each other.
#[derive(Debug)]
pub struct StorageController {
    name: String,
    instance: Option<Guid>,
    limits: Limits,
    audience: Audience,
    units: Arc<Units>,
    /// What the channels of guests share that were restored here, until they leave, and how far the primary ones had come.
    restored: Mutex<HashMap<u32, (Target, Family, Vstor)>>,
}

impl StorageController {
    /// A controller without disks, called `name` in listings.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            instance: None,
            limits: Limits::default(),
            audience: Audience::everyone(),
            units: Arc::default(),
            restored: Mutex::default(),
        }
    }

    /// By what guests know it again. Without this the root makes an instance GUID.
    pub fn instance(mut self, instance: Guid) -> Self {
        self.instance = Some(instance);
        self
    }

    /// Versions and sizes that it accepts.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Visible to the first guest that comes, until it leaves; then to the next.
    pub fn for_one_guest(mut self) -> Self {
        self.audience = Audience::first_comer();
        self
    }

    /// Visible to the guest called `name` alone; to one at a time, should several be called so.
    pub fn only_for(mut self, name: impl Into<String>) -> Self {
        self.audience = Audience::named(name);
        self
    }

    /// With a disk at `number`. Where there is one already it stays.
    pub fn lun(self, number: u8, lun: impl Into<Arc<Lun>>) -> Self {
        self.units.add(number, lun.into());
        self
    }

    /// Its disks, to be changed while it is in use; guests are told.
    pub fn units(&self) -> Arc<Units> {
        Arc::clone(&self.units)
    }
}

impl Provider for StorageController {
    type Session = StorageSession;

    fn offer(&self) -> Offer {
        let offer = Offer::new(SCSI_CLASS, &self.name).completion_room(Packet::MAX_SIZE);
        match self.instance {
            Some(instance) => offer.instance(instance),
            None => offer,
        }
    }

    fn visible_to(&self, client: &Client) -> bool {
        self.audience.admits(client)
    }

    fn left(&self, client: &Client) {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner).remove(&client.id);
        self.audience.left(client);
    }

    fn open(&self, _: &Client, _: &OpenRequest) -> Result<StorageSession, Refusal> {
        Ok(StorageSession::new(Vstor::new(self.limits), Target::new(&self.units)))
    }

    fn restore(&self, client: &Client, open: &OpenRequest, state: &[u8]) -> Result<StorageSession, Refusal> {
        let decoded = || {
            let saved = SavedSession::decode_whole(state);
            let saved = saved.ok_or_else(|| Refusal::new("the saved storage session is none"))?;
            Vstor::restore(self.limits, &saved).map_err(Refusal::new)
        };
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        // The primary channel comes first, and with it what all of the guest's channels share.
        if open.subchannel_index == 0 {
            let (vstor, target, family) = (decoded()?, Target::new(&self.units), Family::default());
            restored.insert(client.id, (target.another(), family.clone(), vstor.clone()));
            return Ok(StorageSession::restored(vstor, target, &family, Role::Primary));
        }
        let primary = restored.get(&client.id);
        let (target, family, vstor) =
            primary.ok_or_else(|| Refusal::new("the primary channel was not restored"))?;
        // One that was offered and not open has nothing of its own.
        let vstor = if state.is_empty() { vstor.clone() } else { decoded()? };
        Ok(StorageSession::restored(vstor, target.another(), family, Role::SubChannel))
    }
}
