//! Guest-physical address space: where a partition's pages are in this process.
//!
//! A [`GpaSpace`] is an immutable snapshot behind an `Arc`; memory that comes or goes makes a new one. What a peer
//! names by page numbers becomes [`GuestPages`] once, with every bound checked then, and is used without further
//! look-ups.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use smallvec::SmallVec;
use vmbus_core::PAGE_SIZE;
use vmbus_core::memory::SharedMemory;
use vmbus_core::pages::PageRange;

use crate::memory::Mapping;

/// Ring mappings that one partition may make us hold unless its policy says otherwise: enough for 2,000 channels.
pub const DEFAULT_RING_MAPS: usize = 16 * 1024;

const PAGE: u64 = PAGE_SIZE as u64;

/// Why a peer's page numbers are no memory. Always the fault of whoever named them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpaError {
    /// A page is in no region.
    #[error("page {pfn:#x} is not memory of the partition")]
    NoSuchPage {
        /// The page's number (guest-physical address / 4096).
        pfn: u64,
    },
    /// The page numbers do not hold as many bytes as stated.
    #[error("{pages} pages cannot hold {byte_count} bytes from offset {byte_offset}")]
    WrongPageCount {
        /// Page numbers given.
        pages: usize,
        /// Bytes stated.
        byte_count: u64,
        /// Offset into the first page.
        byte_offset: u32,
    },
    /// A ring needs one control page and 1 to 524,288 data pages.
    #[error("a ring of {pages} pages")]
    RingSize {
        /// Pages given, the control page included.
        pages: usize,
    },
    /// A region is empty, not whole pages, wraps, or overlaps another.
    #[error(
        "region of {size:#x} bytes at {gpa:#x} is empty, not whole pages, beyond the end, or overlaps another"
    )]
    BadRegion {
        /// Its guest-physical address.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// There is no region of just this place and size to take away.
    #[error("no region of {size:#x} bytes at {gpa:#x}")]
    NoSuchRegion {
        /// Its guest-physical address.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// Bytes outside of a [`GuestPages`] were asked for.
    #[error("{len} bytes at {at} are outside of {size} bytes of guest pages")]
    OutOfRange {
        /// First byte asked for.
        at: usize,
        /// Bytes asked for.
        len: usize,
        /// Bytes there are.
        size: usize,
    },
}

/// A contiguous stretch of guest-physical addresses and the memory behind it.
#[derive(Clone, Debug)]
pub struct Region {
    /// Its first guest-physical address, a multiple of 4096.
    pub gpa: u64,
    /// The sharing domain the memory belongs to; 0 is what the root alone sees.
    pub domain: u32,
    /// The memory, whole pages.
    pub mapping: Mapping,
}

impl Region {
    pub(crate) fn size(&self) -> u64 {
        self.mapping.size() as u64
    }

    fn end(&self) -> u64 {
        self.gpa + self.size()
    }
}

/// A partition's memory as it was at some moment.
#[derive(Debug)]
pub struct GpaSpace {
    regions: Box<[Region]>,
    ring_maps: Arc<AtomicUsize>,
}

impl GpaSpace {
    /// A space of these regions in any order; `ring_maps` is how many kernel mappings its rings may take at a time.
    ///
    /// # Errors
    /// [`GpaError::BadRegion`]: whoever chose the regions.
    pub fn new(regions: Vec<Region>, ring_maps: usize) -> Result<Self, GpaError> {
        Self::with_quota(regions, Arc::new(AtomicUsize::new(ring_maps)))
    }

    /// The same space and one more region.
    ///
    /// # Errors
    /// [`GpaError::BadRegion`]: whoever chose the region.
    pub fn with(&self, region: Region) -> Result<Self, GpaError> {
        let mut regions = self.regions.to_vec();
        regions.push(region);
        Self::with_quota(regions, Arc::clone(&self.ring_maps))
    }

    /// The same space without the region of this place and size. Pages of it that are in use stay mapped.
    ///
    /// # Errors
    /// [`GpaError::NoSuchRegion`]: whoever named it.
    pub fn without(&self, gpa: u64, size: u64) -> Result<Self, GpaError> {
        let mut regions = self.regions.to_vec();
        let place = regions.iter().position(|region| region.gpa == gpa && region.size() == size);
        regions.remove(place.ok_or(GpaError::NoSuchRegion { gpa, size })?);
        Self::with_quota(regions, Arc::clone(&self.ring_maps))
    }

    /// The regions, by address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes of all regions.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(Region::size).sum()
    }

    /// The bytes that a page range names.
    ///
    /// # Errors
    /// [`GpaError::NoSuchPage`]: whoever named the pages.
    #[inline]
    pub fn pages(self: &Arc<Self>, range: PageRange<'_>) -> Result<GuestPages, GpaError> {
        self.pages_of(range.byte_offset(), range.byte_count(), range.pfns())
    }

    /// The `byte_count` bytes that start `byte_offset` bytes into the first of `pfns`.
    ///
    /// # Errors
    /// [`GpaError::NoSuchPage`], [`GpaError::WrongPageCount`]: whoever named the pages.
    #[inline]
    pub fn pages_of(
        self: &Arc<Self>,
        byte_offset: u32,
        byte_count: u32,
        pfns: impl ExactSizeIterator<Item = u64>,
    ) -> Result<GuestPages, GpaError> {
        let mut offset = byte_offset as usize;
        let len = byte_count as usize;
        let pages = pfns.len();
        if offset >= PAGE_SIZE || pages != (offset + len).div_ceil(PAGE_SIZE) {
            return Err(GpaError::WrongPageCount { pages, byte_count: byte_count.into(), byte_offset });
        }
        let mut runs = Runs::new();
        let mut left = len;
        for pfn in pfns {
            let part = left.min(PAGE_SIZE - offset);
            let (region, start) = self.find(pfn)?;
            push_run(&mut runs, Run { region, offset: start + offset, len: part });
            left -= part;
            offset = 0;
        }
        Ok(GuestPages { space: Arc::clone(self), runs, len })
    }

    /// The `len` bytes from guest-physical address `gpa` on.
    ///
    /// # Errors
    /// [`GpaError::NoSuchPage`]: whoever chose the address.
    pub fn span(self: &Arc<Self>, gpa: u64, len: usize) -> Result<GuestPages, GpaError> {
        let end = gpa.checked_add(len as u64).ok_or(GpaError::NoSuchPage { pfn: u64::MAX / PAGE })?;
        let mut runs = Runs::new();
        let mut at = gpa;
        while at < end {
            let region = self.region_of(at).ok_or(GpaError::NoSuchPage { pfn: at / PAGE })?;
            let part = self.regions[region].end().min(end) - at;
            // Both fit: the region is mapped in this process.
            let offset = usize::try_from(at - self.regions[region].gpa).unwrap_or(usize::MAX);
            let part_len = usize::try_from(part).unwrap_or(usize::MAX);
            runs.push(Run { region, offset, len: part_len });
            at += part;
        }
        Ok(GuestPages { space: Arc::clone(self), runs, len })
    }

    /// Region index and offset in its mapping of a page.
    #[inline]
    pub(crate) fn find(&self, pfn: u64) -> Result<(usize, usize), GpaError> {
        let found = pfn.checked_mul(PAGE).and_then(|gpa| {
            let region = self.region_of(gpa)?;
            Some((region, usize::try_from(gpa - self.regions[region].gpa).ok()?))
        });
        found.ok_or(GpaError::NoSuchPage { pfn })
    }

    pub(crate) fn ring_maps(&self) -> &Arc<AtomicUsize> {
        &self.ring_maps
    }

    #[inline]
    fn region_of(&self, gpa: u64) -> Option<usize> {
        let after = if self.regions.len() <= 4 {
            self.regions.iter().take_while(|region| region.gpa <= gpa).count()
        } else {
            self.regions.partition_point(|region| region.gpa <= gpa)
        };
        let index = after.checked_sub(1)?;
        (gpa < self.regions[index].end()).then_some(index)
    }

    fn with_quota(mut regions: Vec<Region>, ring_maps: Arc<AtomicUsize>) -> Result<Self, GpaError> {
        regions.sort_by_key(|region| region.gpa);
        let mut free_from = 0;
        for region in &regions {
            let (gpa, size) = (region.gpa, region.size());
            let in_file = region.mapping.file_offset();
            let whole_pages = [gpa, size, in_file].iter().all(|at| at.is_multiple_of(PAGE)) && size > 0;
            let end = gpa.checked_add(size).filter(|_| whole_pages && gpa >= free_from);
            free_from = end.ok_or(GpaError::BadRegion { gpa, size })?;
        }
        Ok(Self { regions: regions.into(), ring_maps })
    }
}

