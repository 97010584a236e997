//! A ring's memory as the ring code wants it: a control page, and data that can be read past its end.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use smallvec::SmallVec;
use vmbus_core::PAGE_SIZE;
use vmbus_ringbuf::{ControlWord, RingMemory};

use crate::gpa::{GpaError, GpaSpace, take_maps};
use crate::raw::{Doubled, Map, Piece, View};

/// A ring of more contiguous runs than this is not worth the kernel mappings, two per run.
const MAX_RUNS: usize = 8;
/// 2 GiB: indices are 32 bits, and a position plus a length must not wrap.
const MAX_DATA_PAGES: usize = (2 << 30) / PAGE_SIZE;

/// One ring: its control page and its data, wherever in the partition's memory the pages are.
///
/// Where the pages are few contiguous runs, the data is mapped twice in a row and no access ever wraps. Otherwise, or
/// when the partition's quota of mappings is used up, accesses go page by page.
#[derive(Debug)]
pub struct RingMapping {
    control: View,
    data: Data,
    size: u32,
}

impl GpaSpace {
    /// The ring whose pages are `pfns`, the control page first.
    ///
    /// # Errors
    /// [`GpaError::NoSuchPage`], [`GpaError::RingSize`]: whoever named the pages.
    pub fn ring(self: &Arc<Self>, pfns: impl Iterator<Item = u64>) -> Result<RingMapping, GpaError> {
        let mut places = Vec::new();
        for pfn in pfns {
            let (region, offset) = self.find(pfn)?;
            places.push(Place { region, offset });
            if places.len() > MAX_DATA_PAGES + 1 {
                return Err(GpaError::RingSize { pages: places.len() });
            }
        }
        let data_pages = places.len().saturating_sub(1);
        let size = u32::try_from(data_pages * PAGE_SIZE).unwrap_or(0);
        if size == 0 {
            return Err(GpaError::RingSize { pages: places.len() });
        }
        let (control, data) = match self.map_twice(&places) {
            Some((control, data)) => (control, data),
            None => {
                let page = |place: &Place| {
                    self.regions()[place.region].mapping.view().slice(place.offset, PAGE_SIZE)
                };
                (page(&places[0]), Data::Pages(places[1..].iter().map(page).collect()))
            }
        };
        Ok(RingMapping { control, data, size })
    }

    /// Control page, data, data again; `None` where that costs more mappings than it may or the system refuses.
    fn map_twice(&self, places: &[Place]) -> Option<(View, Data)> {
        let mut pieces = SmallVec::<[Piece<'_>; 4]>::new();
        for place in places.iter().chain(&places[1..]) {
            let mapping = &self.regions()[place.region].mapping;
            let offset = mapping.file_offset() + place.offset as u64;
            let file = mapping.file().as_fd();
            if let Some(last) = pieces.last_mut()
                && last.file.as_raw_fd() == file.as_raw_fd()
                && last.offset + last.len as u64 == offset
            {
                last.len += PAGE_SIZE;
            } else if pieces.len() == 2 * MAX_RUNS {
                return None;
            } else {
                pieces.push(Piece { file, offset, len: PAGE_SIZE });
            }
        }
        if !take_maps(self.ring_maps(), pieces.len()) {
            return None;
        }
        let taken = Taken { left: Arc::clone(self.ring_maps()), maps: pieces.len() };
        let all = Arc::new(Map::side_by_side(&pieces).ok()?);
        let data = Doubled::new(Arc::clone(&all), PAGE_SIZE)?;
        Some((View::whole(all).slice(0, PAGE_SIZE), Data::Twice { data, _taken: taken }))
    }
}

#[derive(Clone, Copy)]
struct Place {
    region: usize,
    offset: usize,
}

#[derive(Debug)]
enum Data {
    /// The data, then the same data again.
    Twice { data: Doubled, _taken: Taken },
    /// One view per page.
    Pages(Box<[View]>),
}

/// Kernel mappings taken off the partition's quota, given back when the ring goes.
#[derive(Debug)]
struct Taken {
    left: Arc<AtomicUsize>,
    maps: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.left.fetch_add(self.maps, Ordering::Relaxed);
    }
}

