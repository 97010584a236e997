//! Channel ids: which are in use, by whom, and which comes next.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::DeviceKey;

/// Ids are 1 to 2047: each is an event flag too, and flag 0 is no channel's.
pub(super) const LAST: u16 = 2047;

/// The channel ids of one connection.
#[derive(Debug, Default)]
pub(super) struct Relids {
    /// By id, from 0.
    pub(super) owners: Vec<Option<DeviceKey>>,
    /// Freed ids, in the order in which they became free. Used only when all ids were used once, so that a late signal
    /// does not hit a new channel.
    pub(super) freed: VecDeque<u16>,
    pub(super) in_use: usize,
}

impl Relids {
    pub(super) fn owner(&self, relid: u32) -> Option<DeviceKey> {
        self.owners.get(usize::try_from(relid).ok()?).copied().flatten()
    }

    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// An id for a device, or `None` if all are in use.
    pub(super) fn allocate(&mut self, owner: DeviceKey) -> Option<u32> {
        if self.owners.is_empty() {
            self.owners.push(None);
        }
        let relid = match u16::try_from(self.owners.len()) {
            Ok(fresh) if fresh <= LAST => {
                self.owners.push(None);
                fresh
            }
            Ok(_) | Err(_) => self.freed.pop_front()?,
        };
        self.owners[usize::from(relid)] = Some(owner);
        self.in_use += 1;
        Some(u32::from(relid))
    }

    pub(super) fn free(&mut self, relid: u32) {
        let Ok(relid) = u16::try_from(relid) else { return };
        if let Some(owner) = self.owners.get_mut(usize::from(relid))
            && owner.take().is_some()
        {
            self.freed.push_back(relid);
            self.in_use -= 1;
        }
    }

    /// Begins anew with id 1, for a new connection.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_id_is_used_again_only_after_all_others() {
        let mut relids = Relids::default();
        assert_eq!(relids.allocate(DeviceKey(1)), Some(1));
        relids.free(1);
        for relid in 2..=2047 {
            assert_eq!(relids.allocate(DeviceKey(9)), Some(relid));
        }
        assert_eq!(relids.allocate(DeviceKey(2)), Some(1));
        assert_eq!(relids.allocate(DeviceKey(3)), None);
        assert_eq!((relids.owner(1), relids.owner(0), relids.owner(2048)), (Some(DeviceKey(2)), None, None));
        assert_eq!(relids.in_use(), 2047);
    }
}
