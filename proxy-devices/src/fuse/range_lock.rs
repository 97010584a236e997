//! Who may change which sectors now.
//!
//! A write that does not begin and end at sectors reads the sectors at its edges, changes them and writes them back.
//! Another write to one of these sectors in between would be lost, so writes to the same sectors go one after the
//! other, in the order in which they came. Writes to different sectors do not know of each other.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The sectors that are being changed or waited for.
#[derive(Debug, Default)]
pub(super) struct RangeLock {
    /// Oldest first. As many as there are requests in flight, which the buffers bound.
    claims: Mutex<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    range: Range<u64>,
    /// Tells equal ranges apart, and wakes the owner when an earlier claim is gone.
    turn: Arc<Notify>,
}

impl RangeLock {
    /// Queues up for `range`; [`Claim::granted`] waits for the turn.
    pub(super) fn claim(self: &Arc<Self>, range: Range<u64>) -> Claim {
        let turn = Arc::new(Notify::new());
        self.claims().push(Entry { range, turn: Arc::clone(&turn) });
        Claim { lock: Arc::clone(self), turn }
    }

    fn claims(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue, given up when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    lock: Arc<RangeLock>,
    turn: Arc<Notify>,
}

impl Claim {
    /// Returns when every earlier claim to any of the bytes is gone.
    pub(super) async fn granted(&self) {
        while !self.is_first() {
            self.turn.notified().await;
        }
    }

    fn is_first(&self) -> bool {
        let claims = self.lock.claims();
        let Some(place) = self.place(&claims) else { return true };
        let range = &claims[place].range;
        claims[..place].iter().all(|earlier| !overlap(&earlier.range, range))
    }

    fn place(&self, claims: &[Entry]) -> Option<usize> {
        claims.iter().position(|entry| Arc::ptr_eq(&entry.turn, &self.turn))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.lock.claims();
        let Some(place) = self.place(&claims) else { return };
        let gone = claims.remove(place);
        for later in claims[place..].iter().filter(|later| overlap(&later.range, &gone.range)) {
            // Stores a permit, so a waiter that looked just before is not missed.
            later.turn.notify_one();
        }
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn is_granted(claim: &Claim) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(claim.granted()).poll(&mut context) == Poll::Ready(())
    }

    #[test]
    fn writes_to_different_sectors_go_together() {
        let lock = Arc::new(RangeLock::default());
        let (one, other) = (lock.claim(0..512), lock.claim(512..1024));
        assert!(is_granted(&one) && is_granted(&other));
    }

    #[test]
    fn writes_to_one_sector_go_in_the_order_in_which_they_came() {
        let lock = Arc::new(RangeLock::default());
        let (first, second, third) = (lock.claim(0..1024), lock.claim(512..1536), lock.claim(512..1024));
        assert!(is_granted(&first) && !is_granted(&second) && !is_granted(&third));
        drop(first);
        assert!(is_granted(&second) && !is_granted(&third), "the third waits for the second as well");
        drop(second);
        assert!(is_granted(&third));
    }

    #[test]
    fn a_claim_that_is_given_up_while_it_waits_holds_nobody_back() {
        let lock = Arc::new(RangeLock::default());
        let (first, second, third) = (lock.claim(0..512), lock.claim(0..1024), lock.claim(512..1024));
        assert!(is_granted(&first) && !is_granted(&third));
        drop(second);
        assert!(is_granted(&third));
        drop((first, third));
        assert!(lock.claims().is_empty());
    }

    #[tokio::test]
    async fn a_waiter_wakes_when_its_turn_comes() {
        let lock = Arc::new(RangeLock::default());
        let first = lock.claim(0..512);
        let second = lock.claim(0..512);
        let waiter = tokio::spawn(async move { second.granted().await });
        tokio::task::yield_now().await;
        drop(first);
        waiter.await.unwrap();
    }
}
