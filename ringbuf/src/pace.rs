//! How long to pause between two looks at a ring that is being written.

/// Learns whether packets come as a stream or one at a time, and tells a polling reader how long to pause before it
/// looks again.
///
/// Both indices of a ring stand in one cache line, which travels to the reader at each look and back at each commit.
/// A reader that is faster than the writer and looks without pause takes the line away at every packet, and both run
/// at the speed of the travel. A pause lets several packets gather, and one look serves them all. With one packet at
/// a time, as in a conversation, any pause is only latency: then there is none, but for a short trial now and then,
/// since a stream held up by looks looks like a conversation. A reader that is slower than the writer needs none
/// either: it finds as many packets as it found before.
///
/// It only calculates: the caller executes so many [`core::hint::spin_loop`].
#[derive(Debug, Clone)]
pub struct Pace {
    /// Hints of a pause; 0 in a conversation.
    pause: u32,
    /// Packets that the last look found that found any.
    last: usize,
    /// Whether the last answer was a pause.
    paused: bool,
    /// Looks in a row that found nothing.
    vain: u32,
    /// Looks that find a single packet until a pause is tried.
    until_trial: u32,
    /// How many of them there are between this trial and the next.
    trial_every: u32,
    /// Hints of the next trial: the larger the packets, the longer it takes to see two.
    trial_pause: u32,
    /// Whether the last answer was a trial.
    trying: bool,
}

/// Spin hints of a pause at most: some packets' time, and little beside a wake-up's.
const LONGEST: u32 = 32;
/// Spin hints of a pause at least.
const SHORTEST: u32 = 4;
/// Packets that a pause should let gather.
const ENOUGH: usize = 32;
/// Single packets before the first trial, and between trials that keep failing.
const FIRST_TRIAL: u32 = 2;
const RARE_TRIAL: u32 = 256;

impl Pace {
    /// Knows nothing: no pause.
    pub const fn new() -> Self {
        Self {
            pause: 0,
            last: 0,
            paused: false,
            vain: 0,
            until_trial: FIRST_TRIAL,
            trial_every: FIRST_TRIAL,
            trial_pause: SHORTEST,
            trying: false,
        }
    }

    /// Spin hints to execute before the next look, after a look that found `packets`, all of which were taken.
    #[inline]
    pub fn found(&mut self, packets: usize) -> u32 {
        let hints = match packets {
            0 => self.nothing(),
            1 => self.single(),
            2.. => self.several(packets),
        };
        self.paused = hints > 0;
        hints
    }

    /// A stream that paused may go on; one that ended is forgotten soon.
    fn nothing(&mut self) -> u32 {
        self.vain += 1;
        if self.trying {
            self.trying = false;
            self.pause = 0;
        } else if self.vain > 2 {
            self.vain = 0;
            self.shorten();
        }
        self.pause
    }

    fn single(&mut self) -> u32 {
        (self.vain, self.last) = (0, 1);
        if self.trying {
            self.trying = false;
            self.pause = 0;
        } else if self.pause > 0 {
            // In a stream, one packet is what comes while a few are taken; after a pause it is a thin stream.
            if self.paused {
                self.shorten();
            }
            return self.pause;
        }
        self.until_trial -= 1;
        if self.until_trial == 0 {
            self.trial_every = (self.trial_every * 2).min(RARE_TRIAL);
            self.until_trial = self.trial_every;
            self.pause = self.trial_pause;
            self.trial_pause = if self.trial_pause < LONGEST { self.trial_pause * 2 } else { SHORTEST };
            self.trying = true;
        }
        self.pause
    }

    fn several(&mut self, packets: usize) -> u32 {
        (self.trial_every, self.until_trial, self.vain, self.trying) = (FIRST_TRIAL, FIRST_TRIAL, 0, false);
        if self.pause == 0 {
            self.pause = SHORTEST;
        } else if self.paused && packets < ENOUGH {
            self.pause = (self.pause * 2).min(LONGEST);
        } else if self.paused && packets >= 2 * ENOUGH {
            self.pause = (self.pause / 2).max(SHORTEST);
        }
        // Half as many as before, and not for a pause: we gain on the writer.
        let gaining = packets * 2 <= self.last;
        self.last = packets;
        if gaining { self.pause } else { 0 }
    }

