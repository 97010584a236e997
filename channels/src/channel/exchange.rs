//! For clients that have many packets under way in both directions: sent in batches without waiting, taken in batches,
//! and one wait for whatever comes first, room to send included.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::core::{Core, lock};
use super::flow::Hold;
use super::receiving::Nothing;
use super::replies::Reply;
use super::request::Request;
use super::sending::{due, wait_for};
use super::swap::Untouchable;
use super::{BlockingChannel, Channel, Tagged};
use crate::error::ChannelError;

/// Requests taken at a time.
const AT_ONCE: usize = 64;

/// What came from the peer.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// Its requests, in their order.
    pub requests: Vec<Request>,
    /// Its replies to tagged requests of ours, each with the tag, in their order.
    pub replies: Vec<(u64, Reply)>,
    /// Where these stand among all that were taken from the channel: 0, 1 and so on. Threads that take at the same time
    /// put them in order by it. `None` if that does not matter.
    pub number: Option<u64>,
}

impl Arrivals {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing came.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.replies.is_empty()
    }

    fn len(&self) -> usize {
        self.requests.len() + self.replies.len()
    }
}

impl Channel {
    /// Sends as many of `requests` as there is room for now, with one signal at most; gives how many. Never waits. Their
    /// replies come by [`try_take`](Self::try_take) and [`take`](Self::take), with their tags. What a dying root has not
    /// answered runs again on a channel that survives that.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn try_submit(&self, requests: &[Tagged]) -> Result<usize, ChannelError> {
        Ok(self.core.judge(self.core.try_submit(requests))?.unwrap_or(0))
    }

    /// Adds to `into` what has come, without waiting; gives how much.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] if the channel has ended; else as [`recv`](Self::recv).
    pub fn try_take(&self, into: &mut Arrivals) -> Result<usize, ChannelError> {
        self.core.judge(self.core.try_take(into))
    }

    /// Waits until something comes, which is added to `into`, or, with `unsent`, until there is room to send that.
    ///
    /// # Errors
    /// As [`try_take`](Self::try_take).
    pub async fn take(&self, into: &mut Arrivals, unsent: Option<&Tagged>) -> Result<(), ChannelError> {
        self.core.take(into, unsent).await
    }
}

impl BlockingChannel {
    /// As [`Channel::try_submit`].
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn try_submit(&self, requests: &[Tagged]) -> Result<usize, ChannelError> {
        self.channel.try_submit(requests)
    }

    /// As [`Channel::try_take`].
    ///
    /// # Errors
    /// As [`Channel::try_take`].
    pub fn try_take(&self, into: &mut Arrivals) -> Result<usize, ChannelError> {
        self.channel.try_take(into)
    }

    /// As [`Channel::take`], for at most `timeout`.
    ///
    /// # Errors
    /// As [`Channel::take`], and [`ChannelError::TimedOut`].
    pub fn take(
        &self,
        into: &mut Arrivals,
        unsent: Option<&Tagged>,
        timeout: Option<Duration>,
    ) -> Result<(), ChannelError> {
        self.channel.core.take_blocking(into, unsent, timeout)
    }
}

/// How a look at both rings ended.
enum Looked {
    /// There is something to do.
    Found,
    /// There is nothing, and perhaps no room either.
    Nothing(Nothing, Option<Hold>),
}

impl Core {
    fn try_take(self: &Arc<Self>, into: &mut Arrivals) -> Result<usize, ChannelError> {
        let mut incoming = match self.enter() {
            Ok(incoming) => incoming,
            Err(Untouchable::Closed) => return Err(self.ended()),
            Err(Untouchable::Suspended) => return Ok(lock(&self.replies).take_tagged(&mut into.replies)),
        };
        let before = into.len();
        while into.requests.len() < AT_ONCE && !self.is_ending() {
            match self.next_request(&mut incoming)? {
                Ok(request) => into.requests.push(request),
                Err(
                    Nothing::Empty
                    | Nothing::NoReply
                    | Nothing::NoRoom
                    | Nothing::AtLimit
                    | Nothing::Held(_)
                    | Nothing::NoRoot,
                ) => break,
            }
        }
        lock(&self.replies).take_tagged(&mut into.replies);
        self.number(into, before);
        self.leave(incoming)?;
        Ok(into.len() - before)
    }

    /// Says where what was added stands. The lock of the incoming ring must be held since it was taken.
    fn number(&self, into: &mut Arrivals, before: usize) {
        if into.len() > before {
            into.number = Some(self.batches.fetch_add(1, Ordering::Relaxed));
        }
    }

