//! How fast and when packets pass one end of a channel, where policy limits that (`policy.md`, "Flow").
//!
//! A channel without limits has none of this. What has to wait stays where it is: in the ring, whose writer has to
//! wait for room then. Nothing is lost and nothing is kept elsewhere.

use std::time::Duration;

use tokio::time::Instant;

use crate::policy::{Limits, Priority, Rate, WallTime};
use crate::spin::Spin;

/// A pause so long that whoever limits like this means never.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// What may come at once after a pause, as a part of what may come in a second.
const BURST: Duration = Duration::from_millis(100);
/// How much longer a channel that is served first looks for work.
const EAGER: u32 = 4;

/// What one direction of a channel may do when.
#[derive(Debug)]
pub(crate) struct Flow {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
    not_before: Option<Instant>,
    collect: Option<Collecting>,
    /// Somebody else gets a turn before each packet; whether that has happened for the next one.
    gives_way: Option<bool>,
}

/// Why the next packet does not pass yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// It does at this moment.
    Until(Instant),
    /// Others go first.
    GiveWay,
}

impl Flow {
    /// `None` if `limits` do not concern the flow of packets. `wall` is the time on the wall now.
    pub(crate) fn new(limits: &Limits, wall: WallTime) -> Option<Box<Self>> {
        let now = Instant::now();
        let Rate { requests, bytes, burst_ms } = limits.rate.unwrap_or_default();
        let burst = burst_ms.map_or(BURST, |ms| Duration::from_millis(ms.into()));
        let bucket = |per_second: Option<u64>| per_second.map(|rate| Bucket::new(rate, burst, now));
        let deliver = limits.deliver.unwrap_or_default();
        let flow = Self {
            requests: bucket(requests),
            bytes: bucket(bytes),
            not_before: deliver.not_before.map(|then| {
                let wait = Duration::from_micros(then.micros.saturating_sub(wall.micros));
                now + wait.min(LONGEST)
            }),
            collect: deliver.after().map(|window| Collecting { window: window.min(LONGEST), until: None }),
            gives_way: (limits.priority == Some(Priority::Low)).then_some(false),
        };
        let limited = flow.requests.is_some()
            || flow.bytes.is_some()
            || flow.not_before.is_some()
            || flow.collect.is_some()
            || flow.gives_way.is_some();
        limited.then(|| Box::new(flow))
    }

    /// Whether a packet that is there has to wait. `None`: it passes, and [`passed`](Self::passed) follows.
    pub(crate) fn holds(&mut self) -> Option<Hold> {
        let now = Instant::now();
        let collected = self.collect.as_mut().map(|collecting| collecting.due(now));
        let buckets = [&self.requests, &self.bytes];
        let paid = buckets.into_iter().flatten().map(Bucket::due).max();
        let due = [self.not_before, collected, paid].into_iter().flatten().max();
        match due {
            Some(due) if due > now => return Some(Hold::Until(due)),
            Some(_) | None => {}
        }
        match &mut self.gives_way {
            Some(gave @ false) => {
                *gave = true;
                Some(Hold::GiveWay)
            }
            Some(true) | None => None,
        }
    }

    /// A packet that stands for so many bytes has passed.
    pub(crate) fn passed(&mut self, bytes: u64) {
        let now = Instant::now();
        if let Some(bucket) = &mut self.requests {
            bucket.spend(1, now);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(bytes, now);
        }
        if let Some(gave) = &mut self.gives_way {
            *gave = false;
        }
    }

    /// There is no packet any more: the next is the first of those that are collected.
    pub(crate) fn emptied(&mut self) {
        if let Some(collecting) = &mut self.collect {
            collecting.until = None;
        }
    }
}

/// How long a channel of this priority looks for work, where others look as long as `spin` says.
pub(crate) fn spin_for(priority: Option<Priority>, spin: Spin) -> Spin {
    match priority {
        Some(Priority::Low) => Spin::never(),
        Some(Priority::Normal) | None => spin,
        Some(Priority::High) => spin.times(EAGER),
    }
}

/// A token bucket, kept as the moment at which it is full again: one number, no ticks, no rounding that adds up.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    burst: Duration,
    full: Instant,
}

impl Bucket {
    fn new(per_second: u64, burst: Duration, now: Instant) -> Self {
        Self { per_second: per_second.max(1), burst: burst.min(LONGEST), full: now }
    }

