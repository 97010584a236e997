//! Telling a guest that its memory was written, for virtual machines that have to be told
//! (`docs/src/protocol/attach.md`, "Duties").

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Notify;
use vmbus_partition::{GuestPages, RootEnd};

/// The writes of one partition's devices: a ping after each, whose pong says that the guest sees them.
pub(crate) struct Writes {
    needed: bool,
    /// Number of the last ping that came back; they come in the order in which they were sent.
    seen: AtomicU32,
    ended: AtomicBool,
    progress: Notify,
}

impl Writes {
    pub(crate) fn new(end: &Arc<dyn RootEnd>) -> Arc<Self> {
        Arc::new(Self {
            needed: !end.info().extended,
            seen: AtomicU32::new(0),
            ended: AtomicBool::new(false),
            progress: Notify::new(),
        })
    }

    /// Whether this partition has to be told at all.
    pub(crate) fn needed(&self) -> bool {
        self.needed
    }

    /// Tells the guest and returns when it has seen it, or is gone.
    pub(crate) async fn tell(&self, end: &Arc<dyn RootEnd>, pages: &[GuestPages]) {
        let ranges: Vec<(u64, u64)> = pages.iter().flat_map(GuestPages::addresses).collect();
        let Some(number) = end.memory_written(&ranges) else { return };
        loop {
            let mut progress = pin!(self.progress.notified());
            progress.as_mut().enable();
            let behind = number.wrapping_sub(self.seen.load(Ordering::Acquire)).cast_signed();
            if behind <= 0 || self.ended.load(Ordering::Acquire) {
                return;
            }
            progress.await;
        }
    }

    /// The partition answered ping `number`.
    pub(crate) fn pong(&self, number: u32) {
        self.seen.store(number, Ordering::Release);
        self.progress.notify_waiters();
    }

    /// The partition is gone: nobody waits any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.progress.notify_waiters();
    }
}
