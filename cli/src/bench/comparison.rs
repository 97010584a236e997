//! Figures taken in turns, and how they compare.

use std::time::Duration;

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::{Settings, place};

/// One figure, taken once.
pub(super) struct Sample {
    pub(super) value: f64,
    /// What else was seen: name of the column, value.
    pub(super) beside_that: Vec<(&'static str, f64)>,
}

impl From<f64> for Sample {
    fn from(value: f64) -> Self {
        Self { value, beside_that: Vec::new() }
    }
}

/// What a figure is meant to reach.
#[derive(Clone, Copy)]
pub(super) enum Goal {
    None,
    AtMost(f64),
    AtLeast(f64),
    /// As a multiple of the yardstick.
    TimesAtMost(f64),
    /// As a multiple of the yardstick.
    TimesAtLeast(f64),
    /// Of another column.
    ColumnAtMost(&'static str, f64),
}

/// One row of the table.
pub(super) struct Case<'a> {
    name: &'static str,
    unit: &'static str,
    /// Name of the row that is its yardstick.
    yardstick: Option<&'static str>,
    goal: Goal,
    measure: Measure<'a>,
}

/// Takes a figure once, in about the given time.
type Measure<'a> = Box<dyn FnMut(Duration) -> Result<Sample> + 'a>;

impl<'a> Case<'a> {
    pub(super) fn new<S: Into<Sample>>(
        name: &'static str,
        unit: &'static str,
        mut measure: impl FnMut(Duration) -> Result<S> + 'a,
    ) -> Self {
        let measure = Box::new(move |time| measure(time).map(Into::into));
        Self { name, unit, yardstick: None, goal: Goal::None, measure }
    }

    pub(super) fn beside(mut self, yardstick: &'static str) -> Self {
        self.yardstick = Some(yardstick);
        self
    }

    pub(super) fn aiming_at(mut self, goal: Goal) -> Self {
        self.goal = goal;
        self
    }
}

#[derive(Serialize)]
struct Report {
    what: &'static str,
    machine: Machine,
    how: &'static str,
    runs: u16,
    seconds: f64,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Machine {
    processors: usize,
    model: String,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    unit: &'static str,
    #[serde(flatten)]
    figure: Spread,
    columns: Vec<Column>,
    #[serde(skip_serializing_if = "Option::is_none")]
    yardstick: Option<Ratio>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<Reached>,
}

#[derive(Serialize)]
struct Column {
    name: &'static str,
    #[serde(flatten)]
    figure: Spread,
}

/// This row's figure divided by the yardstick's, run by run.
#[derive(Serialize)]
struct Ratio {
    name: &'static str,
    #[serde(flatten)]
    times: Spread,
}

#[derive(Serialize)]
struct Reached {
    goal: String,
    reached: bool,
}

#[derive(Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// `None` of nothing.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        Some(Self { median: values[values.len() / 2], min, max })
    }
}

