//! Who gets to see a device that is one guest's at a time.

use std::sync::{Mutex, PoisonError};

use vmbus_channels::Client;

/// Whom a device is shown to.
#[derive(Debug)]
pub(crate) struct Audience {
    who: Who,
    /// The client that a device of one guest belongs to.
    holder: Mutex<Option<u32>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    Everyone,
    /// The first guest that comes, until it leaves; then the next.
    FirstComer,
    /// The guest of this name alone; one at a time, should several have it.
    Named(String),
}

impl Audience {
    /// All guests, at the same time.
    pub(crate) fn everyone() -> Self {
        Self::new(Who::Everyone)
    }

    /// The first guest that comes, until it leaves; then the next.
    pub(crate) fn first_comer() -> Self {
        Self::new(Who::FirstComer)
    }

    /// The guest of this name alone; one at a time, should several have it.
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self::new(Who::Named(name.into()))
    }

    fn new(who: Who) -> Self {
        Self { who, holder: Mutex::new(None) }
    }

    /// Whether the device is shown to `client`, whose it is then, if it is one guest's.
    pub(crate) fn admits(&self, client: &Client) -> bool {
        match &self.who {
            Who::Everyone => true,
            Who::FirstComer => self.take(client.id),
            Who::Named(name) => **name == *client.name && self.take(client.id),
        }
    }

    /// `client` is gone: the next one may have the device.
    pub(crate) fn left(&self, client: &Client) {
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if *holder == Some(client.id) {
            *holder = None;
        }
    }

    fn take(&self, client: u32) -> bool {
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        *holder.get_or_insert(client) == client
    }
}
