//! What the channels of one guest's connection have in common about each disk.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::lun::{Lun, Nexus};

/// The nexuses of one connection: a guest is told once what became of a disk, whichever of its channels it asks on.
#[derive(Clone, Debug, Default)]
pub(super) struct Nexuses(Arc<Mutex<Vec<Known>>>);

/// A disk, and the nexus that some channel has with it.
type Known = (Weak<Lun>, Weak<Nexus>);

impl Nexuses {
    /// The connection's nexus with `lun`, a new one if no channel has one.
    pub(super) fn of(&self, lun: &Arc<Lun>) -> Arc<Nexus> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, nexus)| nexus.strong_count() > 0);
        let this = known.iter().find(|(known, _)| Weak::as_ptr(known) == Arc::as_ptr(lun));
        if let Some(nexus) = this.and_then(|(_, nexus)| nexus.upgrade()) {
            return nexus;
        }
        let nexus = Arc::new(lun.attach());
        known.push((Arc::downgrade(lun), Arc::downgrade(&nexus)));
        nexus
    }
}
