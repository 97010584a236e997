//! `vmbus ls`: what is on a bus.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use comfy_table::{Table, presets};
use vmbus_channels::Status;

/// Arguments of `vmbus ls`.
#[derive(Args)]
#[command(after_help = "Example:\n  vmbus ls --socket bus.sock --json | jq .partitions[].name")]
pub(crate) struct Arguments {
    /// Where the root listens
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// For machines
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let status = Status::of(&arguments.socket)
        .with_context(|| format!("cannot ask the root at {}: is it running?", arguments.socket.display()))?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
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

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}