/// A part of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    region: usize,
    offset: usize,
    len: usize,
}

type Runs = SmallVec<[Run; 4]>;

#[inline]
fn push_run(runs: &mut Runs, run: Run) {
    match runs.last_mut() {
        Some(last) if last.region == run.region && last.offset + last.len == run.offset => {
            last.len += run.len
        }
        _ => runs.push(run),
    }
}

/// Bytes in a partition's pages, in the order in which the peer named them. The memory stays mapped while this lives;
/// its owner may change it at any time, so copy out first, then check, then use the copy.
#[derive(Clone)]
pub struct GuestPages {
    space: Arc<GpaSpace>,
    runs: Runs,
    len: usize,
}

impl GuestPages {
    /// Where the bytes are for the guest: guest-physical address and length of each contiguous run.
    pub fn addresses(&self) -> impl Iterator<Item = (u64, u64)> {
        self.runs.iter().map(|run| (self.space.regions[run.region].gpa + run.offset as u64, run.len as u64))
    }

    /// How many bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the `into.len()` bytes from `at` out of the pages.
    ///
    /// # Errors
    /// [`GpaError::OutOfRange`]: nothing was copied.
    #[inline]
    pub fn read(&self, at: usize, into: &mut [u8]) -> Result<(), GpaError> {
        let mut rest = into;
        for run in self.part(at, rest.len())? {
            let (now, later) = rest.split_at_mut(run.len);
            self.mapping(&run).read(run.offset, now);
            rest = later;
        }
        Ok(())
    }

