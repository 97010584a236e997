//! Decisions as JSON lines, and whether an agent decides the same again.

use std::io::{self, BufRead, Read as _};

use serde::{Deserialize, Serialize};

use super::{Decided, Decision, PolicyAgent, Reason};

/// Bytes of one line; a longer one is no decision.
const LONGEST_LINE: u64 = 1 << 20;
/// Differences that are listed; more are counted.
const LISTED: usize = 1000;

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Logged {
    /// A decision.
    Decided(Box<Decided>),
    /// Whoever wrote the log missed some.
    Missed {
        /// How many events at most.
        missed: u64,
    },
}

/// What became of replaying a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Decisions that are the same.
    pub same: u64,
    /// Decisions that no agent made: it was silent, too many questions waited, or something was revoked.
    pub others: u64,
    /// Decisions that are missing.
    pub missed: u64,
    /// Decisions that differ.
    pub differ: u64,
    /// Those, the first of them at least.
    pub differences: Vec<Difference>,
    /// Lines that are no decisions, the first of them at least: their numbers from 1 on, and what is wrong.
    pub unreadable: Vec<(u64, String)>,
}

/// A decision that comes out differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Line of the log, from 1 on.
    pub line: u64,
    /// What was decided.
    pub logged: Box<Decided>,
    /// What is decided now.
    pub now: Decision,
}

/// Asks `agent` everything that the log says was asked, one after the other, and compares.
///
/// # Errors
/// The log cannot be read.
pub async fn replay(mut log: impl BufRead, agent: &dyn PolicyAgent) -> io::Result<Replay> {
    let mut replay = Replay::default();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if (&mut log).take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(Logged::Decided(logged)) => replay.compare(number, logged, agent).await,
            Ok(Logged::Missed { missed }) => replay.missed = replay.missed.saturating_add(missed),
            Err(error) => {
                if replay.unreadable.len() < LISTED {
                    replay.unreadable.push((number, error.to_string()));
                }
            }
        }
    }
    Ok(replay)
}

impl Replay {
    /// Whether the agent decides as the log says, as far as that is known.
    pub fn is_same(&self) -> bool {
        self.differ == 0 && self.unreadable.is_empty()
    }

    async fn compare(&mut self, line: u64, logged: Box<Decided>, agent: &dyn PolicyAgent) {
        match logged.reason {
            Reason::Agent => {}
            Reason::Silence | Reason::Panic | Reason::Crowd | Reason::Revoked => {
                self.others += 1;
                return;
            }
        }
        let now = agent.decide(&logged.asked).await;
        if now == logged.decision {
            self.same += 1;
            return;
        }
        self.differ += 1;
        if self.differences.len() < LISTED {
            self.differences.push(Difference { line, logged, now });
        }
    }
}
