//! `vmbus demo`: a root and two guests as processes, real disk I/O between them, checked byte for byte; one guest is
//! killed on the way; then they find each other on a network and stream data.

mod figures;
pub(crate) mod guest;
pub(crate) mod net;
mod pattern;
mod report;
mod stage;
pub(crate) mod world;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use self::pattern::SECTOR;
use self::stage::Stage;

/// Arguments of `vmbus demo`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// One JSON object for programs instead of text for people
    #[arg(long)]
    json: bool,
    /// How long the guests work
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Size of each guest's disk
    #[arg(long, default_value = "64M", value_parser = crate::size::parse)]
    size: u64,
    /// Makes the data and the choices; the same seed, the same ones
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Work in this directory, and leave the disk images there
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  vmbus demo
  vmbus demo --seconds 60 --size 1G --keep /var/tmp/demo
  vmbus demo --json | jq .kill";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.size >= 1 << 20 && arguments.size.is_multiple_of(SECTOR as u64),
        "--size: at least 1M and whole sectors of {SECTOR} bytes"
    );
    let mut stage = Stage::set(arguments)?;
    let told = stage.play();
    stage.clear();
    let report = told?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    Ok(())
}
