//! Bounds in time: how much a peer may make this end do.
//!
//! Nothing here loses work. Whoever has used up what it may is looked at later, at a time that is known.

use std::time::{Duration, Instant};

/// Whoever has waited may go on for so long.
const AT_ONCE: Duration = Duration::from_millis(25);

/// An allowance that fills with time: bursts are free, what goes on is held to a rate.
#[derive(Debug)]
pub(crate) struct Allowance {
    per_second: u32,
    burst: u32,
    /// Units; below zero after something that cost more than there was.
    left: f64,
    at: Instant,
}

impl Allowance {
    /// A full one.
    pub(crate) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self { per_second: per_second.max(1), burst, left: f64::from(burst), at: now }
    }

    /// Another rate and burst from now on.
    pub(crate) fn change(&mut self, per_second: u32, burst: u32) {
        (self.per_second, self.burst) = (per_second.max(1), burst);
        self.left = self.left.min(f64::from(burst));
    }

    pub(crate) fn take(&mut self, units: u32) {
        self.left -= f64::from(units);
    }

    /// Whether more was taken than there is, as far as is known without looking at a clock.
    pub(crate) fn is_overdrawn(&self) -> bool {
        self.left < 0.0
    }

    /// How long until there is something again; `None` if there is.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * f64::from(self.per_second)).min(f64::from(self.burst));
        if self.left >= 0.0 {
            return None;
        }
        // At most what was taken, divided by a rate of at least one. Then there is something for a while: waking for
        // each unit would cost more than the units.
        let most = Duration::from_secs_f64(f64::from(self.burst) / f64::from(self.per_second));
        let owed = Duration::try_from_secs_f64(-self.left / f64::from(self.per_second)).ok()?;
        Some(owed.saturating_add(AT_ONCE.min(most)))
    }
}

/// Wakes in vain that are free: a burst of them, some for each time that there was work, and a few each second.
const FREE: u32 = 64;
const FOR_WORK: u32 = 4;
const REFILL: Duration = Duration::from_millis(10);

/// Tells a doorbell storm, signals without work, from doorbells.
#[derive(Debug)]
pub(crate) struct Storm {
    free: u32,
    at: Instant,
}

impl Storm {
    pub(crate) fn new(now: Instant) -> Self {
        Self { free: FREE, at: now }
    }

    /// A signal came and there was work.
    pub(crate) fn found_work(&mut self) {
        self.free = (self.free + FOR_WORK).min(FREE);
    }

    /// A signal came and there was no work; `true`: it is time to listen less.
    pub(crate) fn in_vain(&mut self, now: Instant) -> bool {
        if self.free == 0 {
            let refilled = now.saturating_duration_since(self.at).as_nanos() / REFILL.as_nanos();
            self.free = u32::try_from(refilled).unwrap_or(FREE).min(FREE);
            self.at = now;
        }
        match self.free.checked_sub(1) {
            Some(left) => {
                self.free = left;
                if left == 0 {
                    self.at = now;
                }
                false
            }
            None => true,
        }
    }

    /// Whether there was no storm lately.
    pub(crate) fn is_over(&self) -> bool {
        self.free > FREE / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_lets_a_burst_pass_and_then_holds_to_its_rate() {
        let start = Instant::now();
        let mut allowance = Allowance::new(1000, 500, start);
        allowance.take(500);
        assert_eq!(allowance.wait(start), None);
        allowance.take(100);
        assert!(allowance.is_overdrawn());
        assert_eq!(allowance.wait(start), Some(Duration::from_millis(125)));
        assert_eq!(allowance.wait(start + Duration::from_millis(100)), None);
        // A long rest gives a burst and no more.
        assert_eq!(allowance.wait(start + Duration::from_secs(1000)), None);
        allowance.take(501);
        assert!(allowance.wait(start + Duration::from_secs(1000)).is_some());
    }

    #[test]
    fn signals_that_bring_work_are_no_storm_however_many_and_those_that_do_not_are_one_soon() {
        let now = Instant::now();
        let mut storm = Storm::new(now);
        for _ in 0..100_000 {
            storm.found_work();
            assert!(!storm.in_vain(now) && !storm.in_vain(now));
        }
        let free = (0..1000).filter(|_| !storm.in_vain(now)).count();
        assert!(free <= 64, "{free} wakes in vain");
        assert!(!storm.is_over());
        // Some are heard all the same, and when it is over it is over.
        assert!(!storm.in_vain(now + REFILL) && storm.in_vain(now + REFILL));
        assert!(!storm.in_vain(now + Duration::from_secs(10)));
        assert!(storm.is_over());
    }
}
