//! What all handles of one open channel share: its two rings, its requests in both directions, its end.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use vmbus_partition::{GuestPages, RingMapping};
use vmbus_ringbuf::{Consumer, MAX_PACKET_SIZE, Producer, RingFault, packet_size};

use super::receiving::Incoming;
use super::replies::Replies;
use super::sending::Outgoing;
use super::side::Side;
use super::storms::Storms;
use super::stream::Stream;
use super::swap::{self, Phase};
use super::wait::{Wait, Woken};
use crate::error::ChannelError;

/// Packets from this size on count as large: those of requests for more than 2 MiB, say.
const LARGE_REQUEST: usize = 4096;
/// Bytes of large packets whose requests may be in flight; beyond, one that ends makes room for the next.
const LARGE_BYTES_AT_MOST: usize = 4 << 20;

/// Bounds of one channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest completion payload that we send, in bytes.
    pub(crate) completion_room: usize,
    /// Requests of the peer in flight, those that want no completion included.
    pub(crate) requests: usize,
    /// Requests of the peer that wait in private memory, beside those.
    pub(crate) waiting: usize,
}

impl Limits {
    /// Ring space that one completion takes at most.
    pub(super) fn completion_size(&self) -> usize {
        packet_size(0, self.completion_room).unwrap_or(MAX_PACKET_SIZE)
    }
}

/// The shared half of a channel. Locks are taken in the order incoming, stream, outgoing,
/// replies.
pub(crate) struct Core {
    /// Our side of the link where we are the root; a guest's changes with its root, and is beside the rings.
    root: Option<Arc<Side>>,
    pub(super) wait: Wait,
    pub(super) limits: Limits,
    pub(super) incoming: Mutex<Incoming>,
    pub(super) outgoing: Mutex<Outgoing>,
    /// Bytes that the outgoing ring holds at most.
    pub(super) capacity: usize,
    pub(super) replies: Mutex<Replies>,
    /// Set if the channel carries a stream of bytes and no requests.
    pub(super) stream: OnceLock<Mutex<Stream>>,
    /// Futures and threads that sleep on this channel: while there are any, the incoming ring stays unmasked.
    pub(super) parked: AtomicUsize,
    /// Requests of the peer taken and not yet completed or dropped.
    pub(super) in_flight: AtomicUsize,
    /// Bytes of those that are [`large`](Self::request_began).
    large_bytes: AtomicUsize,
    /// Answer in place of a request that was dropped unanswered.
    pub(super) abandoned: OnceLock<Bytes>,
    /// How often arrivals were taken; counted under the lock of the incoming ring.
    pub(super) batches: AtomicU64,
    /// Nobody receives: packets that want no answer are dropped.
    pub(super) deaf: AtomicBool,
    /// Why it ended, where that is more than an orderly end.
    why: OnceLock<Box<str>>,
    /// It should have gone on with another root, and has not.
    lost: AtomicBool,
    /// One of [`Phase`].
    pub(super) phase: AtomicU8,
    /// What the session has to remember.
    pub(super) session_state: OnceLock<Bytes>,
    /// How often something happened that sleepers on this channel should look at beside the rings.
    nudges: AtomicU64,
    nudge: Notify,
    /// Who waits for whatever comes is to look again, and has not done so.
    pub(super) stirred: AtomicBool,
    /// The channel is closed.
    end: Notify,
    pub(super) storms: Storms,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Core {
    /// A channel whose peer signals in event area `area`.
    pub(crate) fn new(
        side: Arc<Side>,
        area: u32,
        incoming: RingMapping,
        outgoing: RingMapping,
        limits: Limits,
    ) -> Result<Arc<Self>, RingFault> {
        Self::with_rings(side, area, Consumer::new(incoming)?, Producer::new(outgoing)?, limits)
    }

    pub(super) fn with_rings(
        side: Arc<Side>,
        area: u32,
        incoming: Consumer<RingMapping>,
        outgoing: Producer<RingMapping>,
        limits: Limits,
    ) -> Result<Arc<Self>, RingFault> {
        let mut outgoing = Outgoing::new(Arc::clone(&side), outgoing);
        let grants = outgoing.reserve(limits.requests, limits.completion_size())?;
        Ok(Arc::new(Self {
            capacity: outgoing.capacity(),
            root: side.is_root().then(|| Arc::clone(&side)),
            wait: Wait::new(Arc::clone(&side), area),
            limits,
            incoming: Mutex::new(Incoming::new(side, incoming, grants)),
            outgoing: Mutex::new(outgoing),
            replies: Mutex::default(),
            stream: OnceLock::new(),
            parked: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            large_bytes: AtomicUsize::new(0),
            abandoned: OnceLock::new(),
            batches: AtomicU64::new(0),
            deaf: AtomicBool::new(false),
            why: OnceLock::new(),
            lost: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::Open as u8),
            session_state: OnceLock::new(),
            nudges: AtomicU64::new(0),
            nudge: Notify::new(),
            stirred: AtomicBool::new(false),
            end: Notify::new(),
            storms: Storms::new(),
        }))
    }

