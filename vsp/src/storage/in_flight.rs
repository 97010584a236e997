//! Lets somebody wait for what was taken before.
//!
//! A request that finishes at once is never seen here. One that waits for its medium holds a [`Ticket`] from the
//! moment it is taken until it has ended, well or badly; [`InFlight::earlier`] ends when every ticket handed out
//! before the call is gone. Later ones hold nobody up, however many there are. A disk's writes are counted so for its
//! flushes, a guest's commands for its resets.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Requests that have been taken and have not ended.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    flights: Mutex<Flights>,
    landed: Notify,
}

#[derive(Debug, Default)]
struct Flights {
    next: u64,
    in_flight: BTreeSet<u64>,
}

/// A request in flight; ends when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    order: Arc<InFlight>,
    number: u64,
}

impl InFlight {
    /// Notes a request that does not finish at once.
    pub(super) fn take_off(self: &Arc<Self>) -> Ticket {
        let mut flights = self.flights();
        let number = flights.next;
        flights.next += 1;
        flights.in_flight.insert(number);
        Ticket { order: Arc::clone(self), number }
    }

    /// Ends when the last of the requests in flight now has.
    pub(super) fn earlier(self: &Arc<Self>) -> impl Future<Output = ()> + Send + 'static {
        let before = self.flights().next;
        let order = Arc::clone(self);
        async move {
            loop {
                let mut landed = std::pin::pin!(order.landed.notified());
                // Listening starts before the look, so that a landing in between is not missed.
                landed.as_mut().enable();
                if order.flights().in_flight.first().is_none_or(|&first| first >= before) {
                    return;
                }
                landed.await;
            }
        }
    }

    /// Whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.flights().in_flight.is_empty()
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.order.flights().in_flight.remove(&self.number);
        self.order.landed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    fn poll(future: &mut (impl Future<Output = ()> + Unpin)) -> Poll<()> {
        std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_flush_waits_for_the_writes_before_it_and_for_no_other() {
        let order = Arc::new(InFlight::default());
        let (first, second) = (order.take_off(), order.take_off());
        let mut flush = Box::pin(order.earlier());
        let later = order.take_off();
        assert!(poll(&mut flush).is_pending());
        drop(second);
        assert!(poll(&mut flush).is_pending());
        drop(first);
        assert!(poll(&mut flush).is_ready());
        let mut next_flush = Box::pin(order.earlier());
        assert!(poll(&mut next_flush).is_pending());
        drop(later);
        assert!(poll(&mut next_flush).is_ready());
    }
}
