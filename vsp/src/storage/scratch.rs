//! Private memory in the shape of guest pages, for commands whose bytes do not come from the guest as they are.

use std::io;
use std::sync::Arc;

use vmbus_partition::{GpaSpace, GuestPages, Mapping, Region};

/// Memory of our own that a backend can read into and write from.
pub(in crate::storage) struct Scratch {
    mapping: Mapping,
    pages: GuestPages,
}

impl Scratch {
    /// Zeroed memory of `length` bytes.
    pub(in crate::storage) fn new(length: usize) -> io::Result<Self> {
        let mapping = Mapping::anonymous(length).map_err(io::Error::other)?;
        let region = Region { gpa: 0, domain: 0, mapping: mapping.clone() };
        let space = Arc::new(GpaSpace::new(vec![region], 0).map_err(io::Error::other)?);
        let pages = space.span(0, length).map_err(io::Error::other)?;
        Ok(Self { mapping, pages })
    }

    /// The memory.
    pub(in crate::storage) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The first `length` bytes as guest pages.
    pub(in crate::storage) fn pages(&self, length: usize) -> io::Result<GuestPages> {
        self.pages.slice(0, length).map_err(io::Error::other)
    }
}
