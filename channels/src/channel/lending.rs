//! Memory beside the rings: a guest lends it to a device for longer than one request, under a name that the device's
//! protocol speaks of.

use std::fmt;

use tokio::sync::oneshot;

use super::{BlockingChannel, Channel};
use crate::buffer::Buffer;
use crate::error::{ChannelError, Error};
use crate::lists::{Borrowed, Lender};

/// Asks the guest's task to lend memory to the device.
pub(crate) type Lend = Box<dyn Fn(Buffer) -> oneshot::Receiver<Result<Lent, Error>> + Send + Sync>;

/// The two ends of lending.
pub(super) enum Lends {
    Guest(Lend),
    Root(Lender),
}

impl Channel {
    pub(crate) fn with_lend(mut self, lend: Lend) -> Self {
        self.lends = Some(Lends::Guest(lend));
        self
    }

    pub(crate) fn with_lender(mut self, lender: Lender) -> Self {
        self.lends = Some(Lends::Root(lender));
        self
    }

    /// Lends `buffer` to the device for as long as the result lives: a page list of this channel.
    ///
    /// # Errors
    /// [`Error::NotPossible`]: this is the root's end, or the buffer is larger than a list can say;
    /// [`Error::Refused`], [`Error::Rescinded`], [`Error::Disconnected`].
    pub async fn lend(&self, buffer: &Buffer) -> Result<Lent, Error> {
        match &self.lends {
            Some(Lends::Guest(lend)) => lend(buffer.clone()).await.map_err(|_| Error::Disconnected)?,
            Some(Lends::Root(_)) | None => Err(Error::NotPossible("a guest lends memory".to_owned())),
        }
    }

    /// The memory that the guest has lent under the name `gpadl`.
    ///
    /// # Errors
    /// [`ChannelError::Protocol`], [`ChannelError::Memory`]: there is no such list, it has several ranges, or names
    /// memory that is not there: the guest's fault. The channel stays open. [`ChannelError::Unsupported`]: this is not
    /// the root's end.
    pub fn borrow_list(&self, gpadl: u32) -> Result<Borrowed, ChannelError> {
        match &self.lends {
            Some(Lends::Root(lender)) => lender.borrow(gpadl, &self.core.side().memory()),
            Some(Lends::Guest(_)) | None => Err(ChannelError::Unsupported("a root borrows memory")),
        }
    }
}

impl BlockingChannel {
    /// As [`Channel::lend`].
    ///
    /// # Errors
    /// As [`Channel::lend`].
    pub fn lend(&self, buffer: &Buffer) -> Result<Lent, Error> {
        crate::block_on::block_on(self.channel.lend(buffer))
    }
}

/// Memory that a device may use. It is torn down when this is dropped, and used for nothing else before the device has
/// let go of it.
pub struct Lent {
    gpadl: u32,
    buffer: Buffer,
    take_back: Option<TakeBack>,
}

/// Tears a list down, and tells who wants to know when it is back.
pub(crate) type TakeBack = Box<dyn FnOnce(Option<oneshot::Sender<()>>) + Send + Sync>;

impl Lent {
    pub(crate) fn new(gpadl: u32, buffer: Buffer, take_back: TakeBack) -> Self {
        Self { gpadl, buffer, take_back: Some(take_back) }
    }

    /// The list's name, for the device.
    pub fn id(&self) -> u32 {
        self.gpadl
    }

    /// The memory.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Tears the list down; returns when the device has let go of the memory, or is gone.
    pub async fn take_back(mut self) {
        let (taker, back) = oneshot::channel();
        self.tear_down(Some(taker));
        let _ = back.await;
    }

    fn tear_down(&mut self, taker: Option<oneshot::Sender<()>>) {
        if let Some(take_back) = self.take_back.take() {
            take_back(taker);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.tear_down(None);
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lent").field("gpadl", &self.gpadl).finish_non_exhaustive()
    }
}
