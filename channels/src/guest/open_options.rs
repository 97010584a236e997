//! How a guest opens a channel.

use vmbus_core::message::UserDefined;

/// How a guest opens a channel. The default takes everything as the guest was set up.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// `None`: as the guest was set up.
    pub(super) ring_pages: Option<usize>,
    pub(super) user_data: UserDefined,
}

impl OpenOptions {
    /// The usual way.
    pub fn new() -> Self {
        Self::default()
    }

    /// Data pages of each of the two rings, at least 1;
    /// [`GuestBuilder::ring_pages`](crate::GuestBuilder::ring_pages) without this.
    pub fn ring_pages(mut self, pages: usize) -> Self {
        self.ring_pages = Some(pages.max(1));
        self
    }

    /// Bytes that the device protocol gives a meaning; zeros without this.
    pub fn user_data(mut self, bytes: UserDefined) -> Self {
        self.user_data = bytes;
        self
    }
}
