//! `vmbus bench`: the bus beside what the same machine does without one.
//!
//! Every figure is taken in turns with its yardstick, in one run of one program: a shared machine drifts by a factor
//! of two within an hour, ratios hardly at all. What each row means stands in `docs/src/performance.md`.

mod comparison;
mod crowd;
mod doorbell;
mod frames;
mod net;
mod noise;
mod peer;
mod place;
mod ring;
mod scale;
mod storage;

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Arguments of `vmbus bench`.
#[derive(Args)]
#[command(after_help = "Example:\n  vmbus bench storage --json | jq '.rows[] | {name, median}'")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Packets through one ring, in one thread and between two
    Ring(Settings),
    /// There and back between two processes, spinning and sleeping
    Doorbell(Settings),
    /// Reads from a memory disk, served by another process
    Storage(storage::Arguments),
    /// Frames from one guest to another through a switch, beside sockets
    Net(Settings),
    /// What one more channel costs on a bus with many
    Scale(Settings),
    /// What a guest that follows no rule does to the latency of others
    Noise(Settings),
    /// The other process of a measurement
    #[command(hide = true)]
    Peer(peer::Arguments),
}

/// How to measure.
#[derive(Args, Clone)]
struct Settings {
    /// For machines
    #[arg(long)]
    json: bool,
    /// How often each figure is taken
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// How long one figure takes, about
    #[arg(long, default_value_t = 0.3, value_parser = seconds)]
    seconds: f64,
    /// Only rows whose name contains this, and what they are compared with
    #[arg(long, default_value = "")]
    only: String,
}

impl Settings {
    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is no number of seconds"))?;
    if (0.001..=60.0).contains(&seconds) { Ok(seconds) } else { Err("between 0.001 and 60 seconds".into()) }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.what {
        What::Ring(settings) => ring::measure(settings),
        What::Doorbell(settings) => doorbell::measure(settings),
        What::Storage(arguments) => storage::measure(arguments),
        What::Net(settings) => net::measure(settings),
        What::Scale(settings) => scale::measure(settings),
        What::Noise(settings) => noise::measure(settings),
        What::Peer(arguments) => peer::run(arguments),
    }
}
