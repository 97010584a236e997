//! What saved servers and saved clients have in common, with the way into the encoding and, checked, back.

use alloc::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use crate::message::{Payload, UserDefined};
use crate::pages::{GpadlBuilder, PageRanges};
use crate::{Guid, server};

/// A variant that says nothing more.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Nothing {}

/// A message slot.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Address {
    #[prost(uint32, tag = "1")]
    pub(crate) vp: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) sint: u32,
}

/// Guest-physical addresses of both monitor pages.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MonitorPages {
    #[prost(uint64, tag = "1")]
    pub(crate) parent_to_child: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) child_to_parent: u64,
}

impl From<server::MonitorPages> for MonitorPages {
    fn from(pages: server::MonitorPages) -> Self {
        let server::MonitorPages { parent_to_child, child_to_parent } = pages;
        Self { parent_to_child, child_to_parent }
    }
}

/// As they were saved: what may be in them is for whoever restores them to say.
impl From<&MonitorPages> for server::MonitorPages {
    fn from(saved: &MonitorPages) -> Self {
        let MonitorPages { parent_to_child, child_to_parent } = *saved;
        Self { parent_to_child, child_to_parent }
    }
}

/// The words of page ranges, complete or not.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Pages {
    #[prost(uint32, tag = "1")]
    pub(crate) range_count: u32,
    /// As they are on the wire.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) words: Vec<u8>,
    /// What the header stated, of a list that is not complete.
    #[prost(uint32, tag = "3")]
    pub(crate) stated: u32,
}

impl Pages {
    pub(crate) fn complete(pages: &PageRanges) -> Self {
        Self { range_count: pages.range_count().into(), words: pages.as_bytes().into(), stated: 0 }
    }

    pub(crate) fn half_built(builder: &GpadlBuilder) -> Self {
        let (stated, range_count) = builder.announced();
        Self { range_count: range_count.into(), words: builder.received().into(), stated: stated.into() }
    }

    /// The complete list, if these words are one and no more.
    pub(crate) fn restore(&self) -> Result<PageRanges, &'static str> {
        const WRONG: &str = "words that are no page list";
        let range_count = u16::try_from(self.range_count).map_err(|_| WRONG)?;
        let [low, high, ..] = (self.words.len() as u64).to_le_bytes();
        let stated = u16::from_le_bytes([low, high]);
        let mut builder = GpadlBuilder::new(stated, range_count, self.words.len() / 8).map_err(|_| WRONG)?;
        let pages = builder.push(&self.words).ok().flatten().ok_or(WRONG)?;
        if pages.as_bytes().len() == self.words.len() { Ok(pages) } else { Err(WRONG) }
    }

    /// The list of which words are missing.
    pub(crate) fn restore_half_built(&self, quota: usize) -> Result<GpadlBuilder, &'static str> {
        const WRONG: &str = "words that are no beginning of a page list";
        let stated = u16::try_from(self.stated).map_err(|_| WRONG)?;
        let range_count = u16::try_from(self.range_count).map_err(|_| WRONG)?;
        let mut builder = GpadlBuilder::new(stated, range_count, quota).map_err(|_| WRONG)?;
        match builder.push(&self.words) {
            Ok(None) if builder.received() == self.words => Ok(builder),
            Ok(_) | Err(_) => Err(WRONG),
        }
    }
}

/// A GUID is saved as its 16 wire bytes; none at all are all zeros.
pub(crate) fn guid(bytes: &[u8]) -> Result<Guid, &'static str> {
    match <[u8; 16]>::try_from(bytes) {
        Ok(bytes) => Ok(Guid::from_wire(bytes)),
        Err(_) if bytes.is_empty() => Ok(Guid::ZERO),
        Err(_) => Err("a GUID of another length"),
    }
}

/// Zeros at the end are not saved.
pub(crate) fn trimmed(user_defined: &UserDefined) -> Vec<u8> {
    let used = user_defined.0.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    user_defined.0[..used].into()
}

pub(crate) fn user_defined(bytes: &[u8]) -> Result<UserDefined, &'static str> {
    if bytes.len() > size_of::<UserDefined>() {
        return Err("more user-defined bytes than there can be");
    }
    Ok(UserDefined::new(bytes))
}

/// A message's structure as it is on the wire. One that was shorter then has zeros where it has grown.
pub(crate) fn structure<T: FromBytes + IntoBytes>(bytes: &[u8]) -> T {
    let mut structure = T::new_zeroed();
    for (place, &byte) in structure.as_mut_bytes().iter_mut().zip(bytes) {
        *place = byte;
    }
    structure
}

pub(crate) fn payload(bytes: &[u8]) -> Result<Payload, &'static str> {
    Payload::new(bytes).ok_or("more bytes than a message can have")
}

pub(crate) fn narrow<T: TryFrom<u32>>(value: u32) -> Result<T, &'static str> {
    T::try_from(value).map_err(|_| "a number that is too large")
}
