//! Our own requests in flight, by transaction id.

use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;

use crate::buffer::BufferRange;

/// Completion payload, copied out of the ring.
pub type Reply = SmallVec<[u8; 96]>;

/// Buffers that the peer may still access.
pub(crate) type Held = SmallVec<[BufferRange; 1]>;

/// The requests that wait for their completion. Ids are slot index + 1 in the low half and the slot's generation in
/// the high half, so that an id is never 0 and an old one is never taken for a new one.
#[derive(Default)]
pub(crate) struct Replies {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Replies to tagged requests, in the order in which they came.
    tagged: Vec<(u64, Reply)>,
}

struct Slot {
    generation: u32,
    state: State,
}

enum State {
    Free,
    Waiting {
        waker: Option<Waker>,
        _held: Held,
        abandoned: bool,
    },
    /// For whoever collects tagged replies.
    Tagged {
        tag: u64,
        _held: Held,
    },
    Done(Reply),
    /// Nobody knows whether it ran, and it must not run again.
    Interrupted,
}

/// Requests in flight of a channel that is taken up, at most: as many as a ring of many megabytes holds.
const SLOTS_AT_MOST: usize = 1 << 18;

/// The index of the slot that an id names; `None` for 0.
pub(super) fn slot_of(id: u64) -> Option<usize> {
    usize::try_from((id & u64::from(u32::MAX)).checked_sub(1)?).ok()
}

/// The peer completed something that was not in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnknownId;

/// The peer has gone before it completed the request, which must not run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interrupted;

impl Replies {
    /// Takes a slot for a request that gives the peer access to `held`.
    pub(crate) fn start(&mut self, held: Held) -> u64 {
        self.begin(State::Waiting { waker: None, _held: held, abandoned: false })
    }

    /// Takes a slot for a request whose reply goes to [`take_tagged`](Self::take_tagged).
    pub(crate) fn start_tagged(&mut self, tag: u64, held: Held) -> u64 {
        self.begin(State::Tagged { tag, _held: held })
    }

    /// Moves the replies to tagged requests out.
    pub(crate) fn take_tagged(&mut self, into: &mut Vec<(u64, Reply)>) -> usize {
        let count = self.tagged.len();
        into.append(&mut self.tagged);
        count
    }