impl RingMapping {
    /// Whether the data is mapped twice in a row, so that no access is split.
    pub fn is_mapped_twice(&self) -> bool {
        match self.data {
            Data::Twice { .. } => true,
            Data::Pages(_) => false,
        }
    }
}

impl RingMemory for RingMapping {
    #[inline]
    fn data_size(&self) -> u32 {
        self.size
    }

    #[inline]
    fn load(&self, word: ControlWord, order: Ordering) -> u32 {
        u32::from_le(self.control.word_u32(word.offset()).load(order))
    }

    #[inline]
    fn store(&self, word: ControlWord, value: u32, order: Ordering) {
        self.control.word_u32(word.offset()).store(value.to_le(), order);
    }

    #[inline(always)]
    fn read(&self, at: u32, into: &mut [u8]) {
        match &self.data {
            Data::Twice { data, .. } => data.read(at, into),
            Data::Pages(pages) => read_pages(pages, at as usize, into),
        }
    }

    #[inline(always)]
    fn write(&self, at: u32, from: &[u8]) {
        match &self.data {
            Data::Twice { data, .. } => data.write(at, from),
            Data::Pages(pages) => write_pages(pages, at as usize, from),
        }
    }

    #[inline(always)]
    fn read_u64(&self, at: u32) -> u64 {
        match &self.data {
            Data::Twice { data, .. } => data.read_u64(at),
            Data::Pages(pages) => {
                let (page, offset) = place(pages, at);
                page.read_u64(offset)
            }
        }
    }

    #[inline(always)]
    fn write_u64(&self, at: u32, value: u64) {
        match &self.data {
            Data::Twice { data, .. } => data.write_u64(at, value),
            Data::Pages(pages) => {
                let (page, offset) = place(pages, at);
                page.write_u64(offset, value);
            }
        }
    }

    #[inline]
    fn prefetch_write(&self, at: u32) {
        match &self.data {
            Data::Twice { data, .. } => data.prefetch_write(at),
            Data::Pages(pages) => {
                let (page, offset) = place(pages, at);
                page.prefetch_write(offset);
            }
        }
    }
}

fn place(pages: &[View], at: u32) -> (&View, usize) {
    (&pages[at as usize / PAGE_SIZE % pages.len()], at as usize % PAGE_SIZE)
}

#[inline(never)]
fn read_pages(pages: &[View], at: usize, into: &mut [u8]) {
    let mut rest = into;
    for part in parts(pages, at, rest.len()) {
        let (now, later) = rest.split_at_mut(part.len);
        part.page.read(part.offset, now);
        rest = later;
    }
}

#[inline(never)]
fn write_pages(pages: &[View], at: usize, from: &[u8]) {
    let mut rest = from;
    for part in parts(pages, at, rest.len()) {
        let (now, later) = rest.split_at(part.len);
        part.page.write(part.offset, now);
        rest = later;
    }
}

struct PagePart<'a> {
    page: &'a View,
    offset: usize,
    len: usize,
}

/// Splits an access at page ends; it wraps from the last page to the first.
fn parts(pages: &[View], at: usize, len: usize) -> impl Iterator<Item = PagePart<'_>> {
    assert!(len <= pages.len() * PAGE_SIZE, "{len} bytes do not fit the ring");
    let (mut at, mut left) = (at, len);
    std::iter::from_fn(move || {
        let offset = at % PAGE_SIZE;
        let part = PagePart {
            page: &pages[at / PAGE_SIZE % pages.len()],
            offset,
            len: left.min(PAGE_SIZE - offset),
        };
        at += part.len;
        left -= part.len;
        (part.len > 0).then_some(part)
    })
}
