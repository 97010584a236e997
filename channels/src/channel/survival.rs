//! How an open channel outlives the root at its other end.
//!
//! While there is no root the channel is *suspended*: whoever sends or receives waits, and nobody touches the rings. A
//! channel of the next root, whose rings lie in the same pages, then lends its rings and its place on the link to this
//! one: all requests that nobody answered are sent again ahead of all others, in their order.
//!
//! How the rings are taken from everybody and given back is [`swap`](super::swap)'s.

use std::collections::VecDeque;
use std::future::pending;
use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::{Core, lock};
use super::in_flight::InFlight;
use super::receiving::Incoming;
use super::request::Request;
use super::sending::Outgoing;
use super::swap::{self, Locked, Phase, State, Stated, Swapped};
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
        swap::suspend(self)
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
        // Requests of the old root that nobody has taken hold on to this channel, and are dropped without the locks.
        drop(swap::take_over(&**self, &**fresh, |rings| self.exchange(fresh, rings)));
        Ok(())
    }

    /// Changes rings with `fresh`, and prepares to send requests again; gives requests of the old root.
    fn exchange(self: &Arc<Self>, fresh: &Self, rings: Locked<'_, Self>) -> VecDeque<Request> {
        let Locked { incoming, outgoing, fresh_incoming, fresh_outgoing } = rings;
        let epoch = outgoing.epoch.wrapping_add(1);
        std::mem::swap(incoming, fresh_incoming);
        std::mem::swap(outgoing, fresh_outgoing);
        std::mem::swap(&mut incoming.spinner, &mut fresh_incoming.spinner);
        (incoming.epoch, outgoing.epoch) = (epoch, epoch);
        let deaf = self.deaf.load(Ordering::Relaxed);
        for request in incoming.queued.take() {
            if request.wants_completion() || !deaf {
                incoming.queued.push(request.rehome(self, epoch));
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
        fresh_incoming.queued.take()
    }

    /// Sends again what has to be, waiting for room as long as it takes; others may send once that is done.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn send_again(self: &Arc<Self>) -> Result<(), ChannelError> {
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

impl Stated for Outgoing {
    fn state(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Swapped for Core {
    type Incoming = Incoming;
    type Outgoing = Outgoing;

    fn turn(&self, from: Phase, to: Phase) -> bool {
        self.phase.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }
    fn set_closed(&self) {
        // Sequentially consistent as in `request_ended`: either the last request sees this, or `landed` its end.
        self.phase.store(Phase::Closed as u8, Ordering::SeqCst);
    }
    #[inline]
    fn is_open(&self) -> bool {
        self.is_open()
    }
    fn is_closed(&self) -> bool {
        self.is_closed()
    }
    fn incoming(&self) -> impl DerefMut<Target = Incoming> {
        lock(&self.incoming)
    }
    fn outgoing(&self) -> impl DerefMut<Target = Outgoing> {
        lock(&self.outgoing)
    }
    fn has_nobody(&self) {
        self.wait.has_nobody();
    }
    fn leave_reactor(&self) {
        // The next channel at the same event area waits for the same bell.
        self.wait.leave_reactor();
    }
    fn nudge(&self) {
        self.nudge();
    }
}
