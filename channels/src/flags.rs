//! Which channels a signal is for that arrives where several channels' signals do.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::channel::Core;

/// Channels by event flag or connection id. Guests choose both where they may, the same for several channels if they
/// like: then all of them look.
pub(crate) struct Listeners<K>(HashMap<K, SmallVec<[Arc<Core>; 1]>>);

impl<K: Copy + Eq + Hash> Listeners<K> {
    pub(crate) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Nobody is to be told of anything.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// `core` is to be told of `key`; once.
    pub(crate) fn add(&mut self, key: K, core: &Arc<Core>) {
        let listeners = self.0.entry(key).or_default();
        if !listeners.iter().any(|listener| Arc::ptr_eq(listener, core)) {
            listeners.push(Arc::clone(core));
        }
    }

    /// `core` is not to be told of `key` any more.
    pub(crate) fn remove(&mut self, key: K, core: &Arc<Core>) {
        if let Some(listeners) = self.0.get_mut(&key) {
            listeners.retain(|listener| !Arc::ptr_eq(listener, core));
            if listeners.is_empty() {
                self.0.remove(&key);
            }
        }
    }

    /// Those that are to be told of `key`.
    pub(crate) fn of(&self, key: K) -> &[Arc<Core>] {
        self.0.get(&key).map_or(&[], |listeners| listeners)
    }
}
