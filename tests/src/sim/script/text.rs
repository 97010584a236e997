//! The text form of scripts.

use std::fmt;
use std::str::FromStr;

use vmbus_core::Version;

use super::{Action, Channel, Disturbance, Disturbs, GuestSetup, Script};

/// The `name=value` words of one line.
pub(super) struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn new(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let pair = |word: &'a str| word.split_once('=').ok_or_else(|| format!("{word:?} is no name=value"));
        Ok(Self(words.map(pair).collect::<Result<_, _>>()?))
    }

    pub(super) fn take<T: Field>(&mut self, name: &str) -> Result<T, String> {
        let at = self.0.iter().position(|(known, _)| *known == name);
        let (_, value) = self.0.swap_remove(at.ok_or_else(|| format!("{name}=... is missing"))?);
        T::read(value).ok_or_else(|| format!("{name}={value} cannot be"))
    }

    fn end(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!("{name}=... means nothing here")),
        }
    }
}

/// A value of a field.
pub(super) trait Field: Sized {
    fn read(text: &str) -> Option<Self>;
}

macro_rules! fields_by_from_str {
    ($($type:ty),*) => { $(impl Field for $type {
        fn read(text: &str) -> Option<Self> { <$type>::from_str(text).ok() }
    })* };
}

fields_by_from_str!(u8, u16, u32, u64, Channel, super::Lane, super::Decides, super::Bounds);

impl Field for Version {
    fn read(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| number(*version) == text)
    }
}

/// A version as major.minor.
fn number(version: Version) -> String {
    format!("{}.{}", version.word() >> 16, version.word() & 0xffff)
}

impl fmt::Display for Channel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sub {
            0 => write!(formatter, "{}", self.device),
            sub => write!(formatter, "{}.{sub}", self.device),
        }
    }
}

impl FromStr for Channel {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (device, sub) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self { device: device.parse()?, sub: sub.parse()? })
    }
}

impl fmt::Display for GuestSetup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { newest, root, policy, quotas } = *self;
        let (newest, root) = (number(newest), number(root));
        write!(formatter, "guest newest={newest} root={root} policy={policy} quotas={quotas}")
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, guest, lane, nth } = self;
        let (word, ticks) = match what {
            Disturbs::Late(ticks) => ("late", Some(ticks)),
            Disturbs::Twice(ticks) => ("twice", Some(ticks)),
            Disturbs::Refused => ("refused", None),
        };
        write!(formatter, "{word} guest={guest} lane={lane} nth={nth}")?;
        ticks.map_or(Ok(()), |ticks| write!(formatter, " ticks={ticks}"))
    }
}

impl fmt::Display for Script {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(broken) = self.broken {
            writeln!(formatter, "broken {broken}")?;
        }
        for guest in &self.guests {
            writeln!(formatter, "{guest}")?;
        }
        for (at, action) in &self.actions {
            writeln!(formatter, "{at} {action}")?;
        }
        for disturbance in &self.disturbances {
            writeln!(formatter, "{disturbance}")?;
        }
        Ok(())
    }
}

pub(super) fn parse(text: &str) -> Result<Script, String> {
    let mut script = Script::default();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        parse_line(line, &mut script).map_err(|why| format!("line {}, {line:?}: {why}", index + 1))?;
    }
    if !script.actions.is_sorted_by_key(|(at, _)| *at) {
        return Err("the actions are not in order of time".into());
    }
    Ok(script)
}

fn parse_line(line: &str, script: &mut Script) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let Some(first) = words.next() else { return Ok(()) };
    if first == "broken" {
        script.broken = Some(words.next().unwrap_or_default().parse()?);
        return Ok(());
    }
    if let Ok(at) = first.parse() {
        let word = words.next().ok_or("an action is missing")?;
        let mut fields = Fields::new(words)?;
        script.actions.push((at, Action::parse(word, &mut fields)?));
        return fields.end();
    }
    let mut fields = Fields::new(words)?;
    let what = match first {
        "guest" => {
            script.guests.push(GuestSetup {
                newest: fields.take("newest")?,
                root: fields.take("root")?,
                policy: fields.take("policy")?,
                quotas: fields.take("quotas")?,
            });
            return fields.end();
        }
        "late" => Disturbs::Late(fields.take("ticks")?),
        "twice" => Disturbs::Twice(fields.take("ticks")?),
        "refused" => Disturbs::Refused,
        other => return Err(format!("{other:?} begins no line")),
    };
    script.disturbances.push(Disturbance {
        what,
        guest: fields.take("guest")?,
        lane: fields.take("lane")?,
        nth: fields.take("nth")?,
    });
    fields.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_the_same() {
        for seed in 0..50 {
            let script = crate::sim::generate(seed, 3, 8);
            let text = script.to_string();
            assert_eq!(Script::parse(&text), Ok(script), "{text}");
        }
    }

    #[test]
    fn a_line_that_means_nothing_is_named() {
        for (line, why) in [
            ("5 fly guest=1", "\"fly\" is no action"),
            ("5 open guest=1 channel=2", "pages=... is missing"),
            ("5 kill guest=300", "guest=300 cannot be"),
            ("5 kill guest=1 fast=1", "fast=... means nothing here"),
            ("late guest=0 lane=moon nth=1 ticks=1", "lane=moon cannot be"),
        ] {
            let text = format!("# first\n{line}");
            let error = Script::parse(&text).unwrap_err();
            assert!(error.contains(why) && error.contains("line 2"), "{error}");
        }
    }
}
