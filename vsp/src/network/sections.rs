//! The receive buffer: which of its sections are free, which the guest has, and what is written into them.
//!
//! Sections go to the guest in chains, one for each packet; the guest gives a chain back by completing the packet, and
//! the channel sees to it that it does so once. A chain is named by its first section and by which buffer it is of, so
//! that what comes back late to another buffer is nobody's.

use std::collections::HashSet;

use vmbus_core::network::nvsp::ReceiveSection;

use super::memory::SharedBuffer;

/// Sections that frames leave to what is said about the device.
pub(super) const KEPT_FOR_CONTROL: usize = 8;
/// The end of a chain.
const NONE: u32 = u32::MAX;

/// The sections of one receive buffer.
#[derive(Debug)]
pub(super) struct Sections {
    memory: SharedBuffer,
    section_size: u32,
    /// For what is asked most: the section that was used last is the likeliest to be in a cache.
    free: Vec<u32>,
    /// The next in its chain, by section.
    next: Vec<u32>,
    /// The channel that a chain was sent on, by its first section.
    sent_on: Vec<Option<u16>>,
    generation: u32,
}

/// Sections on their way to the guest, in the order in which they were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    first: u32,
    last: u32,
    len: u32,
}

impl Chain {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE, len: 0 };

    pub(super) fn len(self) -> usize {
        self.len as usize
    }
}

impl Sections {
    /// All sections of a buffer, free. `generation` is one that no earlier buffer of this guest had.
    pub(super) fn new(memory: SharedBuffer, section: &ReceiveSection, generation: u32) -> Self {
        let count = section.pieces.get();
        Self {
            memory,
            section_size: section.piece_size.get(),
            free: (0..count).rev().collect(),
            next: vec![NONE; count as usize],
            sent_on: vec![None; count as usize],
            generation,
        }
    }

    pub(super) fn memory(&self) -> &SharedBuffer {
        &self.memory
    }

    pub(super) fn section_size(&self) -> usize {
        self.section_size as usize
    }

    /// Sections that the guest does not have.
    #[inline]
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes a free section to the end of a chain; gives where it begins in the buffer.
    #[inline]
    pub(super) fn take(&mut self, chain: &mut Chain) -> Option<u32> {
        let section = self.free.pop()?;
        self.next[section as usize] = NONE;
        match chain.first {
            NONE => chain.first = section,
            _ => self.next[chain.last as usize] = section,
        }
        chain.last = section;
        chain.len += 1;
        Some(section * self.section_size)
    }

    /// The chain goes to the guest on this channel: its name there.
    #[inline]
    pub(super) fn sent(&mut self, chain: Chain, channel: u16) -> u64 {
        self.sent_on[chain.first as usize] = Some(channel);
        u64::from(self.generation) << 32 | u64::from(chain.first)
    }

    /// A chain that was not sent after all.
    #[inline]
    pub(super) fn put_back(&mut self, chain: Chain) {
        if chain.first != NONE {
            self.sent_on[chain.first as usize] = None;
            self.free_from(chain.first);
        }
    }

    /// The guest has given back the chain of this name; how many sections that were.
    #[inline]
    pub(super) fn came_back(&mut self, name: u64) -> usize {
        let [a, b, c, d, generation @ ..] = name.to_le_bytes();
        let first = u32::from_le_bytes([a, b, c, d]);
        if u32::from_le_bytes(generation) != self.generation {
            return 0;
        }
        match self.sent_on.get_mut(first as usize).and_then(Option::take) {
            Some(_) => self.free_from(first),
            None => 0,
        }
    }

    fn free_from(&mut self, first: u32) -> usize {
        let (mut section, before) = (first, self.free.len());
        // No longer than there are sections, as none is in two chains.
        while let Some(next) = self.next.get_mut(section as usize) {
            self.free.push(section);
            section = std::mem::replace(next, NONE);
        }
        self.free.len() - before
    }

    /// Chains that the guest has: the channel of each, and its sections.
    pub(super) fn with_guest(&self) -> Vec<(u16, Vec<u32>)> {
        let sent = self.sent_on.iter().zip(0..).filter_map(|(channel, first)| Some(((*channel)?, first)));
        let chain = |(channel, first)| {
            let sections = std::iter::successors(Some(first), |section: &u32| {
                self.next.get(*section as usize).copied().filter(|next| *next != NONE)
            });
            (channel, sections.collect())
        };
        sent.map(chain).collect()
    }

    /// Gives the guest chains that it has had before; for sections of which none was taken yet. `false`: they cannot be.
    pub(super) fn give_again(&mut self, chains: &[(u16, Vec<u32>)]) -> bool {
        let mut free = vec![true; self.next.len()];
        for (channel, sections) in chains {
            for section in sections {
                match free.get_mut(*section as usize) {
                    Some(free @ true) => *free = false,
                    Some(false) | None => return false,
                }
            }
            let [first, ..] = sections[..] else { return false };
            self.sent_on[first as usize] = Some(*channel);
            for (section, next) in sections.iter().zip(&sections[1..]) {
                self.next[*section as usize] = *next;
            }
        }
        self.free.retain(|section| free[*section as usize]);
        true
    }

    /// Of the chains sent on a channel, those not among `names` are not with the guest any more.
    pub(super) fn keep_only(&mut self, channel: u16, names: &[u64]) {
        let names: HashSet<u64> = names.iter().copied().collect();
        for first in 0..u32::try_from(self.sent_on.len()).unwrap_or(0) {
            let name = u64::from(self.generation) << 32 | u64::from(first);
            if self.sent_on[first as usize] == Some(channel) && !names.contains(&name) {
                self.came_back(name);
            }
        }
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }
}
