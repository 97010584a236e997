//! The interrupt page, by which versions before Win8 say which channel a signal is for
//! (`docs/src/protocol/control.md`, "Signals").
//!
//! One bit for each channel in each direction. Whoever signals sets the bit first and then raises the one event that
//! all channels share; whoever hears that event takes all bits. A bit is a hint: the rings tell what there is to do.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmbus_core::PAGE_SIZE;
use vmbus_partition::{GpaError, GpaSpace, Mapping};

/// Bytes of each half that channel ids reach: they are below 2048.
const USED: usize = 2048 / 8;
const WORD: usize = 8;

/// Which way the signals of a half go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    ToGuest = 0,
    ToHost = 0x800,
}

/// One partition's interrupt page, as either end sees it.
#[derive(Clone)]
pub(crate) struct InterruptPage(Mapping);

impl InterruptPage {
    /// The page at guest-physical address `gpa`.
    pub(crate) fn at(memory: &Arc<GpaSpace>, gpa: u64) -> Result<Self, GpaError> {
        page_at(memory, gpa).map(Self)
    }

    /// Sets the bit of a channel; `true` if it was clear, so that the other end has to be told.
    pub(crate) fn set(&self, half: Half, relid: u16) -> bool {
        let relid = usize::from(relid) % (USED * 8);
        let bit = 1 << (relid % 64);
        // Sequentially consistent, as event flags are: the ring was written before, and is looked at after the bit
        // was taken.
        self.0.fetch_or_u64(half as usize + relid / 64 * WORD, bit, Ordering::SeqCst) & bit == 0
    }

    /// Takes the bits of all channels.
    pub(crate) fn take(&self, half: Half, mut each: impl FnMut(u16)) {
        for index in 0..USED / WORD {
            let at = half as usize + index * WORD;
            if self.0.load_u64(at, Ordering::SeqCst) == 0 {
                continue;
            }
            let mut word = self.0.swap_u64(at, 0, Ordering::SeqCst);
            while word != 0 {
                let bit = word.trailing_zeros() as usize;
                word &= word - 1;
                each(u16::try_from(index * 64 + bit).unwrap_or(0));
            }
        }
    }
}

/// The whole page that begins at `gpa`.
pub(crate) fn page_at(memory: &Arc<GpaSpace>, gpa: u64) -> Result<Mapping, GpaError> {
    let no_page = GpaError::NoSuchPage { pfn: gpa / PAGE_SIZE as u64 };
    if !gpa.is_multiple_of(PAGE_SIZE as u64) {
        return Err(no_page);
    }
    let page = memory.span(gpa, PAGE_SIZE)?;
    // Regions are whole pages, so that a page is in one.
    let (mapping, place) = page.runs().next().ok_or(no_page)?;
    Ok(mapping.slice(place.start, place.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus_partition::Region;

    #[test]
    #[allow(clippy::unwrap_used, reason = "a test that panics has failed")]
    fn bits_arrive_once_and_in_their_own_half() {
        let mapping = Mapping::anonymous(2 * PAGE_SIZE).unwrap();
        let memory = Arc::new(GpaSpace::new(vec![Region { gpa: 0x1000, domain: 0, mapping }], 0).unwrap());
        let page = InterruptPage::at(&memory, 0x2000).unwrap();
        for relid in [1, 63, 64, 2047] {
            assert!(page.set(Half::ToHost, relid));
            assert!(!page.set(Half::ToHost, relid));
        }
        assert!(page.set(Half::ToGuest, 5));
        let taken = |half| {
            let mut relids = Vec::new();
            page.take(half, |relid| relids.push(relid));
            relids
        };
        assert_eq!(taken(Half::ToGuest), [5]);
        assert_eq!(taken(Half::ToHost), [1, 63, 64, 2047]);
        assert!(taken(Half::ToHost).is_empty());
    }

    #[test]
    #[allow(clippy::unwrap_used, reason = "a test that panics has failed")]
    fn an_address_that_is_no_page_of_the_partition_is_refused() {
        let mapping = Mapping::anonymous(PAGE_SIZE).unwrap();
        let memory = Arc::new(GpaSpace::new(vec![Region { gpa: 0x1000, domain: 0, mapping }], 0).unwrap());
        for gpa in [0, 0x1008, 0x2000, u64::MAX - 4095, u64::MAX] {
            assert!(InterruptPage::at(&memory, gpa).is_err(), "{gpa:#x}");
        }
    }
}
