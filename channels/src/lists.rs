//! Page lists beside those of the rings: memory of a guest that a device uses for as long as the guest lets it
//! (`docs/src/protocol/control.md`, "Server: page lists").
//!
//! The partition's task notes which lists there are; a session borrows those that its protocol names. A list that the
//! guest wants back is torn down when its session has let go of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmbus_core::pages::PageRanges;
use vmbus_partition::{GpaSpace, GuestPages};

use crate::error::ChannelError;

/// Channel and name of a list.
type Name = (u32, u32);

/// The page lists of one partition. As many as the server's quota allows.
#[derive(Default)]
pub(crate) struct Lists(Mutex<HashMap<Name, List>>);

struct List {
    pages: Arc<PageRanges>,
    borrowers: usize,
    wanted_back: Arc<AtomicBool>,
}

impl Lists {
    pub(crate) fn add(&self, relid: u32, gpadl: u32, pages: Arc<PageRanges>) {
        let list = List { pages, borrowers: 0, wanted_back: Arc::default() };
        self.lists().insert((relid, gpadl), list);
    }

    /// The guest wants a list back. `true`: nobody uses it any more, else its last borrower will say so.
    pub(crate) fn recall(&self, relid: u32, gpadl: u32) -> bool {
        match self.lists().entry((relid, gpadl)) {
            Entry::Occupied(list) if list.get().borrowers > 0 => {
                list.get().wanted_back.store(true, Ordering::Release);
                false
            }
            Entry::Occupied(list) => {
                list.remove();
                true
            }
            Entry::Vacant(_) => true,
        }
    }

    /// Whether that was the last borrower of a list that is wanted back.
    fn give_back(&self, name: Name) -> bool {
        let mut lists = self.lists();
        let Entry::Occupied(mut list) = lists.entry(name) else { return false };
        list.get_mut().borrowers = list.get().borrowers.saturating_sub(1);
        let over = list.get().borrowers == 0 && list.get().wanted_back.load(Ordering::Acquire);
        if over {
            list.remove();
        }
        over
    }

    fn lists(&self) -> MutexGuard<'_, HashMap<Name, List>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a channel of the root finds the lists that its guest has made for it.
#[derive(Clone)]
pub(crate) struct Lender {
    pub(crate) lists: Arc<Lists>,
    pub(crate) relid: u32,
    /// Says that a list is not used any more, by its name.
    pub(crate) released: Arc<dyn Fn(u32) + Send + Sync>,
}

impl Lender {
    pub(crate) fn borrow(&self, gpadl: u32, memory: &Arc<GpaSpace>) -> Result<Borrowed, ChannelError> {
        let unusable = |why: &str| ChannelError::Protocol(format!("page list {gpadl} {why}"));
        let mut lists = self.lists.lists();
        let list = lists.get_mut(&(self.relid, gpadl)).ok_or_else(|| unusable("is not there"))?;
        if list.wanted_back.load(Ordering::Acquire) {
            return Err(unusable("is wanted back"));
        }
        let mut ranges = list.pages.ranges();
        let (Some(range), None) = (ranges.next(), ranges.next()) else {
            return Err(unusable("has more than one range"));
        };
        let pages = memory.pages(range)?;
        list.borrowers += 1;
        let wanted_back = Arc::clone(&list.wanted_back);
        Ok(Borrowed { pages, wanted_back, gpadl, lender: self.clone() })
    }
}

/// Memory that a guest lends its device under a name. Whoever has it should drop it when it
/// [is wanted back](Self::is_wanted_back): the guest does not get its memory before.
pub struct Borrowed {
    pages: GuestPages,
    wanted_back: Arc<AtomicBool>,
    gpadl: u32,
    lender: Lender,
}

impl Borrowed {
    /// The guest's name for it.
    pub fn id(&self) -> u32 {
        self.gpadl
    }

    /// Whether the guest has torn the list down, or the channel is ending.
    #[inline]
    pub fn is_wanted_back(&self) -> bool {
        self.wanted_back.load(Ordering::Acquire)
    }
}

impl Deref for Borrowed {
    type Target = GuestPages;

    fn deref(&self) -> &GuestPages {
        &self.pages
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if self.lender.lists.give_back((self.lender.relid, self.gpadl)) {
            (self.lender.released)(self.gpadl);
        }
    }
}

impl fmt::Debug for Borrowed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Borrowed").field("gpadl", &self.gpadl).finish_non_exhaustive()
    }
}
