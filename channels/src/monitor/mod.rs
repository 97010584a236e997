//! Monitor pages: a guest sets a bit instead of signalling, and the root looks for bits from time to time
//! (`docs/src/protocol/control.md`, "Monitor pages").
//!
//! What is in the page stands here, for both ends. When the root looks stands in its `monitors`.

mod bits;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;
use vmbus_core::memory::SharedMemory;
use vmbus_core::synic::MonitorPlace;
use vmbus_partition::{GpaError, GpaSpace, Mapping};

use self::bits::Pending;
use crate::interrupt_page::page_at;

/// Groups of 32 ids.
pub(crate) const GROUPS: usize = 4;
/// Where the bits are that say which groups the root looks at.
const ENABLED: usize = 0;

/// The page that guests write.
#[derive(Clone)]
pub(crate) struct MonitorPage(Mapping);

/// The pending word of one group.
struct Word<'a>(&'a Mapping, usize);

impl Pending for Word<'_> {
    #[inline]
    fn load(&self) -> u32 {
        self.0.load_u32(self.1, Ordering::SeqCst)
    }
    #[inline]
    fn set(&self, bits: u32) {
        self.0.fetch_or_u32(self.1, bits, Ordering::SeqCst);
    }
    #[inline]
    fn keep(&self, bits: u32) {
        self.0.fetch_and_u32(self.1, bits, Ordering::SeqCst);
    }
    #[inline]
    fn take(&self) -> u32 {
        self.0.swap_u32(self.1, 0, Ordering::SeqCst)
    }
}

impl MonitorPage {
    /// The page at guest-physical address `gpa`.
    pub(crate) fn at(memory: &Arc<GpaSpace>, gpa: u64) -> Result<Self, GpaError> {
        page_at(memory, gpa).map(Self)
    }

    /// The guest asks for attention, after it has written to the ring.
    #[inline]
    pub(crate) fn request(&self, place: &MonitorPlace) {
        bits::request(&Word(&self.0, place.pending), place.mask);
    }

    /// Who serves the ring is about to look at it and to sleep.
    pub(crate) fn cancel(&self, place: &MonitorPlace) {
        bits::cancel(&Word(&self.0, place.pending), place.mask);
    }

    /// The bits of `watched` that are set in a group, which are clear from now on.
    pub(crate) fn collect(&self, group: usize, watched: u32) -> u32 {
        bits::collect(&Word(&self.0, 8 + 8 * (group % GROUPS)), watched)
    }

    /// Says which groups are looked at: bit *g* for group *g*.
    pub(crate) fn enable(&self, groups: u32) {
        self.0.store_u32(ENABLED, groups, Ordering::Relaxed);
    }

    /// Says what a bit stands for; `latency` in units of 100 ns.
    pub(crate) fn describe(&self, place: &MonitorPlace, latency: u16, connection_id: u32, flag: u16) {
        self.0.write(place.latency, &latency.to_le_bytes());
        let mut parameter = [0; 8];
        parameter[..4].copy_from_slice(&connection_id.to_le_bytes());
        parameter[4..6].copy_from_slice(&flag.to_le_bytes());
        self.0.write(place.parameter, &parameter);
    }
}

/// The monitor pages of a connection: one, or two while the guest moves to another and the root may look at either.
#[derive(Default)]
pub(crate) struct MonitorPages(Mutex<SmallVec<[MonitorPage; 2]>>);

impl MonitorPages {
    pub(crate) fn set(&self, pages: impl IntoIterator<Item = MonitorPage>) {
        *self.lock() = pages.into_iter().collect();
    }

    /// One page beside those that are there.
    pub(crate) fn add(&self, page: MonitorPage) {
        self.lock().push(page);
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Does something to each page.
    #[inline]
    pub(crate) fn each(&self, act: impl FnMut(&MonitorPage)) {
        self.lock().iter().for_each(act);
    }

    fn lock(&self) -> MutexGuard<'_, SmallVec<[MonitorPage; 2]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus_core::PAGE_SIZE;
    use vmbus_partition::Region;

    #[test]
    #[allow(clippy::unwrap_used, reason = "a test that panics has failed")]
    fn bits_are_found_once_at_the_place_that_the_specification_gives_them() {
        let mapping = Mapping::anonymous(PAGE_SIZE).unwrap();
        let region = Region { gpa: 0x1000, domain: 0, mapping: mapping.clone() };
        let page = MonitorPage::at(&Arc::new(GpaSpace::new(vec![region], 0).unwrap()), 0x1000).unwrap();
        let place = MonitorPlace::of(65).unwrap();
        page.describe(&place, 1000, 0x2007, 0);
        page.enable(0b100);
        page.request(&place);
        let mut bytes = vec![0; PAGE_SIZE];
        mapping.read(0, &mut bytes);
        assert_eq!((bytes[0], bytes[0x8 + 2 * 8]), (0b100, 0b10));
        assert_eq!(bytes[0x240 + 2 * 65..][..2], [0xe8, 0x03]);
        assert_eq!(bytes[0x440 + 8 * 65..][..8], [0x07, 0x20, 0, 0, 0, 0, 0, 0]);
        assert_eq!(page.collect(2, 0b10), 0b10);
        assert_eq!(page.collect(2, 0b10), 0);
        page.request(&place);
        page.cancel(&MonitorPlace::of(64).unwrap());
        page.cancel(&place);
        assert_eq!(page.collect(2, u32::MAX), 0);
    }
}
