//! Rules as a file has them, and what can be wrong with it.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use vmbus_core::{Guid, Version};

use super::super::{Deliver, Limits, PartitionKind, Priority, QuotaLimits, Rate};
use super::window::{Window, WindowFile};
use super::{Answer, Ask, Rule, Rules, Tier, units};
use crate::transfer::TransferMode;

/// What is wrong with a file of rules, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct RulesError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Option<Word>,
    #[serde(default, with = "super::super::text::optional")]
    min_version: Option<Version>,
    #[serde(default)]
    rule: Vec<Spanned<RuleFile>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    name: Option<String>,
    partition: Option<OneOrMore<String>>,
    kind: Option<PartitionKind>,
    uid: Option<OneOrMore<u32>>,
    asks: Option<Vec<Ask>>,
    class: Option<Spanned<String>>,
    #[serde(default, with = "super::super::text::optional")]
    instance: Option<Guid>,
    device: Option<String>,
    #[serde(default, with = "super::super::text::optional")]
    service: Option<Guid>,
    when: Option<Spanned<WindowFile>>,
    decide: Option<Word>,
    reason: Option<String>,
    #[serde(default, with = "super::super::text::optional")]
    min_version: Option<Version>,
    limits: Option<LimitsFile>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::More(more) => more,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsFile {
    #[serde(default, deserialize_with = "units::size")]
    rings: Option<u64>,
    #[serde(default, deserialize_with = "units::size")]
    shared: Option<u64>,
    subchannels: Option<u32>,
    transfer: Option<Transfer>,
    rate: Option<RateFile>,
    #[serde(default, deserialize_with = "units::micros")]
    deliver_after: Option<u64>,
    deliver_between: Option<Spanned<WindowFile>>,
    priority: Option<Priority>,
    quotas: Option<QuotaLimits>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Transfer {
    Always(TransferMode),
    BySize(Vec<TierFile>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TierFile {
    #[serde(default, deserialize_with = "units::size")]
    up_to: Option<u64>,
    mode: TransferMode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateFile {
    requests: Option<u64>,
    #[serde(default, deserialize_with = "units::size")]
    bytes: Option<u64>,
    #[serde(default, deserialize_with = "units::micros")]
    burst: Option<u64>,
}

/// What is wrong, and at which byte of the text.
type Wrong = (Range<usize>, String);

pub(super) fn parse(text: &str, classes: &[(&str, Guid)]) -> Result<Rules, RulesError> {
    let file: File = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        located(text, &(span, error.message().trim_end().replace('\n', ", ")))
    })?;
    let rules = file.rule.into_iter().enumerate();
    let rules: Result<_, Wrong> = rules.map(|(index, rule)| compile(index, rule, classes)).collect();
    let rules = rules.map_err(|wrong| located(text, &wrong))?;
    Ok(Rules { allows: file.default == Some(Word::Allow), min_version: file.min_version, rules })
}

fn located(text: &str, (span, message): &Wrong) -> RulesError {
    let before = text.as_bytes().get(..span.start).unwrap_or(text.as_bytes());
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    RulesError { line, message: message.clone() }
}

fn compile(index: usize, rule: Spanned<RuleFile>, classes: &[(&str, Guid)]) -> Result<Rule, Wrong> {
    let span = rule.span();
    let rule = rule.into_inner();
    let wrong = |message: &str| Err((span.clone(), message.to_owned()));
    if rule.asks.as_ref().is_some_and(Vec::is_empty) {
        return wrong("a rule that asks about nothing never applies");
    }
    let of_device = rule.class.is_some() || rule.instance.is_some() || rule.device.is_some();
    if of_device && rule.service.is_some() {
        return wrong("a rule is about devices or about a service, not about both");
    }
    let denies = rule.decide == Some(Word::Deny);
    if denies && (rule.limits.is_some() || rule.min_version.is_some()) {
        return wrong("a rule that denies has no limits");
    }
    if !denies && rule.reason.is_some() {
        return wrong("only a rule that denies has a reason");
    }
    let class = rule.class.map(|class| class_of(&class, classes)).transpose()?;
    let when = rule.when.map(|file| window(&file)).transpose()?;
    let name = rule.name.unwrap_or_else(|| format!("rule {}", index + 1));
    let answer = if denies {
        Answer::Deny(rule.reason.unwrap_or_else(|| format!("denied by {name}")))
    } else {
        let (limits, tiers, deliver_between) = match rule.limits {
            Some(limits) => compile_limits(limits, &span)?,
            None => (Limits::default(), Vec::new(), None),
        };
        Answer::Allow { min_version: rule.min_version, limits: Box::new(limits), tiers, deliver_between }
    };
    Ok(Rule {
        partitions: rule.partition.map(OneOrMore::into_vec),
        kind: rule.kind,
        uids: rule.uid.map(OneOrMore::into_vec),
        asks: rule.asks,
        class,
        instance: rule.instance,
        device: rule.device,
        service: rule.service,
        when,
        answer,
    })
}

type CompiledLimits = (Limits, Vec<Tier>, Option<Window>);

fn compile_limits(file: LimitsFile, span: &Range<usize>) -> Result<CompiledLimits, Wrong> {
    let rate = match file.rate {
        Some(RateFile { requests: Some(0), .. } | RateFile { bytes: Some(0), .. }) => {
            return Err((span.clone(), "a rate of 0: use decide = \"deny\"".into()));
        }
        Some(RateFile { requests: None, bytes: None, .. }) => {
            return Err((span.clone(), "a rate without `requests` and `bytes` limits nothing".into()));
        }
        Some(RateFile { requests, bytes, burst }) => {
            let burst_ms = burst.map(|micros| u32::try_from(micros / 1000).unwrap_or(u32::MAX));
            Some(Rate { requests, bytes, burst_ms })
        }
        None => None,
    };
    let tiers = match file.transfer {
        Some(Transfer::Always(mode)) => vec![Tier { up_to: u64::MAX, mode }],
        Some(Transfer::BySize(tiers)) => {
            let tiers = tiers.into_iter();
            tiers.map(|TierFile { up_to, mode }| Tier { up_to: up_to.unwrap_or(u64::MAX), mode }).collect()
        }
        None => Vec::new(),
    };
    if !tiers.is_sorted_by(|one, two| one.up_to < two.up_to) {
        return Err((span.clone(), "`transfer` must go from small to large, each `up_to` once".into()));
    }
    let deliver = file.deliver_after.map(|after| Deliver { after_us: Some(after), not_before: None });
    let limits = Limits {
        ring_bytes: file.rings,
        subchannels: file.subchannels,
        shared_bytes: file.shared,
        mode: None,
        rate,
        deliver,
        priority: file.priority,
        quotas: file.quotas,
    };
    let between = file.deliver_between.map(|file| window(&file)).transpose()?;
    Ok((limits, tiers, between))
}

fn class_of(text: &Spanned<String>, classes: &[(&str, Guid)]) -> Result<Guid, Wrong> {
    if let Some((_, class)) = classes.iter().find(|(name, _)| name == text.get_ref()) {
        return Ok(*class);
    }
    text.get_ref().parse().map_err(|_| {
        let known: Vec<&str> = classes.iter().map(|(name, _)| *name).collect();
        let known =
            if known.is_empty() { String::new() } else { format!(", or one of {}", known.join(", ")) };
        (text.span(), format!("`{}` is no class: expected a GUID{known}", text.get_ref()))
    })
}

fn window(file: &Spanned<WindowFile>) -> Result<Window, Wrong> {
    Window::new(file.get_ref()).map_err(|message| (file.span(), message))
}
