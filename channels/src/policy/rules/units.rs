//! Sizes, durations and patterns as people write them.

use std::fmt;
use std::time::Duration;

use serde::{Deserializer, de};

/// Bytes: a number, or one with K, M or G behind it, which count in 1024.
pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    deserializer
        .deserialize_any(Quantity { expected: "a size such as 4096, \"64K\" or \"1G\"", parse: parse_size })
        .map(Some)
}

/// A duration in microseconds, as text with its unit.
pub(super) fn micros<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let expected = "a duration such as \"500us\", \"5ms\", \"2s\" or \"1h\"";
    deserializer.deserialize_any(Quantity { expected, parse: parse_micros }).map(Some)
}

struct Quantity {
    expected: &'static str,
    parse: fn(&str) -> Option<u64>,
}

impl de::Visitor<'_> for Quantity {
    type Value = u64;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
        let value = u64::try_from(number).ok().and_then(|number| (self.parse)(&number.to_string()));
        value.ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(digits) => (digits, 1 << 20),
            None => match text.strip_suffix(['G', 'g']) {
                Some(digits) => (digits, 1 << 30),
                None => (text, 1),
            },
        },
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn parse_micros(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(split);
    let unit = match unit.trim_start() {
        "us" | "µs" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "min" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return None,
    };
    let micros = u128::from(digits.parse::<u64>().ok()?) * unit.as_micros();
    u64::try_from(micros).ok()
}

/// Whether `name` fits `pattern`, in which `*` stands for anything and `?` for one character. Takes time in
/// proportion to the product of their lengths at most.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut read) = (0, 0);
    // Where the last star stands, and how much it has taken: only the last one ever has to take more.
    let mut star: Option<(usize, usize)> = None;
    while read < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(&c) if c == '?' || c == name[read] => {
                at += 1;
                read += 1;
            }
            Some(_) | None => match &mut star {
                Some((place, taken)) => {
                    *taken += 1;
                    (at, read) = (*place + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_have_units() {
        assert_eq!(["4096", "64K", "3m", "1G"].map(parse_size), [4096, 65536, 3 << 20, 1 << 30].map(Some));
        assert_eq!(["", "K", "-1", "1T", "99999999999G"].map(parse_size), [None; 5]);
        assert_eq!(
            ["5us", "5ms", "2s", "1min", "1h"].map(parse_micros),
            [5, 5_000, 2_000_000, 60_000_000, 3_600_000_000].map(Some)
        );
        assert_eq!(["5", "ms", "5 days", "99999999999999999999s"].map(parse_micros), [None; 4]);
    }

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name) in
            [("a", "a"), ("*", ""), ("web-*", "web-1"), ("*.b?c*", "a.bxc"), ("**a*", "bca")]
        {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a", "ab"), ("web-*", "web"), ("?", ""), ("*a", "ab"), ("", "x")] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        let worst = "*a".repeat(50) + "b";
        assert!(!fits(&worst, &"a".repeat(5000)));
    }
}
