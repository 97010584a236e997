//! Moving a channel's signals to another processor of the guest.

use tokio::sync::oneshot;

use super::{BlockingChannel, Channel};
use crate::error::Error;

/// Asks for another target processor.
pub(crate) type Retarget = Box<dyn Fn(u32) -> oneshot::Receiver<Result<(), Error>> + Send + Sync>;

impl Channel {
    pub(crate) fn with_retarget(mut self, retarget: Retarget) -> Self {
        self.retarget = Some(retarget);
        self
    }

    /// Has the root's signals come to another event area of this guest, as a driver does whose thread moves to another
    /// processor (MODIFYCHANNEL). Returns when they do; before 5.3 the root does not say so, and signals that still come
    /// to the old area are passed on until the channel closes. None is lost.
    ///
    /// # Errors
    /// [`Error::NotPossible`]: this is the root's end, the version is older than 4.1, there is no such processor or it
    /// serves another channel, or the channel is on the move already. [`Error::Refused`], [`Error::Rescinded`],
    /// [`Error::Disconnected`].
    pub async fn retarget(&self, vp: u32) -> Result<(), Error> {
        let Some(retarget) = &self.retarget else {
            return Err(Error::NotPossible("the guest says where it is signalled".to_owned()));
        };
        retarget(vp).await.map_err(|_| Error::Disconnected)?
    }
}

impl BlockingChannel {
    /// As [`Channel::retarget`].
    ///
    /// # Errors
    /// As [`Channel::retarget`].
    pub fn retarget(&self, vp: u32) -> Result<(), Error> {
        crate::block_on::block_on(self.channel.retarget(vp))
    }
}
