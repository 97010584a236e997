//! Times of the week.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::Deserialize;

use super::super::WallTime;

const MINUTES_A_DAY: u16 = 24 * 60;
/// Days to look ahead for the next change: a week, and what a change of the clocks may skip.
const DAYS_AHEAD: i32 = 9;

/// From one time of the day to another, on some days of the week; over midnight if the second is earlier, and then
/// the day is the one on which it begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    /// Bit 0 is Monday.
    days: u8,
    from: u16,
    to: u16,
    zone: TimeZone,
}

/// A window as a file has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WindowFile {
    #[serde(default)]
    days: Vec<Day>,
    from: Option<String>,
    to: Option<String>,
    zone: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Window {
    /// What is wrong with it, if something is.
    pub(super) fn new(file: &WindowFile) -> Result<Self, String> {
        let days = file.days.iter().fold(0, |days, day| days | 1 << *day as u8);
        let minute = |text: &Option<String>, otherwise| match text {
            Some(text) => {
                minute(text).ok_or_else(|| format!("`{text}` is no time of the day such as \"08:30\""))
            }
            None => Ok(otherwise),
        };
        let (from, to) = (minute(&file.from, 0)?, minute(&file.to, MINUTES_A_DAY)?);
        if from == to || from == MINUTES_A_DAY {
            return Err("a time window that is always or never open".into());
        }
        let zone = match file.zone.as_deref() {
            None | Some("utc") => TimeZone::UTC,
            Some("local") => TimeZone::system(),
            Some(name) => TimeZone::get(name).map_err(|_| {
                format!("no time zone `{name}`: use \"utc\", \"local\" or a name such as \"Europe/Berlin\"")
            })?,
        };
        Ok(Self { days: if days == 0 { 0x7f } else { days }, from, to, zone })
    }

    /// Whether it is open.
    pub(super) fn contains(&self, at: WallTime) -> bool {
        let Some(now) = timestamp(at) else { return false };
        let now = now.to_zoned(self.zone.clone());
        let minute = u16::from(now.hour().unsigned_abs()) * 60 + u16::from(now.minute().unsigned_abs());
        let today = self.has(now.date());
        let yesterday = now.date().yesterday().is_ok_and(|date| self.has(date));
        if self.from < self.to {
            today && (self.from..self.to).contains(&minute)
        } else {
            (today && minute >= self.from) || (yesterday && minute < self.to)
        }
    }

    /// When it opens or closes next.
    pub(super) fn next_change(&self, after: WallTime) -> Option<WallTime> {
        let open = self.contains(after);
        let today = timestamp(after)?.to_zoned(self.zone.clone()).date();
        let mut edges: Vec<WallTime> = (-1..DAYS_AHEAD)
            .filter_map(|ahead| today.checked_add(Span::new().days(ahead)).ok())
            .flat_map(|date| [self.moment(date, self.from), self.moment(date, self.to)])
            .flatten()
            .filter(|edge| *edge > after)
            .collect();
        edges.sort_unstable();
        edges.into_iter().find(|edge| self.contains(*edge) != open)
    }

    /// When it is open next: now, or later.
    pub(super) fn next_open(&self, at: WallTime) -> Option<WallTime> {
        if self.contains(at) { Some(at) } else { self.next_change(at) }
    }

    fn has(&self, date: Date) -> bool {
        let day = match date.weekday() {
            Weekday::Monday => 0,
            Weekday::Tuesday => 1,
            Weekday::Wednesday => 2,
            Weekday::Thursday => 3,
            Weekday::Friday => 4,
            Weekday::Saturday => 5,
            Weekday::Sunday => 6,
        };
        self.days & 1 << day != 0
    }

    /// Where clocks skip a time, what comes for it.
    fn moment(&self, date: Date, minute: u16) -> Option<WallTime> {
        let (date, minute) = match minute {
            MINUTES_A_DAY => (date.tomorrow().ok()?, 0),
            minute => (date, minute),
        };
        let (hour, minute) = (i8::try_from(minute / 60).ok()?, i8::try_from(minute % 60).ok()?);
        let moment = self.zone.to_ambiguous_timestamp(date.at(hour, minute, 0, 0)).compatible().ok()?;
        Some(WallTime { micros: u64::try_from(moment.as_microsecond()).ok()? })
    }
}

