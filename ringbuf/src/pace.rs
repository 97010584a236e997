//! How long to pause between two looks at a ring that is being written.

/// Learns whether packets come as a stream or one at a time, and tells a polling reader how long to pause before it
/// looks again.
///
/// Both indices of a ring stand in one cache line, which travels to the reader at each look and back at each commit.
/// A reader that is faster than the writer and looks without pause takes the line away at every packet, and both run
/// at the speed of the travel. A pause lets several packets gather, one look serves them all. With one packet at a
/// time, as in a conversation, any pause is only latency: then there is none.
///
/// It only calculates: the caller executes so many [`core::hint::spin_loop`].
#[derive(Debug, Clone)]
pub struct Pace {
    /// Hints before the next look.
    pause: u32,
    /// Looks that found a single packet until the next trial pause.
    until_trial: u32,
    /// How many of them there were before the last trial.
    trial_every: u32,
}

/// Spin hints that a pause may reach.
const LONGEST: u32 = 32;
/// Spin hints of a pause in a stream at least, and of a trial.
const SHORTEST: u32 = 4;
/// Packets that a look should find in a stream.
const ENOUGH: usize = 32;

impl Pace {
    /// Knows nothing: no pause.
    pub const fn new() -> Self {
        Self { pause: 0, until_trial: 2, trial_every: 2 }
    }

    /// Spin hints to execute before the next look, after a look that found `packets`.
    #[inline]
    pub fn found(&mut self, packets: usize) -> u32 {
        match packets {
            // A stream that paused may go on; one that ended costs nothing by looking slowly, for a while.
            0 => self.pause /= 2,
            1 if self.until_trial == 0 => {
                // One at a time may be a conversation, or a stream that we hold up by looking: see what a pause does.
                self.trial_every = (self.trial_every * 2).min(128);
                self.until_trial = self.trial_every;
                self.pause = SHORTEST;
            }
            1 => {
                self.until_trial -= 1;
                self.pause = 0;
            }
            2..ENOUGH => {
                self.pause = (self.pause * 2).clamp(SHORTEST, LONGEST);
                self.trial_every = 2;
                self.until_trial = 2;
            }
            ENOUGH.. => {}
        }
        self.pause
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}
