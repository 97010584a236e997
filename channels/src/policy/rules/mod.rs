//! An agent that decides by a list of rules (`policy.md`, "Rules").
//!
//! The first rule that fits a question decides it; one that no rule fits is decided by the default. Nothing but the
//! question counts, its time included, so the same log gives the same decisions.

mod file;
mod units;
mod window;

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use serde::Deserialize;
use vmbus_core::{Guid, Version};

pub use self::file::RulesError;
use self::window::Window;
use super::{Asked, Decision, Deliver, Limits, PartitionKind, PolicyAgent, Question, WallTime, Who};
use crate::transfer::TransferMode;

/// Decides by rules from a TOML file.
///
/// ```
/// use vmbus_channels::policy::Rules;
///
/// let rules: Rules = r#"
///     default = "deny"
///
///     [[rule]]
///     partition = "backup-*"
///     when = { from = "22:00", to = "06:00" }
///     limits.rate = { bytes = "50M" }
/// "#.parse()?;
/// # Ok::<(), vmbus_channels::policy::RulesError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    allows: bool,
    min_version: Option<Version>,
    rules: Vec<Rule>,
}

/// One rule. What is `None` fits everything.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    partitions: Option<Vec<String>>,
    kind: Option<PartitionKind>,
    uids: Option<Vec<u32>>,
    asks: Option<Vec<Ask>>,
    class: Option<Guid>,
    instance: Option<Guid>,
    device: Option<String>,
    service: Option<Guid>,
    when: Option<Window>,
    answer: Answer,
}

#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Deny(String),
    Allow {
        min_version: Option<Version>,
        limits: Box<Limits>,
        tiers: Vec<Tier>,
        deliver_between: Option<Window>,
    },
}

/// How transfers of up to so many bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tier {
    up_to: u64,
    mode: TransferMode,
}

/// Kinds of questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ask {
    Attach,
    Version,
    Offer,
    Open,
    Subchannels,
    Join,
    Share,
    Connect,
}

impl Rules {
    /// Reads rules. `classes` are names that may stand for class GUIDs.
    ///
    /// # Errors
    /// [`RulesError`]: what is wrong, and in which line.
    pub fn parse(text: &str, classes: &[(&str, Guid)]) -> Result<Self, RulesError> {
        file::parse(text, classes)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether the default decides everything.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The decision about one question.
    pub fn decide(&self, asked: &Asked) -> Decision {
        if let (Question::Version { version, .. }, Some(floor)) = (&asked.question, self.min_version)
            && *version < floor
        {
            return below(*version, floor);
        }
        match self.rules.iter().find(|rule| rule.fits(asked)) {
            Some(rule) => rule.answer.decision(asked),
            None if self.allows => Decision::Allow,
            None => Decision::deny("no rule allows it"),
        }
    }

    fn windows(&self) -> impl Iterator<Item = &Window> {
        self.rules.iter().flat_map(|rule| {
            let between = match &rule.answer {
                Answer::Allow { deliver_between, .. } => deliver_between.as_ref(),
                Answer::Deny(_) => None,
            };
            rule.when.iter().chain(between)
        })
    }
}

impl FromStr for Rules {
    type Err = RulesError;

    fn from_str(text: &str) -> Result<Self, RulesError> {
        Self::parse(text, &[])
    }
}

#[async_trait]
impl PolicyAgent for Rules {
    async fn decide(&self, asked: &Asked) -> Decision {
        Self::decide(self, asked)
    }

    fn next_change(&self, after: WallTime) -> Option<WallTime> {
        self.windows().filter_map(|window| window.next_change(after)).min()
    }

    fn name(&self) -> &str {
        "rules"
    }
}

impl Rule {
    fn fits(&self, asked: &Asked) -> bool {
        self.fits_who(&asked.who)
            && self.fits_what(&asked.question)
            && self.when.as_ref().is_none_or(|window| window.contains(asked.at))
    }

    fn fits_who(&self, who: &Who) -> bool {
        let uid = who.process.map(|process| process.uid);
        self.partitions
            .as_ref()
            .is_none_or(|patterns| patterns.iter().any(|pattern| units::fits(pattern, &who.name)))
            && self.kind.is_none_or(|kind| kind == who.kind)
            && self.uids.as_ref().is_none_or(|uids| uid.is_some_and(|uid| uids.contains(&uid)))
    }

    fn fits_what(&self, question: &Question) -> bool {
        let device = question.device();
        self.asks.as_ref().is_none_or(|asks| asks.contains(&Ask::of(question)))
            && self.class.is_none_or(|class| device.is_some_and(|device| device.class == class))
            && self.instance.is_none_or(|instance| device.is_some_and(|device| device.instance == instance))
            && self
                .device
                .as_ref()
                .is_none_or(|pattern| device.is_some_and(|device| units::fits(pattern, &device.name)))
            && self.service.is_none_or(|wanted| match question {
                Question::Connect { service, .. } => *service == wanted,
                // The channel of a stream has the service for its class.
                _ => device.is_some_and(|device| device.class == wanted),
            })
    }
}

impl Answer {
    fn decision(&self, asked: &Asked) -> Decision {
        let (min_version, limits, tiers, deliver_between) = match self {
            Self::Deny(reason) => return Decision::deny(reason.as_str()),
            Self::Allow { min_version, limits, tiers, deliver_between } => {
                (min_version, limits, tiers, deliver_between)
            }
        };
        let nothing = Limits::default();
        // Only what concerns the question, so that logs say what was decided and no more.
        let limits = match &asked.question {
            Question::Version { version, .. } => match min_version {
                Some(floor) if version < floor => return below(*version, *floor),
                Some(_) | None => nothing,
            },
            Question::Attach { .. } => Limits { quotas: limits.quotas, ..nothing },
            Question::Open { .. } => {
                let mut limits =
                    Limits { quotas: None, subchannels: None, shared_bytes: None, ..(**limits).clone() };
                if let Some(window) = deliver_between {
                    match window.next_open(asked.at) {
                        Some(open) if open == asked.at => {}
                        not_before => {
                            let never = WallTime { micros: u64::MAX };
                            let deliver = limits.deliver.get_or_insert(Deliver::default());
                            deliver.not_before = Some(not_before.unwrap_or(never));
                        }
                    }
                }
                limits
            }
            Question::Subchannels { .. } => Limits { subchannels: limits.subchannels, ..nothing },
            Question::Share { bytes, .. } => {
                let tier = tiers.iter().find(|tier| *bytes <= tier.up_to);
                let mode = tier.map(|tier| tier.mode);
                Limits { shared_bytes: limits.shared_bytes, mode, ..nothing }
            }
            Question::Offer { .. } | Question::Join { .. } | Question::Connect { .. } => nothing,
        };
        if limits == Limits::default() { Decision::Allow } else { Decision::change(limits) }
    }
}

fn below(version: Version, floor: Version) -> Decision {
    Decision::deny(format!("version {version} is below {floor}"))
}

impl Ask {
    fn of(question: &Question) -> Self {
        match question {
            Question::Attach { .. } => Self::Attach,
            Question::Version { .. } => Self::Version,
            Question::Offer { .. } => Self::Offer,
            Question::Open { .. } => Self::Open,
            Question::Subchannels { .. } => Self::Subchannels,
            Question::Join { .. } => Self::Join,
            Question::Share { .. } => Self::Share,
            Question::Connect { .. } => Self::Connect,
        }
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = if self.allows { "allowed" } else { "denied" };
        write!(formatter, "{} rules; what none of them fits is {default}", self.rules.len())
    }
}
