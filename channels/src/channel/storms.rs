//! A peer that signals without a reason: it is listened to less, and what it has to say is found all the same.
//!
//! A channel whose bell rings without anything in its rings, again and again, is looked at only every now and then
//! instead of being waited for. When signals bring work again, it is waited for again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::core::{Core, lock};
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
    /// The peer has signalled since somebody last counted.
    signalled: AtomicBool,
    state: Mutex<State>,
    is_storming: AtomicBool,
    /// Channels of the same partition in a storm.
    all: OnceLock<Arc<AtomicUsize>>,
}

struct State {
    storm: Storm,
    /// Where both rings stood when somebody last counted.
    at: (u32, u32),
}

impl Storms {
    pub(super) fn new() -> Self {
        Self {
            signalled: AtomicBool::new(false),
            state: Mutex::new(State { storm: Storm::new(Instant::now()), at: (0, 0) }),
            is_storming: AtomicBool::new(false),
            all: OnceLock::new(),
        }
    }

    /// The peer has signalled.
    pub(super) fn signalled(&self) {
        self.signalled.store(true, Ordering::Relaxed);
    }

    fn set(&self, storming: bool) {
        if self.is_storming.swap(storming, Ordering::Relaxed) != storming
            && let Some(all) = self.all.get()
        {
            if storming {
                all.fetch_add(1, Ordering::Relaxed);
            } else {
                all.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn look_every(&self) -> Duration {
        let others = self.all.get().map_or(0, |all| all.load(Ordering::Relaxed));
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
    /// Counts a storm of this channel among those of its partition.
    pub(crate) fn set_storms(&self, all: &Arc<AtomicUsize>) {
        let _ = self.storms.all.set(Arc::clone(all));
    }

    /// Whether signals of this channel are to be expected without work.
    pub(crate) fn is_storming(&self) -> bool {
        self.storms.is_storming.load(Ordering::Relaxed)
    }

    /// To be asked by one who has found nothing to do and is about to sleep: how long to rest instead.
    fn storm(&self) -> Option<Duration> {
        if !self.storms.signalled.swap(false, Ordering::Relaxed) {
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

    /// Rests if there is a storm: `true` means that it is time to look, without having slept.
    pub(super) async fn rest(&self) -> bool {
        let Some(time) = self.storm() else { return false };
        let _ = tokio::time::timeout(time, self.closed()).await;
        true
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
