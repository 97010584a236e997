//! What a guest counts while it works, and how it tells.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmbus_core::Version;

/// One line of a guest's standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// It is on the bus.
    Joined { version: String },
    /// Its first request has been completed.
    FirstRequest,
    /// It has looked at its whole disk: so many sectors are of each round.
    Found { sectors: BTreeMap<u32, u64>, figures: Figures },
    /// A round is being written; that much has been.
    Writing { round: u32, percent: u64 },
    /// A round has been written, and the flush after it has returned.
    Flushed { round: u32, figures: Figures },
    /// The round was read back and is right.
    Checked { round: u32, figures: Figures },
    /// It was asked to finish and has.
    Done { round: u32 },
    /// It has an address by DHCP.
    Addressed { address: String },
    /// It waits for a stream.
    Listening,
    /// It has found another by its name.
    Resolved { name: String, address: String },
    /// It has pinged the other, and sent it a stream.
    Streamed { pings: Latencies, bytes: u64, took: Duration },
    /// It has taken a stream, and each byte was right.
    Received { bytes: u64 },
    /// It cannot go on.
    Failed { message: String },
}

impl Line {
    pub(super) fn joined(version: Version) -> Self {
        Self::Joined { version: version.to_string() }
    }
}

/// What another guest went through meanwhile; the parent tells on standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Before,
    During,
    After,
}

impl Phase {
    pub(super) const ALL: [Self; 3] = [Self::Before, Self::During, Self::After];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::During => "during",
            Self::After => "after",
        }
    }
}

/// Sums of one guest's life, or of several.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Figures {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) flushes: u64,
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
    pub(super) bytes_verified: u64,
    pub(super) reading: Duration,
    /// Flushes included.
    pub(super) writing: Duration,
    /// Of reads and writes, by [`Phase`].
    latencies: [Latencies; 3],
}

impl Figures {
    pub(super) fn latencies_mut(&mut self, phase: Phase) -> &mut Latencies {
        &mut self.latencies[phase as usize]
    }

    pub(super) fn latencies_of(&self, phase: Phase) -> &Latencies {
        &self.latencies[phase as usize]
    }

    pub(super) fn latencies(&self) -> Latencies {
        let mut all = Latencies::default();
        for part in &self.latencies {
            all.add(part);
        }
        all
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.bytes_verified += other.bytes_verified;
        self.reading += other.reading;
        self.writing += other.writing;
        for (ours, theirs) in self.latencies.iter_mut().zip(&other.latencies) {
            ours.add(theirs);
        }
    }
}

/// How long requests took: counts in classes that are at most 1/16 wide.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Latencies {
    classes: BTreeMap<u64, u64>,
    longest: Duration,
}

impl Latencies {
    pub(super) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        *self.classes.entry(class(nanos)).or_default() += 1;
        self.longest = self.longest.max(latency);
    }

    fn add(&mut self, other: &Self) {
        for (&class, &count) in &other.classes {
            *self.classes.entry(class).or_default() += count;
        }
        self.longest = self.longest.max(other.longest);
    }

    pub(super) fn count(&self) -> u64 {
        self.classes.values().sum()
    }

    pub(super) fn longest(&self) -> Duration {
        self.longest
    }

    /// The latency that this share of the requests did not exceed; 0 without requests.
    pub(super) fn quantile(&self, percent: u64) -> Duration {
        let wanted = (self.count() * percent).div_ceil(100);
        let mut seen = 0;
        for (&class, &count) in &self.classes {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(end_of(class)).min(self.longest);
            }
        }
        self.longest
    }
}

fn class(nanos: u64) -> u64 {
    let shift = u64::from(nanos.max(16).ilog2() - 4);
    shift * 16 + (nanos >> shift)
}

/// The largest value of a class.
fn end_of(class: u64) -> u64 {
    if class < 32 {
        return class;
    }
    let shift = class / 16 - 1;
    ((class % 16 + 17) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_a_sixteenth() {
        let mut latencies = Latencies::default();
        for micros in 1..=1000 {
            latencies.record(Duration::from_micros(micros));
        }
        for (percent, exact) in [(50, 500), (99, 990)] {
            let (told, exact) = (latencies.quantile(percent), Duration::from_micros(exact));
            assert!(told >= exact && told <= exact + exact / 15, "p{percent}: {told:?}");
        }
        assert_eq!(latencies.quantile(100), Duration::from_millis(1));
        assert_eq!((latencies.count(), latencies.longest()), (1000, Duration::from_millis(1)));
        assert_eq!(Latencies::default().quantile(99), Duration::ZERO);
    }

    #[test]
    fn classes_follow_each_other_without_gap() {
        let mut last = 0;
        for nanos in 1..100_000 {
            let class = class(nanos);
            assert!(class == last || class == last + 1, "{nanos}");
            assert!(end_of(class) >= nanos);
            assert!(class == last || end_of(last) == nanos - 1, "{nanos}");
            last = class;
        }
    }

    #[test]
    fn lines_survive_the_pipe() {
        let mut figures = Figures { writes: 3, ..Figures::default() };
        figures.latencies_mut(Phase::During).record(Duration::from_micros(77));
        let line = serde_json::to_string(&Line::Flushed { round: 4, figures }).unwrap();
        let Line::Flushed { round: 4, figures } = serde_json::from_str(&line).unwrap() else {
            panic!("{line}")
        };
        assert_eq!((figures.writes, figures.latencies_of(Phase::During).count()), (3, 1));
    }
}