    /// When the next packet may pass: when no more than the burst is missing. A packet may be larger than what is
    /// left, and those after it wait for longer.
    fn due(&self) -> Instant {
        self.full.checked_sub(self.burst).unwrap_or(self.full)
    }

    fn spend(&mut self, amount: u64, now: Instant) {
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(self.per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(LONGEST);
        // What is owed has a bound, too, so that this never overflows.
        self.full = (self.full.max(now) + cost).min(now + LONGEST);
    }
}

/// Packets that wait for each other.
#[derive(Debug)]
struct Collecting {
    window: Duration,
    until: Option<Instant>,
}

impl Collecting {
    fn due(&mut self, now: Instant) -> Instant {
        *self.until.get_or_insert(now + self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Deliver;

    fn flow(limits: Limits) -> Box<Flow> {
        Flow::new(&limits, WallTime::default()).expect("limits")
    }

    /// Packets of `bytes` that pass in ten seconds of virtual time.
    async fn pass_in_ten_seconds(mut flow: Box<Flow>, bytes: u64) -> u32 {
        let end = Instant::now() + Duration::from_secs(10);
        let mut passed = 0;
        loop {
            match flow.holds() {
                None => {
                    flow.passed(bytes);
                    passed += 1;
                }
                Some(Hold::GiveWay) => {}
                Some(Hold::Until(due)) if due < end => tokio::time::sleep_until(due).await,
                Some(Hold::Until(_)) => return passed,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_holds_over_a_window_and_a_burst_passes_at_once() {
        for (requests, burst_ms) in [(50, None), (7, Some(0)), (1000, Some(1000))] {
            let rate = Rate { requests: Some(requests), burst_ms, ..Rate::default() };
            let passed = pass_in_ten_seconds(flow(Limits { rate: Some(rate), ..Limits::default() }), 0).await;
            let burst = requests * u64::from(burst_ms.unwrap_or(100)) / 1000;
            let expected = 10 * requests + burst;
            assert!((expected..=expected + 2).contains(&u64::from(passed)), "{passed}, not {expected}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_paid_for_after_a_large_packet() {
        let rate = Rate { bytes: Some(1 << 20), burst_ms: Some(0), ..Rate::default() };
        let passed =
            pass_in_ten_seconds(flow(Limits { rate: Some(rate), ..Limits::default() }), 4 << 20).await;
        assert_eq!(passed, 3, "at 0 s, 4 s and 8 s");
    }

    #[tokio::test(start_paused = true)]
    async fn absurd_rates_and_sizes_end_in_long_waits_and_no_panic() {
        let rate = Rate { requests: Some(0), bytes: Some(0), burst_ms: Some(u32::MAX) };
        let deliver = Deliver { after_us: Some(u64::MAX), not_before: Some(WallTime { micros: u64::MAX }) };
        let mut flow = flow(Limits { rate: Some(rate), deliver: Some(deliver), ..Limits::default() });
        for _ in 0..3 {
            flow.passed(u64::MAX);
            assert!(matches!(flow.holds(), Some(Hold::Until(_))));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_collected_passes_together_and_the_next_begins_anew() {
        let deliver = Deliver { after_us: Some(2000), not_before: None };
        let mut flow = flow(Limits { deliver: Some(deliver), ..Limits::default() });
        let begin = Instant::now();
        assert_eq!(flow.holds(), Some(Hold::Until(begin + Duration::from_millis(2))));
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!((flow.holds(), flow.holds()), (None, None));
        flow.emptied();
        assert_eq!(flow.holds(), Some(Hold::Until(begin + Duration::from_millis(4))));
    }

    #[tokio::test(start_paused = true)]
    async fn low_priority_gives_way_once_for_each_packet() {
        let mut flow = flow(Limits { priority: Some(Priority::Low), ..Limits::default() });
        for _ in 0..3 {
            assert_eq!((flow.holds(), flow.holds()), (Some(Hold::GiveWay), None));
            flow.passed(1);
        }
    }

    #[test]
    fn limits_of_other_things_are_no_flow() {
        let limits = Limits { ring_bytes: Some(1), priority: Some(Priority::High), ..Limits::default() };
        assert!(Flow::new(&limits, WallTime::default()).is_none());
    }
}
