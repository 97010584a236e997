//! An open channel handed over to another root, or to this one later: its rings stay where they are, its session says
//! what it has to remember.
//!
//! Nobody sees a request twice: those that were taken end here, before the rings are handed over, and those that were
//! not stay in the ring.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use vmbus_partition::RingMapping;
use vmbus_ringbuf::{Consumer, Producer, SavedConsumer, SavedProducer, TakeUpError};

use super::Channel;
use super::core::{Core, Limits, lock};
use super::replies::Replies;
use super::side::Side;
use super::swap::{Phase, Swapped};

/// What outlives the handles of an open channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedChannel {
    /// What the session said.
    pub(crate) state: Bytes,
    /// The ring from the peer.
    pub(crate) incoming: SavedConsumer,
    /// The ring to the peer.
    pub(crate) outgoing: SavedProducer,
    /// Ids and tags of requests that the peer has not answered.
    pub(crate) awaited: Vec<(u64, u64)>,
}

/// Whether a channel can have sent these requests, by ids and tags, and wait for them.
pub(crate) fn are_awaited(requests: &[(u64, u64)]) -> bool {
    Replies::take_up(requests).is_some()
}

impl Channel {
    /// Whether the channel is being saved: [`recv`](Self::recv) gives `None` although it is open. The session answers
    /// the requests it has, gives its state to [`save_state`](Self::save_state) and returns `Ok`; requests that other
    /// tasks answer are waited for. One that returns without cannot be saved: its device is withdrawn from this
    /// guest and offered again after the restore. Packets that were sent with a tag may be unanswered: their replies come
    /// to the next session, under the same tags.
    pub fn is_saving(&self) -> bool {
        self.core().is_saving()
    }

    /// What [`Provider::restore`](crate::Provider::restore) will be given in place of this session. Counts once.
    pub fn save_state(&self, state: impl Into<Bytes>) {
        let _ = self.core().session_state.set(state.into());
    }
}

impl Core {
    /// The channel of another root, where that one has left it.
    pub(crate) fn take_up(
        side: Arc<Side>,
        area: u32,
        (incoming, outgoing): (RingMapping, RingMapping),
        limits: Limits,
        saved: &SavedChannel,
    ) -> Result<Arc<Self>, TakeUpError> {
        let incoming = Consumer::take_up(incoming, saved.incoming)?;
        let outgoing = Producer::take_up(outgoing, saved.outgoing)?;
        let core = Self::with_rings(side, area, incoming, outgoing, limits)?;
        // Checked when it was decoded: what is in the process already was never encoded.
        *lock(&core.replies) = Replies::take_up(&saved.awaited).unwrap_or_default();
        Ok(core)
    }

    /// Tells the session to end, with what it has to remember.
    pub(crate) fn begin_saving(&self) {
        if self.turn(Phase::Open, Phase::Saving) {
            self.nudge();
        }
    }

    /// The session's handle is gone: the channel closes, unless it was saved.
    pub(super) fn let_go(&self) {
        if !(self.is_saving() && self.session_state.get().is_some()) {
            self.close();
        }
    }

    pub(crate) fn is_saving(&self) -> bool {
        self.phase.load(Ordering::Acquire) == Phase::Saving as u8
    }

    /// What is left when the session has ended: waits for requests that others answer. `None` if the session has not
    /// said what it has to remember, the channel was closed meanwhile, or something of it is in private memory.
    pub(crate) async fn saved(&self) -> Option<SavedChannel> {
        let state = self.session_state.get()?.clone();
        loop {
            let seen = self.nudges();
            if !self.is_saving() {
                return None;
            }
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                break;
            }
            self.nudged(seen).await;
        }
        let incoming = lock(&self.incoming).saved()?;
        let outgoing = lock(&self.outgoing).saved();
        let awaited = lock(&self.replies).saved()?;
        Some(SavedChannel { state, incoming, outgoing, awaited })
    }
}
