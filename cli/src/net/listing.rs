//! `vmbus net ls` and `vmbus net stats`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use comfy_table::CellAlignment;
use vmbus_proxy_devices::net::{Counters, NetStatus};

use crate::ls::table;

pub(super) fn stations(socket: &Path, json: bool) -> Result<()> {
    let status = status(socket)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(());
    }
    let mut ports = table(&["NETWORK", "PORT", "NAME", "STATIONS"]);
    let mut stations = table(&["NETWORK", "ADDRESS", "VLAN", "PORT", "LAST SENT"]);
    for switch in &status.switches {
        for port in &switch.ports {
            let behind = switch.addresses.iter().filter(|known| known.port == port.id).count();
            ports.add_row([&switch.name, &port.id.to_string(), &port.name, &behind.to_string()]);
        }
        for known in &switch.addresses {
            let port = switch.ports.iter().find(|port| port.id == known.port);
            stations.add_row([
                switch.name.clone(),
                known.address.clone(),
                if known.vlan == 0 { "-".into() } else { known.vlan.to_string() },
                port.map_or_else(|| known.port.to_string(), |port| port.name.clone()),
                known.idle.map_or_else(|| "-".into(), |idle| format!("{idle} s ago")),
            ]);
        }
    }
    println!("{ports}\n\n{stations}");
    Ok(())
}

pub(super) fn counts(socket: &Path, json: bool) -> Result<()> {
    let status = status(socket)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(());
    }
    let mut counts = table(&["NETWORK", "NAME", "SENT", "BYTES", "RECEIVED", "BYTES", "DROPPED"]);
    for column in counts.column_iter_mut().skip(2).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for switch in &status.switches {
        for port in &switch.ports {
            counts.add_row(row(&switch.name, &port.name, &port.counters));
        }
        counts.add_row(row(&switch.name, "(all so far)", &switch.total));
    }
    println!("{counts}");
    Ok(())
}

fn row(switch: &str, name: &str, counters: &Counters) -> [String; 7] {
    let show = |drops: &BTreeMap<String, u64>, which: &str| {
        drops.iter().map(|(reason, frames)| format!("{which} {frames} {reason}")).collect::<Vec<_>>()
    };
    let mut drops = show(&counters.sent_dropped, "sent:");
    drops.extend(show(&counters.received_dropped, "to it:"));
    [
        switch.into(),
        name.into(),
        counters.sent_frames.to_string(),
        crate::size::show(counters.sent_bytes),
        counters.received_frames.to_string(),
        crate::size::show(counters.received_bytes),
        if drops.is_empty() { "-".into() } else { drops.join(", ") },
    ]
}

fn status(socket: &Path) -> Result<NetStatus> {
    match NetStatus::of(socket) {
        Ok(status) => Ok(status),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            bail!("the root at {} has no network: see --net of `vmbus root`", socket.display())
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot ask the root at {}: is it running?", socket.display()))
        }
    }
}
