//! Several channels of one controller, so that threads do not stand in line for one pair of rings
//! (`docs/src/protocol/storage.md`, "Conversation").

use std::sync::atomic::{AtomicUsize, Ordering};

use vmbus_channels::{Channel, ChannelError, Device, OpenOptions};
use vmbus_core::storage::Request;

use super::controller::{Controller, Inner, ask};
use crate::storage::DiskError;

impl Controller {
    /// Opens further channels, as far as the provider has them, until there are `channels` in all; gives how many there
    /// are then. Requests go by the channel of the thread that makes them. Can be done once.
    ///
    /// # Errors
    /// [`DiskError::Open`], [`DiskError::Refused`], [`DiskError::Channel`]: the controller goes on with the one it has.
    pub async fn widen(&self, channels: u16) -> Result<usize, DiskError> {
        let inner = &self.inner;
        let count = channels.saturating_sub(1).min(inner.most_sub_channels);
        if count == 0 || inner.more.get().is_some() {
            return Ok(inner.channels().count());
        }
        let request = Request::CreateSubChannels(count);
        loop {
            match ask(&inner.channel, "CREATE_SUB_CHANNELS", &request, inner.version.packet_size()).await {
                Ok(_) => break,
                // Another root is asked as well.
                Err(DiskError::Channel(ChannelError::Interrupted)) => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(known) = &inner.known {
            known.widened(count);
        }
        let mut more = Vec::with_capacity(count.into());
        for index in 1..=count {
            let device = Device::instance(inner.instance).subchannel(index);
            tokio::select! {
                offered = inner.guest.wait_for(device) => offered?,
                // With the primary channel they all go.
                () = inner.channel.closed() => return Err(vmbus_channels::ChannelError::Closed.into()),
            };
            // At another root the primary channel's client asks for them, and they have nothing to say themselves.
            let options = OpenOptions::new().on_resume(async |_| Ok::<_, DiskError>(()));
            let channel = inner.guest.open_with(device, options).await?;
            channel.discard_notices();
            more.push(channel);
        }
        let _ = inner.more.set(more);
        Ok(inner.channels().count())
    }
}

impl Inner {
    pub(super) fn channels(&self) -> impl Iterator<Item = &Channel> {
        std::iter::once(&self.channel).chain(self.more.get().into_iter().flatten())
    }

    /// The same for each request of a thread, as long as it is open.
    #[inline]
    pub(super) fn channel_of_this_thread(&self) -> &Channel {
        match self.more.get() {
            None => &self.channel,
            Some(more) => self.one_of(more),
        }
    }

    fn one_of<'a>(&'a self, more: &'a [Channel]) -> &'a Channel {
        let place = thread_number() % (more.len() + 1);
        let other = place.checked_sub(1).and_then(|place| more.get(place));
        other.filter(|channel| !channel.is_closed()).unwrap_or(&self.channel)
    }
}

/// Threads in the order in which they first asked.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    NUMBER.with(|number| *number)
}
