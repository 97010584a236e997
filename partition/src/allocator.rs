//! Pages of the memory that a guest shares: taken for rings and buffers, given back when dropped.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use vmbus_core::PAGE_SIZE;
use vmbus_core::memory::SharedMemory;
use vmbus_core::pages::{GpadlError, PageRanges};

use crate::control_link::lock;
use crate::link::LinkError;
use crate::memory::{Mapping, MemoryError};

/// Why no pages could be had. Always our own.
#[derive(Debug, thiserror::Error)]
pub enum AllocError {
    /// No stretch of free pages is long enough.
    #[error("no {pages} contiguous pages are free in the shared memory of domain {domain}")]
    Full {
        /// Pages asked for.
        pages: usize,
        /// The sharing domain.
        domain: u32,
    },
    /// Pages of the domain are still in use, or it is domain 0, or there is none.
    #[error("the shared memory of domain {domain} cannot be given up now")]
    InUse {
        /// The sharing domain.
        domain: u32,
    },
    /// Memory for a new domain could not be made.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The root could not be told of it.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// First-fit allocation of contiguous pages in one region. Clones are the same allocator.
#[derive(Clone, Debug)]
pub struct PageAllocator {
    region: Arc<AllocRegion>,
}

#[derive(Debug)]
struct AllocRegion {
    first_pfn: u64,
    domain: u32,
    mapping: Mapping,
    /// Free stretches of page indices, in order, never touching one another.
    free: Mutex<Vec<Range<usize>>>,
}

impl PageAllocator {
    /// All pages of `mapping`, which the root sees at guest-physical address `gpa` (a multiple of 4096).
    pub fn new(gpa: u64, domain: u32, mapping: Mapping) -> Self {
        let pages = mapping.size() / PAGE_SIZE;
        let free = Mutex::new(if pages == 0 { Vec::new() } else { vec![Range { start: 0, end: pages }] });
        Self { region: Arc::new(AllocRegion { first_pfn: gpa / PAGE_SIZE as u64, domain, mapping, free }) }
    }

    /// `len` bytes, rounded up to at least one whole page, contiguous and zeroed.
    ///
    /// # Errors
    /// [`AllocError::Full`].
    pub fn allocate(&self, len: usize) -> Result<SharedPages, AllocError> {
        let pages = len.div_ceil(PAGE_SIZE).max(1);
        let mut free = lock(&self.region.free);
        let full = AllocError::Full { pages, domain: self.region.domain };
        let place = free.iter().position(|stretch| stretch.len() >= pages).ok_or(full)?;
        let start = free[place].start;
        free[place].start += pages;
        if free[place].is_empty() {
            free.remove(place);
        }
        drop(free);
        let view = self.region.mapping.slice(start * PAGE_SIZE, pages * PAGE_SIZE);
        // What the last owner wrote is not the next one's business.
        view.fill_zero(0, pages * PAGE_SIZE);
        Ok(SharedPages { region: Arc::clone(&self.region), place: start..start + pages, view })
    }

    /// Whether no page is taken.
    pub fn is_unused(&self) -> bool {
        self.free() == self.region.mapping.size()
    }

    /// Bytes that are free, in however many pieces.
    pub fn free(&self) -> usize {
        lock(&self.region.free).iter().map(|stretch| stretch.len() * PAGE_SIZE).sum()
    }
}

/// Contiguous pages of shared memory. They are free again when this is dropped: not before the root has given back
/// what it was told to use them for.
#[derive(Debug)]
pub struct SharedPages {
    region: Arc<AllocRegion>,
    place: Range<usize>,
    view: Mapping,
}

impl SharedPages {
    /// The memory.
    pub fn mapping(&self) -> &Mapping {
        &self.view
    }

    /// Bytes, whole pages.
    pub fn len(&self) -> usize {
        self.place.len() * PAGE_SIZE
    }

    /// Never: there is at least one page.
    pub fn is_empty(&self) -> bool {
        self.place.is_empty()
    }

    /// The first page's number; the others follow it.
    pub fn first_pfn(&self) -> u64 {
        self.region.first_pfn + self.place.start as u64
    }

    /// The page numbers, in order.
    pub fn pfns(&self) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + Clone + use<> {
        let first = self.first_pfn();
        (0..self.place.len()).map(move |index| first + index as u64)
    }

    /// Guest-physical address of the first byte.
    pub fn gpa(&self) -> u64 {
        self.first_pfn() * PAGE_SIZE as u64
    }

    /// The sharing domain that the memory belongs to.
    pub fn domain(&self) -> u32 {
        self.region.domain
    }

    /// All pages as one range, to share them as a page list.
    ///
    /// # Errors
    /// [`GpadlError`]: more than one page list can hold.
    pub fn ranges(&self) -> Result<PageRanges, GpadlError> {
        let bytes = u32::try_from(self.len()).unwrap_or(u32::MAX);
        PageRanges::single(0, bytes, self.pfns())
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        let mut free = lock(&self.region.free);
        let after = free.partition_point(|stretch| stretch.start < self.place.start);
        free.insert(after, self.place.clone());
        // Joins with the neighbours that it touches.
        if after + 1 < free.len() && free[after].end == free[after + 1].start {
            free[after].end = free[after + 1].end;
            free.remove(after + 1);
        }
        if after > 0 && free[after - 1].end == free[after].start {
            free[after - 1].end = free[after].end;
            free.remove(after);
        }
    }
}
