//! How much may pass a port.

/// A rate, of bytes or frames as its place says, and what may come at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Each second.
    pub per_second: u64,
    /// At once, after a pause that was long enough.
    pub burst: u64,
}

impl Rate {
    /// So much a second, a tenth of which may come at once.
    pub const fn per_second(per_second: u64) -> Self {
        Self { per_second, burst: per_second / 10 }
    }
}

/// What may pass at the moment.
///
/// A frame passes when anything may, and those after it wait for longer if it took more: so a frame above the burst
/// passes now and then, and the rate holds all the same.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    /// In billionths, so that no time is too short to count. Below zero after a large frame.
    tokens: i128,
    filled: Option<u64>,
}

const BILLION: i128 = 1_000_000_000;

impl Bucket {
    /// Puts in what has come up to `now`, in nanoseconds. The first time it is full.
    pub(super) fn fill(&mut self, rate: Rate, now: u64) {
        let most = i128::from(rate.burst.max(1)) * BILLION;
        self.tokens = match self.filled {
            Some(before) => {
                let since = now.saturating_sub(before);
                let come = i128::from(since).saturating_mul(i128::from(rate.per_second));
                most.min(self.tokens.saturating_add(come))
            }
            None => most,
        };
        self.filled = Some(now.max(self.filled.unwrap_or(0)));
    }

    /// Whether so much passes.
    pub(super) fn take(&mut self, amount: usize) -> bool {
        let passes = self.tokens > 0;
        if passes {
            self.tokens -=
                i128::try_from(amount).unwrap_or(i128::MAX / 2).min(i128::from(u64::MAX)) * BILLION;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// What passes of an offer of 100 each millisecond.
    fn passed(rate: Rate, bucket: &mut Bucket, from: u64, milliseconds: u64) -> u64 {
        (0..milliseconds)
            .map(|millisecond| {
                bucket.fill(rate, from + millisecond * 1_000_000);
                if bucket.take(100) { 100 } else { 0 }
            })
            .sum()
    }

    #[test]
    fn the_burst_passes_at_once_and_then_the_rate() {
        let rate = Rate { per_second: 10_000, burst: 5_000 };
        let mut bucket = Bucket::default();
        let first = passed(rate, &mut bucket, 0, 1000);
        assert!((14_900..=15_100).contains(&first), "{first}");
        let later = passed(rate, &mut bucket, SECOND, 10_000);
        assert!((99_800..=100_200).contains(&later), "{later}");
    }

    #[test]
    fn a_large_frame_passes_and_is_paid_for() {
        let rate = Rate { per_second: 1000, burst: 10 };
        let mut bucket = Bucket::default();
        bucket.fill(rate, 0);
        assert!(bucket.take(5000));
        bucket.fill(rate, 4 * SECOND);
        assert!(!bucket.take(1));
        bucket.fill(rate, 5 * SECOND);
        assert!(bucket.take(1));
    }

    #[test]
    fn the_extremes_do_not_overflow() {
        let rate = Rate { per_second: u64::MAX, burst: u64::MAX };
        let mut bucket = Bucket::default();
        for now in [0, u64::MAX, 0, u64::MAX] {
            bucket.fill(rate, now);
            assert!(bucket.take(usize::MAX >> 1));
        }
        let mut closed = Bucket::default();
        let rate = Rate { per_second: 0, burst: 0 };
        closed.fill(rate, 0);
        assert!(closed.take(1), "one frame, for the bucket begins full");
        closed.fill(rate, u64::MAX);
        assert!(!closed.take(1));
    }
}
