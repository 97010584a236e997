//! How an open channel outlives the root at its other end.
//!
//! While there is no root the channel is *suspended*: whoever sends or receives waits, and nobody touches the rings. A
//! channel of the next root, whose rings lie in the same pages, then lends its rings and its place on the link to this
//! one: all requests that nobody answered are sent again ahead of all others, in their order.
//!
//! Both rings change hands under both their locks, so each sender and receiver is wholly before or wholly after. Who
//! sleeps is nudged after each change, and looks again.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::{Core, Phase, lock};
use super::in_flight::InFlight;
use super::sending::State;
use crate::error::ChannelError;

impl Core {
    /// Keeps from here on what it takes to send requests again.
    pub(crate) fn survive_roots(&self) {
        lock(&self.outgoing).in_flight = Some(Box::default());
    }

    /// Whether it waits for another root.
    pub(super) fn is_suspended(&self) -> bool {
        self.phase.load(Ordering::Acquire) == Phase::Suspended as u8
    }

    /// Whether it keeps that.
    pub(crate) fn survives_roots(&self) -> bool {
        lock(&self.outgoing).in_flight.is_some()
    }

    /// Nobody touches the rings from here on, until [`take_over`](Self::take_over) or the end. `false`: it is closed.
    pub(crate) fn suspend(&self) -> bool {
        let suspended = self.turn(Phase::Open, Phase::Suspended);
        if suspended {
            // Whoever has the locks is not looking any more when we get them.
            drop(lock(&self.incoming));
            let mut outgoing = lock(&self.outgoing);
            if outgoing.state != State::Shut {
                outgoing.state = State::Suspended;
            }
            drop(outgoing);
            self.wait.has_nobody();
            self.nudge();
        }
        suspended
    }

    /// Takes what the root had answered before it went. Nobody may write the rings any more.
    ///
    /// # Errors
    /// [`ChannelError::Ring`], [`ChannelError::Protocol`]: it had broken the rules.
    pub(crate) fn take_last_replies(self: &Arc<Self>) -> Result<(), ChannelError> {
        let result = self.drain();
        self.nudge();
        result
    }

    /// Goes on with the rings of `fresh`, a channel of the next root that nobody uses any more.
    ///
    /// # Errors
    /// [`ChannelError::Device`]: `fresh` has requests under way, whose answers nobody would understand.
    pub(crate) fn take_over(self: &Arc<Self>, fresh: &Arc<Self>) -> Result<(), ChannelError> {
        fresh.close();
        let unfinished = lock(&fresh.replies).in_flight() > 0 || fresh.has_requests();
        if unfinished {
            return Err(ChannelError::Device("its device left requests of the greeting unanswered".into()));
        }
        let (mut incoming, mut outgoing) = (lock(&self.incoming), lock(&self.outgoing));
        let (mut fresh_incoming, mut fresh_outgoing) = (lock(&fresh.incoming), lock(&fresh.outgoing));

        let epoch = outgoing.epoch.wrapping_add(1);
        std::mem::swap(&mut *incoming, &mut *fresh_incoming);
        std::mem::swap(&mut *outgoing, &mut *fresh_outgoing);
        std::mem::swap(&mut incoming.spinner, &mut fresh_incoming.spinner);
        (incoming.epoch, outgoing.epoch) = (epoch, epoch);
        let deaf = self.deaf.load(Ordering::Relaxed);
        for request in std::mem::take(&mut incoming.queued) {
            if request.wants_completion() || !deaf {
                incoming.queued.push_back(request.rehome(self, epoch));
            }
        }

        let mut in_flight: Box<InFlight> = fresh_outgoing.in_flight.take().unwrap_or_default();
        let mut replies = lock(&self.replies);
        for id in in_flight.begin_again(|id| replies.is_waiting(id)) {
            replies.interrupt(id);
        }
        drop(replies);
        outgoing.in_flight = Some(in_flight);

        self.wait.goes_on_at(&fresh.wait);
        outgoing.state =
            if self.turn(Phase::Suspended, Phase::Open) { State::CatchingUp } else { State::Shut };
        // Requests of the old root that nobody has taken hold on to this channel, and are dropped without the locks.
        let old = std::mem::take(&mut fresh_incoming.queued);
        drop((incoming, outgoing, fresh_incoming, fresh_outgoing));
        drop(old);
        self.nudge();
        Ok(())
    }

    /// Sends again what has to be, waiting for room as long as it takes; others may send once that is done.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn send_again(&self) -> Result<(), ChannelError> {
        let mut parked = false;
        loop {
            let seen = self.nudges();
            let Some(wanted) = self.judge(self.try_send_again())? else { break };
            parked = true;
            self.park(seen, || self.has_room(wanted), pending()).await;
        }
        if parked {
            // Threads may be who waits on this channel.
            self.wait.leave_reactor();
        }
        self.nudge();
        Ok(())
    }

    /// The room to wait for before there is more to do; `None`: that was all.
    fn try_send_again(&self) -> Result<Option<usize>, ChannelError> {
        let mut outgoing = lock(&self.outgoing);
        match outgoing.state {
            State::CatchingUp => self.catch_up(&mut outgoing),
            // After another root the next one has all of them again.
            State::Open | State::Suspended | State::Shut => Ok(None),
        }
    }
}
