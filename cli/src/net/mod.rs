//! `vmbus net`: the networks of a running root.

mod capture;
pub(crate) mod guest;
mod listing;
pub(crate) mod root;
pub(crate) mod spec;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Arguments of `vmbus net`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  vmbus net ls --socket bus.sock
  vmbus net stats --socket bus.sock --json | jq '.switches[].ports[] | select(.received_dropped != {})'
  vmbus net capture --socket bus.sock --net lan -w lan.pcapng
  vmbus net capture --socket bus.sock --net lan --port alice | tcpdump -n -r -";

#[derive(Subcommand)]
enum Command {
    /// Networks, who is at their ports, and which stations are behind these
    Ls(Asking),
    /// What went through each port and what did not, with the reasons
    Stats(Asking),
    /// Write what goes through a network, or one port of it, as pcapng until interrupted
    Capture(capture::Arguments),
}

/// Whom to ask, and how to tell.
#[derive(Args)]
struct Asking {
    /// Where the root listens
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// For machines
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Ls(asking) => listing::stations(&asking.socket, asking.json),
        Command::Stats(asking) => listing::counts(&asking.socket, asking.json),
        Command::Capture(arguments) => capture::run(arguments),
    }
}
