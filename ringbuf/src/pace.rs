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
    pause: u32,
}

/// Spin hints that a pause may reach.
const LONGEST: u32 = 32;

impl Pace {
    /// Knows nothing: no pause.
    pub const fn new() -> Self {
        Self { pause: 0 }
    }

    /// Spin hints to execute before the next look, after a look that found `packets`.
    #[inline]
    pub fn found(&mut self, packets: usize) -> u32 {
        self.pause = match packets {
            // A stream that paused may go on; one that ended costs nothing by looking slowly, for a while.
            0 => self.pause / 2,
            1 => 0,
            2.. => (self.pause * 2).clamp(4, LONGEST),
        };
        self.pause
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}