    fn shorten(&mut self) {
        self.pause /= 2;
        if self.pause < SHORTEST {
            self.pause = 0;
        }
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two cores in numbers, all in nanoseconds, of the order measured on real ones.
    const HINT: u64 = 25;
    /// What a look costs the reader, and the writer's next commit, when the line has to travel.
    const TRAVEL: u64 = 100;
    const LOOK: u64 = 3;

    /// A writer that commits packets one by one, and a reader.
    struct Cores {
        write_cost: u64,
        read_cost: u64,
        /// Packets under way at most; the writer waits for the reader beyond.
        depth: u64,
        reader: u64,
        writer: u64,
        written: u64,
        read: u64,
        /// The reader has the line.
        taken: bool,
        paused: u64,
    }

    impl Cores {
        fn new(write_cost: u64, read_cost: u64, depth: u64) -> Self {
            let (reader, writer, written, read, paused) = (0, 0, 0, 0, 0);
            Self { write_cost, read_cost, depth, reader, writer, written, read, taken: false, paused }
        }

        /// Lets the writer work until the reader's time.
        fn write(&mut self) {
            while self.written - self.read < self.depth {
                let cost = self.write_cost + if self.taken { TRAVEL } else { 0 };
                if self.writer + cost > self.reader {
                    return;
                }
                self.writer += cost;
                self.written += 1;
                self.taken = false;
            }
            // It waits for the reader.
            self.writer = self.writer.max(self.reader);
        }

        /// Nanoseconds per packet under this rule of pausing.
        fn run(&mut self, packets: u64, mut found: impl FnMut(usize) -> u32) -> u64 {
            while self.read < packets {
                self.reader += if self.taken { LOOK } else { TRAVEL };
                self.write();
                let now = self.written - self.read;
                // A line that changed meanwhile travels again.
                self.taken = true;
                self.reader += now * self.read_cost;
                self.read += now;
                let hints = u64::from(found(usize::try_from(now).unwrap()));
                self.paused += hints * HINT;
                self.reader += hints * HINT;
                self.write();
            }
            self.reader / packets
        }
    }

    #[test]
    fn a_stream_has_no_slow_mode() {
        let eager = Cores::new(15, 5, 10_000).run(100_000, |_| 0);
        let paced = Cores::new(15, 5, 10_000).run(100_000, {
            let mut pace = Pace::new();
            move |now| pace.found(now)
        });
        assert!(eager > 60, "looks without pause hold the stream up: {eager} ns per packet");
        assert!(paced <= 22, "{paced} ns per packet, of which the writer needs 15");
    }

    #[test]
    fn a_stream_of_large_packets_has_no_slow_mode() {
        let mut pace = Pace::new();
        let eager = Cores::new(250, 150, 256).run(100_000, |_| 0);
        let paced = Cores::new(250, 150, 256).run(100_000, |now| pace.found(now));
        assert!(eager > 300, "looks without pause hold the stream up: {eager} ns per packet");
        assert!(paced <= 290, "{paced} ns per packet, of which the writer needs 250");
    }

    #[test]
    fn a_slow_reader_does_not_pause() {
        let mut pace = Pace::new();
        let mut cores = Cores::new(15, 300, 32);
        let each = cores.run(100_000, |now| pace.found(now));
        assert!(each <= 315, "{each} ns per packet, of which the reader needs 300");
    }

    #[test]
    fn a_conversation_is_hardly_disturbed() {
        // The answer to each packet takes a while to bring the next.
        let mut pace = Pace::new();
        let mut paused = 0;
        for _ in 0..10_000 {
            paused += pace.found(1);
            for _ in 0..8 {
                paused += pace.found(0);
            }
        }
        assert!(u64::from(paused) * HINT / 10_000 <= 5, "{paused} hints in 10,000 rounds");
    }

    #[test]
    fn a_stream_after_a_long_conversation_is_noticed() {
        let mut pace = Pace::new();
        (0..100_000).for_each(|_| _ = pace.found(1));
        let each = Cores::new(15, 5, 10_000).run(100_000, |now| pace.found(now));
        assert!(each <= 22, "{each} ns per packet");
    }

    #[test]
    fn a_stream_that_ended_is_forgotten() {
        let mut pace = Pace::new();
        (0..50).for_each(|_| _ = (pace.found(20), pace.found(5)));
        assert!((0..20).map(|_| pace.found(0)).sum::<u32>() > 0);
        assert_eq!(pace.found(0), 0);
    }
}