    /// Signals to the guest go to another of its processors from now on. The guest is told there to look: a session may
    /// have read the old target, and what it signals there now comes too late to be heeded.
    pub(crate) fn retarget(&self, vp: u32) {
        if let Some(side) = &self.root {
            side.retarget(vp);
        }
    }

    /// Whether the peer has to be told of writes to its memory.
    pub(super) fn tells_writes(&self) -> bool {
        self.root.as_ref().is_some_and(|side| side.tells_writes())
    }

    /// Tells the peer that these pages were written, and waits until it has seen it.
    pub(super) async fn tell_written(&self, pages: &[GuestPages]) {
        if let Some(side) = &self.root {
            side.tell_written(pages).await;
        }
    }

    /// Our side of the link at present.
    pub(crate) fn side(&self) -> Arc<Side> {
        match &self.root {
            Some(side) => Arc::clone(side),
            None => Arc::clone(&lock(&self.outgoing).side),
        }
    }

    /// The peer's signals are awaited in this event area from now on.
    pub(crate) fn wait_at(&self, area: u32) {
        self.wait.move_to(area);
        self.nudge();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.phase.load(Ordering::Acquire) == Phase::Closed as u8
    }

    /// Whether nobody is to take requests at present, or any more.
    pub(super) fn is_ending(&self) -> bool {
        self.phase.load(Ordering::Acquire) != Phase::Open as u8
    }

