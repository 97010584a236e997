//! A peer that signals without a reason: it is listened to less, and what it has to say is found all the same.
//!
//! A channel whose bell rings without anything in its rings, again and again, is looked at only every now and then
//! instead of being waited for. When signals bring work again, it is waited for again. Whoever attends to the partition
//! does the looking: the session sleeps until there is something for it, and others in its runtime feel nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::core::{Core, lock};
use super::resting::Signals;
use crate::pace::Storm;

/// How often a channel is looked at in a storm.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The same in a storm over this many channels of a partition is twice as long, and so on.
const CHANNELS: usize = 4;
/// The longest that work waits in a storm.
const LONGEST: Duration = Duration::from_millis(250);
/// How long a thread rests before it looks whether its channel was closed.
const SLICE: Duration = Duration::from_millis(10);

/// What one channel knows of storms.
pub(super) struct Storms {
    /// Counted by whoever is about to sleep.
    pub(super) signals: Signals,
    state: Mutex<State>,
    is_storming: AtomicBool,
    partition: OnceLock<OfPartition>,
}

struct OfPartition {
    /// Channels of the same partition in a storm.
    storms: Arc<AtomicUsize>,
    /// Where the partition is attended to.
    attended: Handle,
}

struct State {
    storm: Storm,
    /// Where both rings stood when somebody last counted.
    at: (u32, u32),
}

impl Storms {
    pub(super) fn new() -> Self {
        Self {
            signals: Signals::default(),
            state: Mutex::new(State { storm: Storm::new(Instant::now()), at: (0, 0) }),
            is_storming: AtomicBool::new(false),
            partition: OnceLock::new(),
        }
    }

    fn set(&self, storming: bool) {
        if self.is_storming.swap(storming, Ordering::Relaxed) != storming
            && let Some(partition) = self.partition.get()
        {
            if storming {
                partition.storms.fetch_add(1, Ordering::Relaxed);
            } else {
                partition.storms.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn look_every(&self) -> Duration {
        let others = self.partition.get().map_or(0, |partition| partition.storms.load(Ordering::Relaxed));
        let times = u32::try_from(1 + others / CHANNELS).unwrap_or(u32::MAX);
        LOOK_EVERY.saturating_mul(times).min(LONGEST)
    }
}

impl Drop for Storms {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl Core {
    /// Counts a storm of this channel among those of its partition, which is `attended` to there.
    pub(crate) fn set_storms(&self, storms: &Arc<AtomicUsize>, attended: Handle) {
        let _ = self.storms.partition.set(OfPartition { storms: Arc::clone(storms), attended });
    }

    /// Whether signals of this channel are to be expected without work.
    pub(crate) fn is_storming(&self) -> bool {
        self.storms.is_storming.load(Ordering::Relaxed)
    }

    /// To be asked by one who has found nothing to do and is about to sleep: how long to rest instead.
    pub(super) fn storm(&self) -> Option<Duration> {
        if !self.storms.signals.take() {
            return None;
        }
        // Whoever holds the ring finds out what there is.
        let incoming = self.incoming.try_lock().ok()?.read_index();
        let outgoing = self.outgoing.try_lock().ok()?.write_index();
        let mut state = lock(&self.storms.state);
        if state.at != (incoming, outgoing) {
            state.at = (incoming, outgoing);
            state.storm.found_work();
            self.storms.set(self.is_storming() && !state.storm.is_over());
            return None;
        }
        let storming = state.storm.in_vain(Instant::now());
        self.storms.set(storming || (self.is_storming() && !state.storm.is_over()));
        storming.then(|| self.storms.look_every())
    }

    /// Rests in a storm until `woken`, or until it is time to look, which may be for nothing.
    pub(super) async fn rest(self: &Arc<Self>, look_every: Duration, woken: impl Future<Output = ()>) {
        let _resting = self.storms.signals.rest();
        self.wait.leave_reactor();
        let look_out = Arc::clone(self).look_out(look_every);
        let news = async {
            match self.storms.partition.get() {
                // Ends with this sleep, whatever ended that.
                Some(OfPartition { attended, .. }) => {
                    let mut looks_out = JoinSet::new();
                    looks_out.spawn_on(look_out, attended);
                    looks_out.join_next().await;
                }
                None => look_out.await,
            }
        };
        tokio::select! {
            () = woken => {}
            () = news => {}
        }
    }

    /// Returns when there may be something to do, and in any case after a while.
    async fn look_out(self: Arc<Self>, every: Duration) {
        let end = Instant::now() + LONGEST;
        while !self.is_closed() && Instant::now() < end {
            tokio::time::sleep(every).await;
            if self.has_news() {
                break;
            }
        }
    }

    fn has_news(&self) -> bool {
        // Whoever holds the ring finds out what there is.
        let Ok(mut incoming) = self.incoming.try_lock() else { return true };
        let Ok(mut outgoing) = self.outgoing.try_lock() else { return true };
        incoming.has_news() || outgoing.has_news()
    }

    /// [`rest`](Self::rest) for a thread that has `left` at most.
    pub(super) fn rest_blocking(&self, left: Option<Duration>) -> bool {
        let Some(time) = self.storm() else { return false };
        let end = Instant::now() + left.map_or(time, |left| left.min(time));
        while !self.is_closed() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(SLICE));
        }
        true
    }
}
