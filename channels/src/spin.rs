//! How long to look before sleeping.
//!
//! A wake across cores costs the waker about 10 µs and the sleeper 20 to 60 µs, so whoever expects an answer soon
//! looks for it a while first. How long is learned: looking that succeeds is repeated, looking in vain is paid for
//! with waits that do not look at all, twice as many each time. Two ends that share one core thus stop looking by
//! themselves.

use std::time::{Duration, Instant};

/// How long a channel looks for work before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spin {
    longest: Duration,
}

impl Spin {
    /// Looks for up to 50 µs, less where experience shows that it does not pay. The default.
    pub const fn adaptive() -> Self {
        Self { longest: Duration::from_micros(50) }
    }

    /// Sleeps at once: the least CPU when work is rare, one wake for each pause of the peer.
    pub const fn never() -> Self {
        Self { longest: Duration::ZERO }
    }

    /// Looks so many times as long.
    pub(crate) const fn times(self, factor: u32) -> Self {
        Self { longest: self.longest.saturating_mul(factor) }
    }

    /// Like [`Spin::adaptive`] with another upper bound.
    pub const fn up_to(longest: Duration) -> Self {
        Self { longest }
    }
}

impl Default for Spin {
    fn default() -> Self {
        Self::adaptive()
    }
}

/// What one waiter has learned.
#[derive(Clone, Debug)]
pub(crate) struct Spinner {
    spin: Spin,
    /// Waits still to pass without looking.
    skip: u32,
    /// How many waits the next failure will pass over.
    penalty: u32,
}

/// Looks between two readings of the clock, which cost about as much as ten looks.
const LOOKS_PER_CLOCK: u32 = 32;
const LONGEST_PENALTY: u32 = 1 << 10;

impl Spinner {
    pub(crate) fn new(spin: Spin) -> Self {
        Self { spin, skip: 0, penalty: 0 }
    }

    /// Calls `look` until it finds something (`Some`) or the budget is spent (`None`).
    pub(crate) fn look<T>(&mut self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        if let Some(found) = look() {
            return Some(found);
        }
        if self.spin.longest.is_zero() {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let mut start = None;
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                std::hint::spin_loop();
                if let Some(found) = look() {
                    self.penalty = 0;
                    return Some(found);
                }
            }
            // What comes at once is not held up by a look at the clock.
            if start.get_or_insert_with(Instant::now).elapsed() >= self.spin.longest {
                self.penalty = (2 * self.penalty + 1).min(LONGEST_PENALTY);
                self.skip = self.penalty;
                return None;
            }
        }
    }

    /// The sleep that followed turned out short enough to have been worth looking: look again soon.
    pub(crate) fn slept(&mut self, how_long: Duration) {
        if how_long < self.spin.longest / 2 && self.penalty <= 8 {
            self.skip = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks_of_one_wait(spinner: &mut Spinner) -> u32 {
        let mut looks = 0;
        let found: Option<()> = spinner.look(|| {
            looks += 1;
            None
        });
        assert!(found.is_none());
        looks
    }

    #[test]
    fn never_looks_once() {
        assert_eq!(looks_of_one_wait(&mut Spinner::new(Spin::never())), 1);
    }

    #[test]
    fn looking_in_vain_becomes_rare_and_success_restores_it() {
        let mut spinner = Spinner::new(Spin::up_to(Duration::from_micros(1)));
        let long_waits = (0..200).filter(|_| looks_of_one_wait(&mut spinner) > 1).count();
        assert!(long_waits <= 8, "{long_waits} of 200 waits looked in vain");

        while looks_of_one_wait(&mut spinner) == 1 {}
        spinner.skip = 0;
        let mut looks = 0;
        assert_eq!(
            spinner.look(|| {
                looks += 1;
                (looks > 3).then_some(7)
            }),
            Some(7)
        );
        assert!(looks_of_one_wait(&mut spinner) > 1, "a success makes the next wait look again");
    }
}