    /// Whether the rings may be touched.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.phase.load(Ordering::Acquire) <= Phase::Saving as u8
    }

    /// Closes a channel that should have gone on with another root, and lets everybody know why it has not.
    pub(crate) fn end(&self, why: &str) {
        if !self.is_closed() {
            let _ = self.why.set(why.into());
            self.lost.store(true, Ordering::Release);
        }
        self.close();
    }

    /// What to say to those who use a channel that is closed.
    #[cold]
    pub(super) fn ended(&self) -> ChannelError {
        match self.why.get().filter(|_| self.lost.load(Ordering::Acquire)) {
            Some(reason) => ChannelError::NotResumed { reason: reason.to_string() },
            None => ChannelError::Closed,
        }
    }

    /// The peer says why it is about to end the channel. Only the first reason counts.
    pub(crate) fn ends_because(&self, reason: &str) {
        let _ = self.why.set(reason.into());
    }

    pub(crate) fn why(&self) -> Option<&str> {
        self.why.get().map(|why| &**why)
    }

    /// Nothing is read or written from here on; everybody who waits is told.
    pub(crate) fn close(&self) {
        // What came before the end stays readable.
        let _kept = self.keep_stream();
        swap::close(self);
        self.end.notify_waiters();
    }

    /// Returns when nobody touches the rings of the closed channel any more.
    pub(crate) fn quiesce(&self) {
        debug_assert!(self.is_closed());
        // Requests that nobody took refer to the channel, which would keep itself.
        drop(lock(&self.incoming).take_queued());
    }

    /// Closes the channel if `result` says that the peer broke its rules.
    pub(super) fn judge<T>(&self, result: Result<T, ChannelError>) -> Result<T, ChannelError> {
        if let Err(error) = &result
            && error.ends_channel()
        {
            self.close();
        }
        result
    }

    /// Returns when the channel is closed.
    pub(crate) async fn closed(&self) {
        let mut end = pin!(self.end.notified());
        end.as_mut().enable();
        if !self.is_closed() {
            end.await;
        }
    }

    /// Returns when no request of the closed channel is in use any more, so that its memory may go.
    pub(crate) async fn landed(&self) {
        loop {
            let seen = self.nudges();
            drop(lock(&self.incoming).take_queued());
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            self.nudged(seen).await;
        }
    }

    /// A request whose packet has `bytes` of payload and ranges goes to a session. Only large ones, which are rare,
    /// have their bytes counted: a peer can make us hold several times as much for each.
    pub(super) fn request_began(&self, bytes: usize) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if bytes >= LARGE_REQUEST {
            self.large_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// One request of the peer is over.
    pub(super) fn request_ended(&self, bytes: usize) {
        if bytes >= LARGE_REQUEST && self.large_bytes.fetch_sub(bytes, Ordering::AcqRel) > LARGE_BYTES_AT_MOST
        {
            self.nudge();
        }
        let before = self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if before >= self.limits.requests
            || (before == 1 && self.phase.load(Ordering::SeqCst) != Phase::Open as u8)
        {
            self.nudge();
        }
    }

    /// Whether requests of the peer are neither completed nor dropped.
    pub(super) fn has_requests(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) > 0
    }

    /// Whether the requests in flight are so large that some have to end before another is taken.
    pub(super) fn holds_too_much(&self) -> bool {
        self.large_bytes.load(Ordering::Acquire) > LARGE_BYTES_AT_MOST
    }

    /// The peer has signalled in an area that is not this channel's own.
    pub(crate) fn signalled(&self) {
        // In a storm somebody looks after the channel anyway.
        if !self.storms.signals.came() {
            self.nudge();
        }
    }

    /// Makes everybody who sleeps on this channel look again.
    pub(crate) fn nudge(&self) {
        self.nudges.fetch_add(1, Ordering::AcqRel);
        self.nudge.notify_waiters();
    }

    /// To be read before the look after which one sleeps.
    pub(crate) fn nudges(&self) -> u64 {
        self.nudges.load(Ordering::Acquire)
    }

    /// Returns at once if there was a nudge since `seen`, else at the next.
    pub(super) async fn nudged(&self, seen: u64) {
        let mut nudge = pin!(self.nudge.notified());
        nudge.as_mut().enable();
        if self.nudges() == seen {
            nudge.await;
        }
    }

    /// Sleeps until the peer signals, somebody nudged since `seen`, or `ready` is. May return early.
    ///
    /// `last_look` runs when no signal can be missed any more; `true` means do not sleep.
    pub(super) async fn park(
        self: &Arc<Self>,
        seen: u64,
        last_look: impl FnOnce() -> bool,
        ready: impl Future<Output = ()>,
    ) {
        // A peer that signals all the time makes every sleep return at once: others get their turn all the same.
        consume_budget().await;
        let woken = pin!(self.woken(seen, ready));
        let storm = self.storm();
        let _parked = Parked::new(&self.parked);
        if let Some(look_every) = storm {
            return self.rest(look_every, woken).await;
        }
        match self.wait.sleep(last_look, woken).await {
            Woken::ByBell => {
                _ = self.storms.signals.came();
                self.pass_on();
            }
            Woken::ByFlag => _ = self.storms.signals.came(),
            Woken::Otherwise => {}
        }
    }

    /// [`park`](Self::park) for a thread; `false` if `timeout` has passed.
    pub(super) fn park_blocking(
        &self,
        seen: u64,
        last_look: impl FnOnce() -> bool,
        ready: impl Future<Output = ()>,
        timeout: Option<Duration>,
    ) -> std::io::Result<bool> {
        if self.rest_blocking(timeout) {
            return Ok(true);
        }
        let _parked = Parked::new(&self.parked);
        let woken = self.wait.sleep_blocking(last_look, self.woken(seen, ready), timeout)?;
        match woken {
            Some(Woken::ByBell) => {
                _ = self.storms.signals.came();
                self.pass_on();
            }
            Some(Woken::ByFlag) => _ = self.storms.signals.came(),
            Some(Woken::Otherwise) | None => {}
        }
        Ok(woken.is_some())
    }

    /// One who sleeps has silenced the bell, which may have rung for others: they, too, look and ask for the next.
    fn pass_on(&self) {
        // Whoever the bell rang for was counted before it asked for the bell.
        if self.parked.load(Ordering::Relaxed) > 1 {
            self.nudge();
        }
    }

    async fn woken(&self, seen: u64, ready: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = self.nudged(seen) => {}
            () = ready => {}
        }
    }
}

/// Counts a sleeper for as long as it sleeps.
struct Parked<'a>(&'a AtomicUsize);

impl<'a> Parked<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        // Relaxed: read and written around the lock of the incoming ring.
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
