//! Looking for bits in the monitor page of a guest.
//!
//! Only while a channel that has a monitor id is open, and the less often the longer nothing comes, down to once in
//! [`SLOWEST`]: a guest may signal by its bit alone and wait for ever for one that is not found.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vmbus_core::PAGE_SIZE;
use vmbus_core::server::{self, Monitor, Open};
use vmbus_core::synic::MonitorPlace;
use vmbus_partition::reactor::{self, Watching};
use vmbus_partition::{Memfd, ROOT_MEMORY, RootEnd};

use super::super::MonitorPageSource;
use super::Partition;
use crate::channel::{Bit, Core};
use crate::error::Refusal;
use crate::monitor::{GROUPS, MonitorPage, MonitorPages};
use crate::sources;

/// The longest pause between two looks: what a signal may wait after a long silence.
const SLOWEST: Duration = Duration::from_millis(8);
/// The shortest, whatever latency an offer names: a look takes some microseconds.
const FASTEST: Duration = Duration::from_micros(50);
/// The unit of latencies.
const TICK: Duration = Duration::from_nanos(100);

/// Two pages of the root's own in the partition's address space, if it is to have such and takes them.
pub(super) fn own_pages(source: MonitorPageSource, end: &dyn RootEnd) -> Option<server::MonitorPages> {
    const PAGE: u64 = PAGE_SIZE as u64;
    match source {
        MonitorPageSource::Guest => None,
        MonitorPageSource::Root => {
            let file = Memfd::new("vmbus-monitor", 2 * PAGE).ok()?;
            end.add_memory(ROOT_MEMORY, &file).ok()?;
            Some(server::MonitorPages { parent_to_child: ROOT_MEMORY, child_to_parent: ROOT_MEMORY + PAGE })
        }
    }
}

/// The channels of a partition whose bits are looked for.
#[derive(Default)]
pub(super) struct Monitors {
    pages: Arc<MonitorPages>,
    /// By monitor id.
    watched: BTreeMap<u8, Watched>,
    /// Somebody has slept since the last look: its guest is at work.
    active: Arc<AtomicBool>,
    timer: Option<Timer>,
    due: Option<Instant>,
    pause: Duration,
}

struct Watched {
    core: Arc<Core>,
    place: MonitorPlace,
    latency: u16,
    connection_id: u32,
}

/// Pauses shorter than a millisecond, which a runtime's own timers do not have.
struct Timer {
    timer: TimerFd,
    ready: Option<Watching>,
}

impl Monitors {
    /// Returns when it is time to look.
    pub(super) async fn due(&self) {
        match (&self.timer, self.due) {
            (Some(timer), Some(_)) => _ = sources::readable(&timer.ready).await,
            (_, _) => std::future::pending().await,
        }
    }

    /// Looks, if it is time to.
    pub(super) fn look(&mut self) {
        let Some(due) = self.due else { return };
        let now = Instant::now();
        if now < due {
            return;
        }
        let found = self.collect();
        let active = self.active.swap(false, Ordering::Relaxed);
        let fastest = self.fastest();
        self.pause = if found || active { fastest } else { (2 * self.pause).min(SLOWEST).max(fastest) };
        self.wait_from(now);
    }

    /// Tells the channels whose bits are set; whether there were any.
    fn collect(&self) -> bool {
        let mut groups = [0; GROUPS];
        for watched in self.watched.values() {
            groups[usize::from(watched.place.group) % GROUPS] |= watched.place.mask;
        }
        let mut found = [0; GROUPS];
        self.pages.each(|page| {
            for (group, mask) in groups.iter().enumerate().filter(|(_, mask)| **mask != 0) {
                found[group] |= page.collect(group, *mask);
            }
        });
        for watched in self.watched.values() {
            if found[usize::from(watched.place.group) % GROUPS] & watched.place.mask != 0 {
                watched.core.signalled();
            }
        }
        found != [0; GROUPS]
    }

    /// The shortest latency that an open channel asks for.
    fn fastest(&self) -> Duration {
        let least = self.watched.values().map(|watched| TICK * u32::from(watched.latency)).min();
        least.unwrap_or(SLOWEST).clamp(FASTEST, SLOWEST)
    }

    fn wait_from(&mut self, now: Instant) {
        self.due = Some(now + self.pause);
        if let Some(Timer { timer, .. }) = &self.timer {
            let pause = Expiration::OneShot(TimeSpec::from_duration(self.pause));
            // Fails for times that cannot be alone.
            let _ = timer.set(pause, TimerSetTimeFlags::empty());
        }
    }

    fn describe(&self, page: &MonitorPage) {
        let mut enabled = 0;
        for Watched { place, latency, connection_id, .. } in self.watched.values() {
            page.describe(place, *latency, *connection_id, 0);
            enabled |= 1 << place.group;
        }
        page.enable(enabled);
    }

    /// Where the channel about to open has its bit, and the means to look for it.
    pub(super) fn prepare(&mut self, monitor: Option<Monitor>) -> Result<Option<Bit>, Refusal> {
        let Some(place) = monitor.and_then(|monitor| MonitorPlace::of(monitor.id)) else { return Ok(None) };
        if self.timer.is_none() {
            let timer = Timer::new().map_err(|error| Refusal::new(format!("no timer: {error}")))?;
            self.timer = Some(timer);
        }
        Ok(Some(Bit { pages: Arc::clone(&self.pages), place, active: Arc::clone(&self.active) }))
    }

    /// A channel is open.
    pub(super) fn watch(&mut self, core: &Arc<Core>, open: &Open) {
        let Some(monitor) = open.monitor else { return };
        let Some(place) = MonitorPlace::of(monitor.id) else { return };
        let (core, latency, connection_id) = (Arc::clone(core), monitor.latency, open.connection_id);
        self.watched.insert(monitor.id, Watched { core, place, latency, connection_id });
        self.pages.each(|page| self.describe(page));
        self.pause = self.fastest();
        self.wait_from(Instant::now());
    }

    /// A channel has closed.
    pub(super) fn forget(&mut self, core: &Arc<Core>) {
        let before = self.watched.len();
        self.watched.retain(|_, watched| !Arc::ptr_eq(&watched.core, core));
        if self.watched.len() == before {
            return;
        }
        self.pages.each(|page| self.describe(page));
        if self.watched.is_empty() {
            self.due = None;
            self.timer = None;
        }
    }
}

impl Timer {
    fn new() -> std::io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let ready = Some(reactor::readable(timer.as_fd())?);
        Ok(Self { timer, ready })
    }
}

impl Partition {
    /// Looks at these pages from now on. What was set in those before is not lost.
    pub(super) fn place_monitors(&mut self, pages: Option<server::MonitorPages>) {
        self.monitors.collect();
        let page = pages.and_then(|pages| {
            let gpa = pages.child_to_parent;
            let page = MonitorPage::at(&self.end.memory(), gpa);
            page.map_err(|error| self.misplaced("monitor page", gpa, &error)).ok()
        });
        if let Some(page) = &page {
            self.monitors.describe(page);
        }
        self.monitors.pages.set(page);
    }
}
