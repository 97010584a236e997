//! For sessions that send on their own as well as serve: packets that are sent without waiting and whose replies come by
//! tag, and one wait for whatever comes first.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use vmbus_ringbuf::{Outgoing as Packet, OutgoingKind, TransferRange};

use super::Channel;
use super::core::{Core, lock};
use super::in_flight::Replay;
use super::receiving::Nothing;
use super::replies::Reply;
use super::request::Request;
use super::sending::{Sent, due};
use super::swap::Untouchable;
use crate::error::ChannelError;

impl Channel {
    /// Sends a request that refers to `ranges` of transfer-page set `set_id` if there is room for it now: `false` if not,
    /// and nothing was sent then. Never waits, so that any thread may call this. The reply goes to
    /// [`take_replies`](Self::take_replies) under the name `tag`.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn try_send_transfer_pages(
        &self,
        tag: u64,
        set_id: u16,
        ranges: &[TransferRange],
        payload: &[u8],
    ) -> Result<bool, ChannelError> {
        let packet = transfer_pages(set_id, ranges, payload);
        let sent = self.core.judge(self.core.try_send_tagged(tag, &packet))?;
        Ok(matches!(sent, Sent::Yes))
    }

    /// [`try_send_transfer_pages`](Self::try_send_transfer_pages) that waits for room. Given up while it waits, nothing
    /// was sent.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_tagged_transfer_pages(
        &self,
        tag: u64,
        set_id: u16,
        ranges: &[TransferRange],
        payload: &[u8],
    ) -> Result<(), ChannelError> {
        let packet = transfer_pages(set_id, ranges, payload);
        self.core.send_tagged(tag, &packet).await
    }

    /// Moves the replies to tagged requests that were read from the ring to `into`; gives how many. Reads nothing itself.
    pub fn take_replies(&self, into: &mut Vec<(u64, Reply)>) -> usize {
        lock(&self.core.replies).take_tagged(into)
    }

    /// Tags of requests whose replies have not been read.
    pub fn awaited(&self) -> Vec<u64> {
        lock(&self.core.replies).tags()
    }

    /// Waits for a request, which is added to `into`, or for something else that its user should look at: replies to
    /// tagged requests, a list that is wanted back, a [`stir`](Self::stir). May return early, with nothing. `false`: the
    /// channel has closed, or is being saved.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub async fn recv_or_stirred(&self, into: &mut impl Extend<Request>) -> Result<bool, ChannelError> {
        self.core.recv_or_stirred(into).await
    }

    /// Makes who waits in [`recv_or_stirred`](Self::recv_or_stirred) return, or who does so next.
    pub fn stir(&self) {
        self.core.stir();
    }

    /// [`notify`](Self::notify) that does not wait: `false` if there is no room now.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn try_notify(&self, payload: &[u8]) -> Result<bool, ChannelError> {
        self.core.try_notify(payload)
    }
}

fn transfer_pages<'a>(set_id: u16, ranges: &'a [TransferRange], payload: &'a [u8]) -> Packet<'a> {
    let kind = OutgoingKind::TransferPages { set_id, ranges };
    Packet { kind, transaction_id: 0, completion_requested: true, payload }
}

impl Core {
    /// Tells who waits for whatever comes that something has, now or when it next waits.
    pub(crate) fn stir(&self) {
        self.stirred.store(true, Ordering::Release);
        self.nudge();
    }

    fn try_notify(&self, payload: &[u8]) -> Result<bool, ChannelError> {
        let packet = Packet::in_band(payload);
        let size = self.size_of(&packet)?;
        let sent = self.judge(self.try_send(&packet, size, Replay::Never))?;
        Ok(matches!(sent, Sent::Yes))
    }

    async fn recv_or_stirred(
        self: &Arc<Self>,
        into: &mut impl Extend<Request>,
    ) -> Result<bool, ChannelError> {
        let seen = self.nudges();
        let stirred = self.stirred.load(Ordering::Relaxed) && self.stirred.swap(false, Ordering::Acquire);
        if stirred || lock(&self.replies).has_tagged() {
            return Ok(!self.is_ending());
        }
        let nothing = match self.judge(self.look_for_arrival(into))? {
            Ok(Arrival::Something) => return Ok(true),
            Ok(Arrival::End) => return Ok(false),
            Err(nothing) => nothing,
        };
        let asleep = Instant::now();
        self.park(seen, || self.last_look(&nothing), nothing.due()).await;
        self.slept(asleep);
        Ok(true)
    }

    /// Looks for a request or a tagged reply as long as looking pays.
    fn look_for_arrival(
        self: &Arc<Self>,
        into: &mut impl Extend<Request>,
    ) -> Result<Result<Arrival, Nothing>, ChannelError> {
        let mut incoming = match self.enter() {
            Ok(incoming) => incoming,
            Err(Untouchable::Closed) => return self.arrival_at_the_end(),
            Err(Untouchable::Suspended) => return Ok(Err(Nothing::NoRoot)),
        };
        let mut spinner = incoming.spinner.clone();
        let (tagged, mut looks, mut nothing) = (incoming.tagged, 0, Nothing::Empty);
        let found = spinner.look(|| {
            if self.is_ending() {
                return Some(self.arrival_at_the_end());
            }
            looks += 1;
            match self.next_request(&mut incoming) {
                Ok(Ok(request)) => {
                    into.extend([request]);
                    Some(Ok(Ok(Arrival::Something)))
                }
                Ok(Err(_)) if incoming.tagged != tagged => Some(Ok(Ok(Arrival::Something))),
                Ok(Err(why)) => {
                    nothing = why;
                    self.publish_while_looking(&mut incoming, looks).err().map(Err)
                }
                Err(error) => Some(Err(error)),
            }
        });
        incoming.spinner = spinner;
        self.leave(incoming)?;
        found.unwrap_or(Ok(Err(nothing)))
    }

    fn arrival_at_the_end(&self) -> Result<Result<Arrival, Nothing>, ChannelError> {
        if self.is_suspended() {
            return Ok(Err(Nothing::NoRoot));
        }
        self.closed_request().map(|_| Ok(Arrival::End))
    }

    async fn send_tagged(self: &Arc<Self>, tag: u64, packet: &Packet<'_>) -> Result<(), ChannelError> {
        let size = self.size_of(packet)?;
        loop {
            let seen = self.nudges();
            match self.judge(self.try_send_tagged(tag, packet))? {
                Sent::Yes => return Ok(()),
                Sent::NoRoom => self.park(seen, || self.has_room(size), pending()).await,
                Sent::Held(hold) => self.park(seen, || self.is_closed(), due(hold)).await,
            }
        }
    }
}

/// What there is to look at.
enum Arrival {
    Something,
    End,
}
