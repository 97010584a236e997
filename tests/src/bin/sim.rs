//! Simulates many scenarios of the whole bus, and makes the first that fails short.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Parser;
use vmbus_tests::sim::{
    Broken, Campaign, Coverage, Finding, Script, Violation, minimise, run_campaign, trace,
};

/// Simulates the whole bus: roots, guests, devices and doorbells in one thread under virtual time, with crashes, delays
/// and refusals, each scenario decided by its seed.
///
/// After each step it checks that quotas hold, that every request completes exactly once or ends with its channel,
/// that no page is used by two, and that in the end nothing is left. The first seed that fails is made as short as
/// possible and printed as a script, which --script plays again.
#[derive(Parser)]
#[command(
    name = "sim",
    version,
    after_help = "Examples:
  sim --seeds 100000                 the campaign
  sim --seed 4711 --seeds 1 --trace  one seed, step by step
  sim --script failing.txt           a script that was printed before; - reads stdin
  sim --broken completes-twice       show that a broken root is found"
)]
struct Options {
    /// Number of seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Guests of each scenario, at most 16.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    guests: u8,
    /// Devices of each scenario, at most 64.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(1..=64))]
    devices: u8,
    /// Threads; as many as there are processors by default.
    #[arg(long)]
    jobs: Option<usize>,
    /// Print one JSON object at the end, and nothing else on stdout.
    #[arg(long)]
    json: bool,
    /// Print every step of the last scenario.
    #[arg(long)]
    trace: bool,
    /// Play this script instead of seeds.
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    script: Option<String>,
    /// Break a rule on purpose: loses-interrupts, sleeps-without-look, completes-twice, forgets-request, flips-byte,
    /// never-closes, keeps-pages, ignores-death, ignores-retarget or forgets-service.
    #[arg(long, value_name = "RULE")]
    broken: Option<Broken>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    // A panic of the product is a finding; while it is made short it comes again and again.
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = match &options.script {
        Some(file) => play(file),
        None => Ok(search(&options)),
    };
    match outcome {
        Ok(success) => ExitCode::from(u8::from(!success)),
        Err(error) => {
            eprintln!("sim: {error}");
            ExitCode::from(2)
        }
    }
}

/// Plays one script and shows every step.
fn play(file: &str) -> Result<bool, String> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().read_to_string(&mut text).map(|_| ()),
        file => std::fs::read_to_string(file).map(|content| text = content),
    };
    read.map_err(|error| format!("{file}: {error}"))?;
    let script = Script::parse(&text).map_err(|error| format!("{file}: {error}"))?;
    let (lines, result) = trace(&script);
    lines.iter().for_each(|line| println!("{line}"));
    match &result {
        Ok(coverage) => print!("{coverage}"),
        Err(violation) => println!("{violation}"),
    }
    Ok(result.is_ok())
}

/// Plays seeds until one fails.
fn search(options: &Options) -> bool {
    let jobs = options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let campaign = Campaign {
        first: options.seed,
        seeds: options.seeds,
        guests: options.guests,
        devices: options.devices,
        jobs,
        broken: options.broken,
    };
    let begin = Instant::now();
    let shown = Mutex::new(begin);
    let (coverage, finding) =
        run_campaign(&campaign, |done| show_progress(&shown, begin, done, options.seeds));
    let seconds = begin.elapsed().as_secs_f64();
    if options.trace {
        let seed =
            finding.as_ref().map_or(options.seed + options.seeds.saturating_sub(1), |found| found.seed);
        let script = vmbus_tests::sim::generate(seed, options.guests, options.devices);
        let lines = trace(&Script { broken: options.broken, ..script }).0;
        lines.iter().for_each(|line| eprintln!("{line}"));
    }
    let shortest = finding.as_ref().map(|finding| minimise(&finding.script));
    if options.json {
        println!(
            "{}",
            json(options, &coverage, seconds, finding.as_ref(), shortest.as_ref().map(|(script, _)| script))
        );
    } else {
        print!("{} seeds from {} in {seconds:.1} s, {jobs} threads\n{coverage}", options.seeds, options.seed);
        if let (Some(finding), Some((script, plays))) = (&finding, &shortest) {
            report(finding, script, *plays);
        }
    }
    finding.is_none()
}

fn show_progress(shown: &Mutex<Instant>, begin: Instant, done: u64, seeds: u64) {
    let Ok(mut last) = shown.try_lock() else { return };
    if last.elapsed() >= Duration::from_millis(500) && std::io::stderr().is_terminal() {
        *last = Instant::now();
        let rate = done as f64 / begin.elapsed().as_secs_f64();
        let _ = write!(std::io::stderr(), "\r{done} of {seeds} seeds, {rate:.0} a second ");
    }
}

fn report(finding: &Finding, shortest: &Script, plays: usize) {
    let Finding { seed, violation, script } = finding;
    println!("\nseed {seed} FAILED: {violation}");
    println!("{} actions and {} disturbances,", script.actions.len(), script.disturbances.len());
    println!("made short by {plays} plays; the same rule is broken by this script:\n\n{shortest}");
    let (lines, result) = trace(shortest);
    println!("which goes like this:\n");
    lines.iter().for_each(|line| println!("{line}"));
    if let Err(Violation { detail, .. }) = result {
        println!("\n{detail}");
    }
}

fn json(
    options: &Options,
    coverage: &Coverage,
    seconds: f64,
    finding: Option<&Finding>,
    shortest: Option<&Script>,
) -> serde_json::Value {
    let counts: serde_json::Map<_, _> =
        coverage.entries().into_iter().map(|(name, count)| (name, count.into())).collect();
    serde_json::json!({
        "first_seed": options.seed,
        "seeds": options.seeds,
        "seconds": seconds,
        "coverage": counts,
        "failed": finding.map(|finding| serde_json::json!({
            "seed": finding.seed,
            "rule": finding.violation.rule,
            "detail": finding.violation.detail,
            "script": shortest.map(Script::to_string),
        })),
    })
}