/// Takes every figure `runs` times, in turns, and prints the table.
pub(super) fn run(
    what: &'static str,
    how: &'static str,
    settings: &Settings,
    cases: Vec<Case<'_>>,
) -> Result<()> {
    let mut cases = chosen(cases, &settings.only);
    let mut samples: Vec<Vec<Sample>> = cases.iter().map(|_| Vec::new()).collect();
    let progress = indicatif::ProgressBar::new(u64::from(settings.runs) * cases.len() as u64);
    progress.set_style(indicatif::ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    for _ in 0..settings.runs {
        for (case, samples) in cases.iter_mut().zip(&mut samples) {
            progress.set_message(case.name);
            samples.push((case.measure)(settings.duration())?);
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    let rows =
        cases.iter().zip(&samples).filter_map(|(case, taken)| row(case, taken, &cases, &samples)).collect();
    let (runs, seconds) = (settings.runs, settings.seconds);
    let report = Report { what, machine: Machine::this()?, how, runs, seconds, rows };
    if settings.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// The cases asked for and their yardsticks.
fn chosen<'a>(cases: Vec<Case<'a>>, only: &str) -> Vec<Case<'a>> {
    let asked = |case: &Case<'_>| case.name.contains(only);
    let yardsticks: Vec<&str> =
        cases.iter().filter(|case| asked(case)).filter_map(|case| case.yardstick).collect();
    cases.into_iter().filter(|case| asked(case) || yardsticks.contains(&case.name)).collect()
}

fn row(case: &Case<'_>, taken: &[Sample], cases: &[Case<'_>], samples: &[Vec<Sample>]) -> Option<Row> {
    let figure = Spread::of(taken.iter().map(|sample| sample.value))?;
    let names = taken.first()?.beside_that.iter().map(|(name, _)| *name);
    let columns: Vec<Column> = names
        .enumerate()
        .filter_map(|(at, name)| {
            let values =
                taken.iter().filter_map(|sample| sample.beside_that.get(at)).map(|(_, value)| *value);
            Some(Column { name, figure: Spread::of(values)? })
        })
        .collect();
    let yardstick = case.yardstick.and_then(|name| {
        let place = cases.iter().position(|other| other.name == name)?;
        let ratios = taken.iter().zip(&samples[place]).map(|(ours, theirs)| ours.value / theirs.value);
        Some(Ratio { name, times: Spread::of(ratios)? })
    });
    let times = yardstick.as_ref().map_or(f64::NAN, |ratio| ratio.times.median);
    let goal = match case.goal {
        Goal::None => None,
        Goal::AtMost(goal) => Some((format!("at most {goal}"), figure.median <= goal)),
        Goal::AtLeast(goal) => Some((format!("at least {goal}"), figure.median >= goal)),
        Goal::TimesAtMost(goal) => Some((format!("at most {goal} times"), times <= goal)),
        Goal::TimesAtLeast(goal) => Some((format!("at least {goal} times"), times >= goal)),
        Goal::ColumnAtMost(name, goal) => {
            let column = columns.iter().find(|column| column.name == name);
            let reached = column.is_some_and(|column| column.figure.median <= goal);
            Some((format!("{name} at most {goal}"), reached))
        }
    };
    let goal = goal.map(|(goal, reached)| Reached { goal, reached });
    Some(Row { name: case.name, unit: case.unit, figure, columns, yardstick, goal })
}

fn print(report: &Report) {
    let Report { what, machine, how, runs, seconds, rows } = report;
    println!("{what}: {} processors, {}", machine.processors, machine.model);
    println!("{how}\nMedian (lowest .. highest) of {runs} runs of about {seconds} s, all rows in turns.\n");
    let mut columns: Vec<&str> = Vec::new();
    for column in rows.iter().flat_map(|row| &row.columns) {
        if !columns.contains(&column.name) {
            columns.push(column.name);
        }
    }
    let mut table = Table::new();
    let header =
        ["", "MEDIAN", "", "RANGE"].into_iter().chain(columns.iter().copied()).chain(["COMPARED", "GOAL"]);
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        let mut cells =
            vec![row.name.to_owned(), show(row.figure.median), row.unit.to_owned(), range(&row.figure)];
        for name in &columns {
            let column = row.columns.iter().find(|column| column.name == *name);
            cells.push(column.map_or_else(String::new, |column| show(column.figure.median)));
        }
        cells.push(row.yardstick.as_ref().map_or_else(String::new, |ratio| {
            format!("{:.2} times ({}) {}", ratio.times.median, range(&ratio.times), ratio.name)
        }));
        cells.push(row.goal.as_ref().map_or_else(String::new, |goal| {
            format!("{}: {}", goal.goal, if goal.reached { "reached" } else { "missed" })
        }));
        table.add_row(cells);
    }
    println!("{table}");
}

fn range(spread: &Spread) -> String {
    format!("{} .. {}", show(spread.min), show(spread.max))
}

/// About three digits.
fn show(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

impl Machine {
    fn this() -> Result<Self> {
        let processors = place::processors()?.len();
        let described = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = described.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self { processors, model: model.map_or("unknown", |(_, model)| model).into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_compare_run_by_run_and_tell_whether_the_goal_is_reached() {
        // The machine is twice as slow in the second run: the ratio does not care.
        let samples =
            vec![vec![Sample::from(10.0), Sample::from(20.0)], vec![Sample::from(30.0), Sample::from(60.0)]];
        let cases = vec![
            Case::new("bare", "ns", |_| Ok(0.0)),
            Case::new("ours", "ns", |_| Ok(0.0)).beside("bare").aiming_at(Goal::TimesAtMost(2.9)),
        ];
        let row = row(&cases[1], &samples[1], &cases, &samples).unwrap();
        let times = row.yardstick.unwrap().times;
        assert_eq!((times.min, times.median, times.max), (3.0, 3.0, 3.0));
        assert!(!row.goal.unwrap().reached);
        assert_eq!(chosen(cases, "ours").len(), 2, "a row comes with its yardstick");
    }
}