fn timestamp(at: WallTime) -> Option<Timestamp> {
    Timestamp::from_microsecond(i64::try_from(at.micros).ok()?).ok()
}

/// Minutes since midnight; 24:00 is the end of the day.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    if !(1..=2).contains(&hour.len()) || minute.len() != 2 {
        return None;
    }
    let number =
        |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u16>().ok())?;
    match (number(hour)?, number(minute)?) {
        (24, 0) => Some(MINUTES_A_DAY),
        (hour @ 0..24, minute @ 0..60) => Some(hour * 60 + minute),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(toml: &str) -> Window {
        Window::new(&toml::from_str(toml).unwrap()).unwrap()
    }

    fn at(text: &str) -> WallTime {
        let moment: Timestamp = text.parse().unwrap();
        WallTime { micros: u64::try_from(moment.as_microsecond()).unwrap() }
    }

    #[test]
    fn office_hours() {
        let window = window("days = ['mon', 'tue', 'wed', 'thu', 'fri']\nfrom = '08:30'\nto = '18:00'");
        // The 20th of November 2026 is a Friday.
        assert!(!window.contains(at("2026-11-20T08:29:59Z")) && window.contains(at("2026-11-20T08:30:00Z")));
        assert!(window.contains(at("2026-11-20T17:59:59Z")) && !window.contains(at("2026-11-20T18:00:00Z")));
        assert!(!window.contains(at("2026-11-21T12:00:00Z")));
        assert_eq!(window.next_change(at("2026-11-20T12:00:00Z")), Some(at("2026-11-20T18:00:00Z")));
        assert_eq!(window.next_change(at("2026-11-20T18:00:00Z")), Some(at("2026-11-23T08:30:00Z")));
        assert_eq!(window.next_open(at("2026-11-20T18:00:00Z")), Some(at("2026-11-23T08:30:00Z")));
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins() {
        let window = window("days = ['sat']\nfrom = '22:00'\nto = '06:00'");
        assert!(window.contains(at("2026-11-21T23:00:00Z")) && window.contains(at("2026-11-22T05:59:00Z")));
        assert!(!window.contains(at("2026-11-21T05:00:00Z")) && !window.contains(at("2026-11-22T22:30:00Z")));
    }

    #[test]
    fn local_time_changes_its_distance_to_utc() {
        let Ok(_) = TimeZone::get("Europe/Berlin") else { return };
        let window = window("from = '02:30'\nto = '08:00'\nzone = 'Europe/Berlin'");
        assert!(window.contains(at("2026-07-01T01:00:00Z")) && !window.contains(at("2026-12-01T01:00:00Z")));
        // There is no half past two on this day.
        assert_eq!(window.next_change(at("2026-03-29T00:00:00Z")), Some(at("2026-03-29T01:30:00Z")));
    }

    #[test]
    fn a_window_that_is_open_all_day_on_all_days_never_changes() {
        assert_eq!(window("").next_change(at("2026-11-20T08:29:59Z")), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for toml in [
            "from = '8'",
            "from = '25:00'",
            "to = '08:60'",
            "from = '09:00'\nto = '09:00'",
            "from = '24:00'",
            "zone = 'Mars/Base'",
            "from = '+1:00'",
        ] {
            assert!(Window::new(&toml::from_str(toml).unwrap()).is_err(), "{toml}");
        }
        for moment in [0, u64::MAX, i64::MAX as u64] {
            let moment = WallTime { micros: moment };
            let window = window("from = '09:00'\nto = '10:00'");
            let _ = (window.contains(moment), window.next_change(moment));
        }
    }
}
