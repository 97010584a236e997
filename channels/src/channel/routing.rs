//! Completions, for whoever asked: one thread reads the ring for all who wait.

use std::future::{pending, poll_fn};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use super::core::{Core, lock};
use super::receiving::{Incoming, Next, Nothing};
use super::replies::{Interrupted, Reply};
use super::swap::Untouchable;
use crate::error::ChannelError;
use crate::spin::{Spin, Spinner};

impl Core {
    /// The reply to request `id` of ours.
    pub(crate) async fn reply(self: &Arc<Self>, id: u64) -> Result<Reply, ChannelError> {
        let mut gave_way = false;
        loop {
            let seen = self.nudges();
            let others = lock(&self.replies).in_flight() > 1;
            if let Some(reply) = self.judge(self.look_for_reply(id, !others || gave_way))? {
                return Ok(reply);
            }
            if others && !gave_way {
                // Whoever else has requests to send should send them before this thread looks for long.
                gave_way = true;
                tokio::task::yield_now().await;
                continue;
            }
            let asleep = Instant::now();
            let done = poll_fn(|context| lock(&self.replies).poll_done(id, context));
            self.park(seen, || self.last_look(&Nothing::NoReply), done).await;
            self.slept(asleep);
        }
    }

    /// [`reply`](Self::reply) for a thread.
    pub(crate) fn reply_blocking(self: &Arc<Self>, id: u64) -> Result<Reply, ChannelError> {
        loop {
            let seen = self.nudges();
            if let Some(reply) = self.judge(self.look_for_reply(id, true))? {
                return Ok(reply);
            }
            let asleep = Instant::now();
            let done = poll_fn(|context| lock(&self.replies).poll_done(id, context));
            self.park_blocking(seen, || self.last_look(&Nothing::NoReply), done, None)?;
            self.slept(asleep);
        }
    }

    /// The reply to `id` if it is there, or comes while looking pays.
    fn look_for_reply(self: &Arc<Self>, id: u64, spin: bool) -> Result<Option<Reply>, ChannelError> {
        if let Some(reply) = lock(&self.replies).take(id) {
            return reply.map(Some).map_err(|Interrupted| ChannelError::Interrupted);
        }
        // Whoever holds the ring hands us our reply, too.
        let Ok(incoming) = self.incoming.try_lock() else { return Ok(None) };
        let found = self.route_until(self.entered(incoming), spin, || lock(&self.replies).take(id))?;
        found.transpose().map_err(|Interrupted| ChannelError::Interrupted)
    }

    /// Collects replies to tagged requests, waiting for at least one unless `wait` is false; gives how many.
    pub(crate) fn tagged_replies(
        self: &Arc<Self>,
        into: &mut Vec<(u64, Reply)>,
        wait: bool,
    ) -> Result<usize, ChannelError> {
        loop {
            let seen = self.nudges();
            let found = self.judge(self.look_for_tagged(into, wait))?;
            if found > 0 || !wait {
                return Ok(found);
            }
            let asleep = Instant::now();
            let last_look = || self.last_look(&Nothing::NoReply) || lock(&self.replies).has_tagged();
            self.park_blocking(seen, last_look, pending(), None)?;
            self.slept(asleep);
        }
    }

    fn look_for_tagged(
        self: &Arc<Self>,
        into: &mut Vec<(u64, Reply)>,
        spin: bool,
    ) -> Result<usize, ChannelError> {
        let found = self.route_until(self.enter(), spin, || {
            let count = lock(&self.replies).take_tagged(into);
            (count > 0).then_some(count)
        })?;
        Ok(found.unwrap_or(0))
    }

    /// Hands out all completions that are there; requests wait for who receives them.
    pub(crate) fn route_replies(self: &Arc<Self>) -> Result<(), ChannelError> {
        self.route_until(self.enter(), false, || Some(())).map(drop)
    }

    /// Hands out completions until `found` gives something: once, or, with `spin`, as long as looking pays.
    fn route_until<T>(
        self: &Arc<Self>,
        incoming: Result<MutexGuard<'_, Incoming>, Untouchable>,
        spin: bool,
        mut found: impl FnMut() -> Option<T>,
    ) -> Result<Option<T>, ChannelError> {
        let mut incoming = match incoming {
            Ok(incoming) => incoming,
            Err(Untouchable::Closed) => return Err(self.ended()),
            // What came before the root went is there all the same.
            Err(Untouchable::Suspended) => return Ok(found()),
        };
        let mut spinner = if spin { incoming.spinner.clone() } else { Spinner::new(Spin::never()) };
        let mut looks = 0;
        let result = spinner.look(|| {
            if !self.is_open() {
                return Some(if self.is_closed() { Err(self.ended()) } else { Ok(found()) });
            }
            looks += 1;
            match self.route(&mut incoming) {
                // Looking in vain is most of what a spinning thread does: one load. Replies come this way only.
                Ok(false) if looks > 1 => self.publish_while_looking(&mut incoming, looks).err().map(Err),
                Ok(_) => found().map(|found| Ok(Some(found))),
                Err(error) => Some(Err(error)),
            }
        });
        if spin {
            incoming.spinner = spinner;
        }
        self.leave(incoming)?;
        result.unwrap_or(Ok(None))
    }

    /// Takes what is there; whether there was anything.
    pub(super) fn route(self: &Arc<Self>, incoming: &mut Incoming) -> Result<bool, ChannelError> {
        if !incoming.consumer.has_unread()? {
            return Ok(false);
        }
        let before = incoming.queued.len();
        while !incoming.queued.is_full(self.limits.waiting) {
            match self.next(incoming)? {
                Next::Request(request)
                    if !request.wants_completion() && self.deaf.load(Ordering::Relaxed) => {}
                Next::Request(request) => incoming.queued.push(request),
                Next::Routed => {}
                Next::Empty => break,
            }
        }
        if incoming.queued.len() > before {
            self.nudge();
        }
        Ok(true)
    }
}