    /// Copies `from` into the pages from `at` on.
    ///
    /// # Errors
    /// [`GpaError::OutOfRange`]: nothing was copied.
    #[inline]
    pub fn write(&self, at: usize, from: &[u8]) -> Result<(), GpaError> {
        let mut rest = from;
        for run in self.part(at, rest.len())? {
            let (now, later) = rest.split_at(run.len);
            self.mapping(&run).write(run.offset, now);
            rest = later;
        }
        Ok(())
    }

    /// Copies `len` bytes from `offset` of another mapping into the pages from `at` on, in one go per run.
    ///
    /// # Errors
    /// [`GpaError::OutOfRange`]: nothing was copied, whichever side is too short.
    #[inline]
    pub fn copy_from(&self, at: usize, from: &Mapping, offset: usize, len: usize) -> Result<(), GpaError> {
        check(offset, len, from.size())?;
        let mut offset = offset;
        for run in self.part(at, len)? {
            from.copy_to(offset, self.mapping(&run), run.offset, run.len);
            offset += run.len;
        }
        Ok(())
    }

    /// Copies `len` bytes of the pages from `at` on to `offset` of another mapping, in one go per run.
    ///
    /// # Errors
    /// [`GpaError::OutOfRange`]: nothing was copied, whichever side is too short.
    #[inline]
    pub fn copy_to(&self, at: usize, to: &Mapping, offset: usize, len: usize) -> Result<(), GpaError> {
        check(offset, len, to.size())?;
        let mut offset = offset;
        for run in self.part(at, len)? {
            self.mapping(&run).copy_to(run.offset, to, offset, run.len);
            offset += run.len;
        }
        Ok(())
    }

    /// Sets `len` bytes from `at` on to zero.
    ///
    /// # Errors
    /// [`GpaError::OutOfRange`]: nothing was written.
    pub fn fill_zero(&self, at: usize, len: usize) -> Result<(), GpaError> {
        for run in self.part(at, len)? {
            self.mapping(&run).fill_zero(run.offset, run.len);
        }
        Ok(())
    }

    /// The `len` bytes from `at` as guest pages of their own.
    ///
    /// # Errors
    /// [`GpaError::OutOfRange`].
    pub fn slice(&self, at: usize, len: usize) -> Result<Self, GpaError> {
        Ok(Self { space: Arc::clone(&self.space), runs: self.part(at, len)?.collect(), len })
    }

    /// The contiguous pieces, in order: a mapping and the bytes of it.
    pub fn runs(&self) -> impl Iterator<Item = (&Mapping, Range<usize>)> {
        self.runs.iter().map(|run| (self.mapping(run), run.offset..run.offset + run.len))
    }

    #[inline]
    fn mapping(&self, run: &Run) -> &Mapping {
        &self.space.regions[run.region].mapping
    }

    /// The runs that make up the `len` bytes from `at`.
    #[inline]
    fn part(&self, at: usize, len: usize) -> Result<impl Iterator<Item = Run>, GpaError> {
        check(at, len, self.len)?;
        let (mut skip, mut left) = (at, len);
        Ok(self.runs.iter().filter_map(move |run| {
            if left == 0 || skip >= run.len {
                skip = skip.saturating_sub(run.len);
                return None;
            }
            let part = Run { region: run.region, offset: run.offset + skip, len: left.min(run.len - skip) };
            left -= part.len;
            skip = 0;
            Some(part)
        }))
    }
}

impl fmt::Debug for GuestPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.addresses()).finish()
    }
}

#[inline]
fn check(at: usize, len: usize, size: usize) -> Result<(), GpaError> {
    if at <= size && len <= size - at { Ok(()) } else { Err(GpaError::OutOfRange { at, len, size }) }
}

/// Takes `maps` kernel mappings off what is left, or none.
pub(crate) fn take_maps(left: &AtomicUsize, maps: usize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(maps)).is_ok()
}
