//! `vmbus ls`: what is on a bus.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use comfy_table::{Table, presets};
use vmbus_channels::Status;

/// Arguments of `vmbus ls`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where the root listens
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// For machines
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  vmbus ls --socket bus.sock -v                how far each guest's bounds are used, too
  vmbus ls --socket bus.sock --json | jq .partitions[].name
  vmbus ls --socket bus.sock --json | jq '.partitions[].quotas[] | select(.now * 2 > .limit)'";

pub(crate) fn run(arguments: &Arguments, verbose: u8) -> Result<()> {
    let status = Status::of(&arguments.socket)
        .with_context(|| format!("cannot ask the root at {}: is it running?", arguments.socket.display()))?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
        if verbose > 0 {
            println!("\n{}", usage(&status));
        }
    }
    Ok(())
}

fn print(status: &Status) {
    let mut devices = table(&["DEVICE", "CLASS", "INSTANCE"]);
    for device in &status.devices {
        devices.add_row([&device.name, &device.class, &device.instance]);
    }
    println!("{devices}\n");

    let mut partitions = table(&["GUEST", "ID", "KIND", "PID", "VERSION", "MEMORY", "OPEN"]);
    for partition in &status.partitions {
        let open = partition.channels.iter().filter(|channel| channel.state == "open").count();
        partitions.add_row([
            partition.name.clone(),
            partition.id.to_string(),
            if partition.extended { "process".into() } else { "virtual machine".into() },
            partition.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
            partition.version.clone().unwrap_or_else(|| "-".into()),
            crate::size::show(partition.memory),
            format!("{open} of {}", partition.channels.len()),
        ]);
    }
    println!("{partitions}\n");

    let mut channels = table(&["GUEST", "CHANNEL", "DEVICE", "STATE"]);
    for partition in &status.partitions {
        for channel in &partition.channels {
            channels.add_row([
                partition.name.clone(),
                channel.relid.map_or_else(|| "-".into(), |relid| relid.to_string()),
                channel.device.clone(),
                channel.state.clone(),
            ]);
        }
    }
    println!("{channels}");
}

/// How far bounds are used.
fn usage(status: &Status) -> Table {
    let mut bounds = table(&["GUEST", "BOUND", "NOW", "MOST", "LIMIT"]);
    for partition in &status.partitions {
        for used in &partition.quotas {
            bounds.add_row([
                partition.name.clone(),
                used.name.clone(),
                used.now.to_string(),
                used.most.to_string(),
                used.limit.to_string(),
            ]);
        }
    }
    bounds
}

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}