    fn begin(&mut self, state: State) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, state: State::Free });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[index as usize];
        slot.state = state;
        u64::from(slot.generation) << 32 | u64::from(index + 1)
    }

    /// Requests in flight, abandoned ones included.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn slot(&mut self, id: u64) -> Result<(u32, &mut Slot), UnknownId> {
        let [a, b, c, d, generation @ ..] = id.to_le_bytes();
        let index = u32::from_le_bytes([a, b, c, d]).checked_sub(1).ok_or(UnknownId)?;
        let slot = self.slots.get_mut(index as usize).ok_or(UnknownId)?;
        if slot.generation != u32::from_le_bytes(generation) {
            return Err(UnknownId);
        }
        Ok((index, slot))
    }

    /// What is in flight, as ids and tags, for another channel to wait for; `None` if somebody waits for a reply here.
    pub(crate) fn saved(&self) -> Option<Vec<(u64, u64)>> {
        let mut saved = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            match &slot.state {
                State::Free => {}
                State::Tagged { tag, .. } => {
                    let index = u64::try_from(index).ok()?;
                    saved.push((u64::from(slot.generation) << 32 | (index + 1), *tag));
                }
                State::Waiting { .. } | State::Done(_) | State::Interrupted => return None,
            }
        }
        self.tagged.is_empty().then_some(saved)
    }

    /// Tags of those in flight that have one.
    pub(crate) fn tags(&self) -> Vec<u64> {
        let tag = |slot: &Slot| match slot.state {
            State::Tagged { tag, .. } => Some(tag),
            State::Free | State::Waiting { .. } | State::Done(_) | State::Interrupted => None,
        };
        self.slots.iter().filter_map(tag).collect()
    }

    /// Waits for what another channel has sent. `None`: ids that it cannot have given.
    pub(crate) fn take_up(saved: &[(u64, u64)]) -> Option<Self> {
        let mut replies = Self::default();
        let slots = saved.iter().map(|(id, _)| slot_of(*id)).collect::<Option<Vec<_>>>()?;
        let len = slots.iter().max().map_or(0, |last| last + 1);
        if len > SLOTS_AT_MOST {
            return None;
        }
        replies.slots.resize_with(len, || Slot { generation: 0, state: State::Free });
        for (&index, &(id, tag)) in slots.iter().zip(saved) {
            let slot = &mut replies.slots[index];
            if !matches!(slot.state, State::Free) {
                return None;
            }
            *slot = Slot {
                generation: u32::try_from(id >> 32).ok()?,
                state: State::Tagged { tag, _held: Held::new() },
            };
        }
        let is_free = |index: &u32| matches!(replies.slots[*index as usize].state, State::Free);
        replies.free = (0..u32::try_from(len).ok()?).filter(is_free).collect();
        Some(replies)
    }

    /// Whether there are replies to tagged requests.
    pub(crate) fn has_tagged(&self) -> bool {
        !self.tagged.is_empty()
    }

    /// Whether the reply to this request is for whoever collects tagged replies.
    pub(crate) fn is_tagged(&mut self, id: u64) -> bool {
        self.slot(id).is_ok_and(|(_, slot)| match slot.state {
            State::Tagged { .. } => true,
            State::Free | State::Waiting { .. } | State::Done(_) | State::Interrupted => false,
        })
    }

    /// The peer's completion of request `id`. `true` if it is for whoever collects tagged replies, and not yet told.
    pub(crate) fn complete(&mut self, id: u64, reply: Reply) -> Result<bool, UnknownId> {
        let (index, slot) = self.slot(id)?;
        match &mut slot.state {
            State::Waiting { abandoned: true, .. } => self.release(index),
            State::Tagged { tag, .. } => {
                let tag = *tag;
                self.tagged.push((tag, reply));
                self.release(index);
                return Ok(true);
            }
            State::Waiting { waker, .. } => {
                let waker = waker.take();
                slot.state = State::Done(reply);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Free | State::Done(_) | State::Interrupted => return Err(UnknownId),
        }
        Ok(false)
    }

    /// How request `id` ended, once, if it has.
    pub(crate) fn take(&mut self, id: u64) -> Option<Result<Reply, Interrupted>> {
        let (index, slot) = self.slot(id).ok()?;
        let ended = match &mut slot.state {
            State::Done(reply) => Ok(std::mem::take(reply)),
            State::Interrupted => Err(Interrupted),
            State::Free | State::Waiting { .. } | State::Tagged { .. } => return None,
        };
        self.release(index);
        Some(ended)
    }

    /// The reply, once, if it has come.
    pub(crate) fn take_reply(&mut self, id: u64) -> Option<Reply> {
        match self.slot(id).map(|(_, slot)| &slot.state) {
            Ok(State::Done(_)) => self.take(id)?.ok(),
            Ok(State::Free | State::Waiting { .. } | State::Tagged { .. } | State::Interrupted)
            | Err(UnknownId) => None,
        }
    }

    /// Whether the peer is still to complete request `id`.
    pub(crate) fn is_waiting(&mut self, id: u64) -> bool {
        match self.slot(id).map(|(_, slot)| &slot.state) {
            Ok(State::Waiting { .. } | State::Tagged { .. }) => true,
            Ok(State::Free | State::Done(_) | State::Interrupted) | Err(UnknownId) => false,
        }
    }

    /// Ends request `id`, which the peer will not complete any more.
    pub(crate) fn interrupt(&mut self, id: u64) {
        let Ok((index, slot)) = self.slot(id) else { return };
        match &mut slot.state {
            State::Waiting { abandoned: true, .. } | State::Tagged { .. } => self.release(index),
            State::Waiting { waker, .. } => {
                let waker = waker.take();
                slot.state = State::Interrupted;
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Free | State::Done(_) | State::Interrupted => {}
        }
    }

    /// Ready when [`take`](Self::take) gives the reply; until then `context` is woken when it does.
    pub(crate) fn poll_done(&mut self, id: u64, context: &Context<'_>) -> Poll<()> {
        match self.slot(id).map(|(_, slot)| &mut slot.state) {
            Ok(State::Waiting { waker, .. }) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            Ok(State::Free | State::Tagged { .. } | State::Done(_) | State::Interrupted) | Err(UnknownId) => {
                Poll::Ready(())
            }
        }
    }

    /// Nobody waits for request `id` any more. What it shares stays held until the peer completes it.
    pub(crate) fn abandon(&mut self, id: u64) {
        let Ok((index, slot)) = self.slot(id) else { return };
        match &mut slot.state {
            State::Waiting { waker, abandoned, .. } => {
                *waker = None;
                *abandoned = true;
            }
            State::Done(_) | State::Interrupted => self.release(index),
            State::Free | State::Tagged { .. } => {}
        }
    }

    /// The request was never sent.
    pub(crate) fn cancel(&mut self, id: u64) {
        if let Ok((index, _)) = self.slot(id) {
            self.release(index);
        }
    }

    fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = State::Free;
        self.free.push(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(bytes: &[u8]) -> Reply {
        Reply::from_slice(bytes)
    }

    #[test]
    fn each_request_is_answered_once_and_old_ids_are_strangers() {
        let mut replies = Replies::default();
        let first = replies.start(Held::new());
        let second = replies.start(Held::new());
        assert_ne!(first, 0);
        assert_eq!(replies.take(first), None);
        replies.complete(second, reply(b"two")).unwrap();
        assert!(replies.complete(second, reply(b"again")).is_err());
        assert_eq!(replies.take(second), Some(Ok(reply(b"two"))));
        assert_eq!(replies.take(second), None);

        let third = replies.start(Held::new());
        assert_ne!(third, second, "a slot's next request has another id");
        assert!(replies.complete(second, reply(b"late")).is_err());
        assert!(replies.complete(0, reply(b"")).is_err());
        assert!(replies.complete(u64::MAX, reply(b"")).is_err());
        assert_eq!(replies.in_flight(), 2);
    }

    #[test]
    fn an_abandoned_request_keeps_its_slot_until_the_peer_completes_it() {
        let mut replies = Replies::default();
        let id = replies.start(Held::new());
        replies.abandon(id);
        assert_eq!(replies.in_flight(), 1);
        replies.complete(id, reply(b"")).unwrap();
        assert_eq!(replies.in_flight(), 0);
    }

    #[test]
    fn another_channel_waits_for_what_this_one_sent() {
        let mut before = Replies::default();
        let [first, second, third] = [7, 8, 9].map(|tag| before.start_tagged(tag, Held::new()));
        before.complete(first, reply(b"")).unwrap();
        before.complete(third, reply(b"")).unwrap();
        assert_eq!(before.saved(), None, "somebody has to hear of replies that have come");
        before.take_tagged(&mut Vec::new());
        let fourth = before.start_tagged(10, Held::new());
        let saved = before.saved().unwrap();

        let mut after = Replies::take_up(&saved).unwrap();
        assert_eq!(after.in_flight(), 2);
        assert!(after.complete(first, reply(b"")).is_err(), "it is over");
        after.complete(fourth, reply(b"four")).unwrap();
        after.complete(second, reply(b"two")).unwrap();
        assert!(after.complete(second, reply(b"again")).is_err());
        let mut replies = Vec::new();
        after.take_tagged(&mut replies);
        assert_eq!(replies, [(10, reply(b"four")), (8, reply(b"two"))]);
    }

    #[test]
    fn ids_that_nobody_gave_are_not_waited_for() {
        for wrong in
            [&[(0, 1)][..], &[(1, 1), (1, 2)], &[(1, 1), (1 << 32 | 1, 2)], &[(u64::from(u32::MAX), 1)]]
        {
            assert!(Replies::take_up(wrong).is_none(), "{wrong:?}");
        }
        let mut replies = Replies::default();
        let _ = replies.start(Held::new());
        assert_eq!(replies.saved(), None, "somebody waits for it here");
    }
}
