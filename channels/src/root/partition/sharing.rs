//! What a partition shares over which channel, in bytes.

use std::collections::HashMap;
use std::sync::Arc;

use vmbus_core::server::{AskId, ServerInput};

use super::{Command, Partition};
use crate::lists::Lender;

/// A page list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum List {
    /// One that policy decides about.
    Asked(AskId),
    /// One that the device may use.
    Made { relid: u32, gpadl: u32 },
}

/// The sums, kept so that asking for one does not grow with how many lists there are. As many entries as the server
/// holds questions and lists, which its quotas bound.
#[derive(Debug, Default)]
pub(super) struct Shares {
    lists: HashMap<List, (u32, u64)>,
    held: HashMap<u32, u64>,
}

impl Shares {
    /// Bytes that are shared over a channel, or about to be.
    pub(super) fn held(&self, relid: u32) -> u64 {
        self.held.get(&relid).copied().unwrap_or(0)
    }

    pub(super) fn add(&mut self, list: List, relid: u32, bytes: u64) {
        self.remove(list);
        self.lists.insert(list, (relid, bytes));
        *self.held.entry(relid).or_default() += bytes;
    }

    pub(super) fn remove(&mut self, list: List) {
        let Some((relid, bytes)) = self.lists.remove(&list) else { return };
        if let Some(held) = self.held.get_mut(&relid) {
            *held -= bytes;
            if *held == 0 {
                self.held.remove(&relid);
            }
        }
    }
}

impl Partition {
    /// The guest wants a list back: a session that has it is told, and says when it has not.
    pub(super) fn recall_list(&mut self, relid: u32, gpadl: u32) {
        if self.lists.recall(relid, gpadl) {
            self.list_released(relid, gpadl);
        } else if let Some(channel) = self.open.get(&relid) {
            channel.core.stir();
        }
    }

    pub(super) fn list_released(&mut self, relid: u32, gpadl: u32) {
        self.shares.remove(List::Made { relid, gpadl });
        self.server.handle(ServerInput::GpadlReleased { relid, gpadl });
    }

    /// Where the session of a channel finds its lists.
    pub(super) fn lender(&self, relid: u32) -> Lender {
        let commands = self.commands.clone();
        let released = move |gpadl| _ = commands.send(Command::ListReleased { relid, gpadl });
        Lender { lists: Arc::clone(&self.lists), relid, released: Arc::new(released) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_kept_by_channel_and_vanish_with_the_last_list() {
        let mut shares = Shares::default();
        shares.add(List::Asked(AskId(1)), 7, 4096);
        shares.add(List::Made { relid: 7, gpadl: 1 }, 7, 8192);
        shares.add(List::Made { relid: 8, gpadl: 1 }, 8, 1);
        assert_eq!((shares.held(7), shares.held(8), shares.held(9)), (12288, 1, 0));
        shares.remove(List::Asked(AskId(1)));
        shares.remove(List::Asked(AskId(1)));
        assert_eq!(shares.held(7), 8192);
        shares.remove(List::Made { relid: 7, gpadl: 1 });
        shares.remove(List::Made { relid: 8, gpadl: 1 });
        assert!(shares.held.is_empty() && shares.lists.is_empty());
    }
}