    async fn take(
        self: &Arc<Self>,
        into: &mut Arrivals,
        unsent: Option<&Tagged>,
    ) -> Result<(), ChannelError> {
        let room = unsent.map(|unsent| self.tagged_size(unsent)).transpose()?;
        loop {
            let seen = self.nudges();
            let (nothing, hold) = match self.judge(self.look_for_arrivals(into, room))? {
                Looked::Found => return Ok(()),
                Looked::Nothing(nothing, hold) => (nothing, hold),
            };
            let asleep = Instant::now();
            let last_look = || self.last_look_for_arrivals(&nothing, room.filter(|_| hold.is_none()));
            match hold {
                None => self.park(seen, last_look, nothing.due()).await,
                Some(hold) => {
                    let either = async {
                        tokio::select! { () = nothing.due() => {}, () = due(hold) => {} }
                    };
                    self.park(seen, last_look, either).await;
                }
            }
            self.slept(asleep);
        }
    }

    /// [`take`](Self::take) for a thread.
    fn take_blocking(
        self: &Arc<Self>,
        into: &mut Arrivals,
        unsent: Option<&Tagged>,
        timeout: Option<Duration>,
    ) -> Result<(), ChannelError> {
        let room = unsent.map(|unsent| self.tagged_size(unsent)).transpose()?;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let seen = self.nudges();
            let (nothing, hold) = match self.judge(self.look_for_arrivals(into, room))? {
                Looked::Found => return Ok(()),
                Looked::Nothing(nothing, hold) => (nothing, hold),
            };
            let asleep = Instant::now();
            let left = deadline.map(|deadline| deadline.saturating_duration_since(asleep));
            let held = nothing.held_for().into_iter().chain(hold.map(wait_for)).min();
            let at_most = held.into_iter().chain(left).min();
            let last_look = || self.last_look_for_arrivals(&nothing, room.filter(|_| hold.is_none()));
            let woken = self.park_blocking(seen, last_look, pending(), at_most)?;
            if !woken && (held.is_none() || left.is_some_and(|left| left.is_zero())) {
                return Err(ChannelError::TimedOut);
            }
            self.slept(asleep);
        }
    }

    /// Looks for requests, tagged replies and room for a packet of `room` bytes as long as looking pays.
    fn look_for_arrivals(
        self: &Arc<Self>,
        into: &mut Arrivals,
        room: Option<usize>,
    ) -> Result<Looked, ChannelError> {
        let mut incoming = match self.enter() {
            Ok(incoming) => incoming,
            Err(Untouchable::Closed) => return Err(self.ended()),
            Err(Untouchable::Suspended) => {
                // What came before the root went is there all the same.
                let found = lock(&self.replies).take_tagged(&mut into.replies) > 0;
                return Ok(if found { Looked::Found } else { Looked::Nothing(Nothing::NoRoot, None) });
            }
        };
        let mut spinner = incoming.spinner.clone();
        let (mut looks, mut nothing, mut held) = (0, Nothing::Empty, None);
        let found = spinner.look(|| {
            if self.is_ending() {
                if self.is_suspended() {
                    nothing = Nothing::NoRoot;
                    return Some(Ok(false));
                }
                return Some(Err(self.ended()));
            }
            looks += 1;
            let before = into.len();
            while into.requests.len() < AT_ONCE {
                match self.next_request(&mut incoming) {
                    Ok(Ok(request)) => into.requests.push(request),
                    Ok(Err(why)) => {
                        nothing = why;
                        break;
                    }
                    Err(error) => return Some(Err(error)),
                }
            }
            lock(&self.replies).take_tagged(&mut into.replies);
            if into.len() > before {
                self.number(into, before);
                return Some(Ok(true));
            }
            match room.map(|room| self.room_now(room)) {
                Some(Ok(Ok(true))) => return Some(Ok(true)),
                Some(Ok(Ok(false))) | None => held = None,
                Some(Ok(Err(hold))) => held = Some(hold),
                Some(Err(error)) => return Some(Err(error)),
            }
            self.publish_while_looking(&mut incoming, looks).err().map(Err)
        });
        incoming.spinner = spinner;
        self.leave(incoming)?;
        match found {
            Some(Ok(true)) => Ok(Looked::Found),
            Some(Ok(false)) | None => Ok(Looked::Nothing(nothing, held)),
            Some(Err(error)) => Err(error),
        }
    }

    fn awaits_replies(&self) -> bool {
        lock(&self.replies).in_flight() > 0
    }

    /// `true`: there is something to do instead of sleeping.
    fn last_look_for_arrivals(self: &Arc<Self>, nothing: &Nothing, room: Option<usize>) -> bool {
        // Both are asked, since both ask the peer for a signal.
        let arrived = self.last_look(nothing) || lock(&self.replies).has_tagged();
        let arrived = match nothing {
            // Replies are taken all the same, and who is full of requests asks for no signal.
            Nothing::AtLimit | Nothing::NoRoom if self.awaits_replies() => {
                arrived || self.last_look(&Nothing::NoReply)
            }
            Nothing::AtLimit | Nothing::NoRoom => arrived,
            Nothing::Empty | Nothing::NoReply | Nothing::Held(_) | Nothing::NoRoot => arrived,
        };
        room.is_some_and(|room| self.has_room(room)) || arrived
    }
}
