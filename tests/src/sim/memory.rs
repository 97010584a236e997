//! The memory of a guest: who uses which pages, and the rings in them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmbus_core::memory::{PlainMemory, SharedMemory};
use vmbus_core::pages::PageRanges;
use vmbus_ringbuf::{ControlWord, Flat};

use super::rings::Ring;

/// Pages of each guest.
const PAGES: usize = 2048;
const PAGE: u32 = 4096;
/// A control page and a page of data, whatever the size of the page list that names them: small rings are full soon.
const RING_BYTES: usize = 2 * 4096;

/// The pages of one guest. The root's end keeps it alive while it uses it, as a mapping does.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// By the number of the first page; numbers are never used twice.
    blocks: BTreeMap<u64, Block>,
    last_pfn: u64,
    used: usize,
    /// Pages that devices of the root use.
    mapped: usize,
    /// Rings to be used again, with whatever they hold.
    spare: Vec<Rings>,
}

#[derive(Debug)]
struct Block {
    pages: u32,
    rings: Option<Rings>,
    /// How often the root uses it.
    mapped: usize,
}

#[derive(Clone, Debug)]
struct Rings {
    to_root: Arc<PlainMemory>,
    to_guest: Arc<PlainMemory>,
}

impl Memory {
    /// So many pages with two rings in them, by the number of the first; `None` if there are none left.
    pub(super) fn allocate(&mut self, pages: u32, with_rings: bool) -> Option<u64> {
        if self.used + pages as usize > PAGES {
            return None;
        }
        let rings = with_rings.then(|| self.rings());
        let pfn = self.last_pfn + 1;
        self.last_pfn += u64::from(pages) + 1;
        self.used += pages as usize;
        self.blocks.insert(pfn, Block { pages, rings, mapped: 0 });
        Some(pfn)
    }

    fn rings(&mut self) -> Rings {
        let rings = self.spare.pop().unwrap_or_else(|| {
            let memory = || Arc::new(PlainMemory::new(RING_BYTES));
            Rings { to_root: memory(), to_guest: memory() }
        });
        for ring in [&rings.to_root, &rings.to_guest] {
            let words = [
                ControlWord::WriteIndex,
                ControlWord::ReadIndex,
                ControlWord::InterruptMask,
                ControlWord::PendingSendSize,
                ControlWord::FeatureBits,
            ];
            words.iter().for_each(|word| ring.store_u32(word.offset(), 0, Ordering::Relaxed));
        }
        rings
    }

    /// The page list of a block.
    pub(super) fn list(&self, pfn: u64) -> Option<PageRanges> {
        let pages = self.blocks.get(&pfn)?.pages;
        PageRanges::single(0, pages * PAGE, pfn..pfn + u64::from(pages)).ok()
    }

    /// The rings in a block, guest to root first.
    pub(super) fn rings_of(&self, pfn: u64) -> Option<(Ring, Ring)> {
        let rings = self.blocks.get(&pfn)?.rings.as_ref()?;
        Some((Flat::new(rings.to_root.clone()), Flat::new(rings.to_guest.clone())))
    }

    /// The root begins to use a block.
    pub(super) fn map(&mut self, pfn: u64) -> Result<(), String> {
        let block = self.blocks.get_mut(&pfn).ok_or_else(|| format!("page {pfn} is not shared"))?;
        block.mapped += 1;
        self.mapped += block.pages as usize;
        Ok(())
    }

    /// The root uses a block no longer.
    pub(super) fn unmap(&mut self, pfn: u64) -> Result<(), String> {
        let block = self.blocks.get_mut(&pfn).filter(|block| block.mapped > 0);
        let block = block.ok_or_else(|| format!("page {pfn} is let go of and not in use"))?;
        block.mapped -= 1;
        self.mapped -= block.pages as usize;
        Ok(())
    }

    /// The guest uses a block for something else: nobody else may use it any more.
    pub(super) fn free(&mut self, pfn: u64) -> Result<(), String> {
        let block = self.blocks.remove(&pfn).ok_or_else(|| format!("page {pfn} is free already"))?;
        self.used -= block.pages as usize;
        self.spare.extend(block.rings);
        match block.mapped {
            0 => Ok(()),
            _ => Err(format!("page {pfn} is the guest's own again and the root uses it")),
        }
    }

    /// The guest takes all of its pages back.
    pub(super) fn free_all(&mut self) -> Result<(), String> {
        let blocks: Vec<u64> = self.blocks.keys().copied().collect();
        blocks.into_iter().try_for_each(|pfn| self.free(pfn))
    }

    /// Pages that are not free.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Pages that the root uses.
    pub(super) fn mapped(&self) -> usize {
        self.mapped
    }
}
