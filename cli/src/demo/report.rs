//! What the demonstration found, for people and for programs.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::figures::{Figures, Latencies, Phase};

/// All of it. Times are in the unit that their names end with.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Always true: what is wrong ends the demonstration.
    pub(super) ok: bool,
    pub(super) seed: u64,
    pub(super) disk_bytes: u64,
    /// Protocol version.
    pub(super) version: String,
    pub(super) guests: Vec<GuestReport>,
    pub(super) kill: KillReport,
    pub(super) network: NetworkReport,
    /// Bytes of the image files that were compared after everybody had gone.
    pub(super) image_bytes_verified: u64,
    pub(super) seconds: f64,
}

/// One guest, all its lives together.
#[derive(Debug, Serialize)]
pub(super) struct GuestReport {
    name: String,
    lives: u32,
    rounds: u32,
    requests: u64,
    flushes: u64,
    bytes_written: u64,
    bytes_read: u64,
    bytes_verified: u64,
    write_mib_per_s: f64,
    read_mib_per_s: f64,
    iops: f64,
    latency: LatencyReport,
}

/// What the guests did on the network.
#[derive(Debug, Serialize)]
pub(super) struct NetworkReport {
    from: String,
    to: String,
    /// Found by its name.
    address: String,
    ping: LatencyReport,
    bytes_verified: u64,
    gbit_per_s: f64,
}

#[derive(Debug, Serialize)]
struct LatencyReport {
    requests: u64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

/// The kill and what came after it.
#[derive(Debug, Serialize)]
pub(super) struct KillReport {
    pub(super) guest: String,
    /// The round that it was writing.
    pub(super) round: u32,
    /// From SIGKILL until the root held nothing of it any more.
    pub(super) released_ms: f64,
    /// From SIGKILL until the restarted guest's first request was complete.
    pub(super) first_request_ms: f64,
    /// Sectors that held data of the last round that had been flushed.
    pub(super) sectors_of_flushed_round: u64,
    /// Sectors that held data of the round under way.
    pub(super) sectors_of_newer_round: u64,
    /// What the other guest's requests took before the kill, until the first request of the restarted guest, and
    /// after that.
    bystander: Vec<PhaseReport>,
}

#[derive(Debug, Serialize)]
struct PhaseReport {
    phase: &'static str,
    #[serde(flatten)]
    latency: LatencyReport,
}

impl GuestReport {
    pub(super) fn new(name: &str, lives: u32, rounds: u32, figures: &Figures) -> Self {
        let requests = figures.reads + figures.writes;
        Self {
            name: name.into(),
            lives,
            rounds,
            requests,
            flushes: figures.flushes,
            bytes_written: figures.bytes_written,
            bytes_read: figures.bytes_read,
            bytes_verified: figures.bytes_verified,
            write_mib_per_s: per_second(mib(figures.bytes_written), figures.writing),
            read_mib_per_s: per_second(mib(figures.bytes_read), figures.reading),
            iops: per_second(approximate(requests), figures.writing + figures.reading),
            latency: LatencyReport::new(&figures.latencies()),
        }
    }
}

impl LatencyReport {
    fn new(latencies: &Latencies) -> Self {
        Self {
            requests: latencies.count(),
            p50_us: micros(latencies.quantile(50)),
            p99_us: micros(latencies.quantile(99)),
            max_us: micros(latencies.longest()),
        }
    }
}

impl NetworkReport {
    pub(super) fn new(
        (from, to): (&str, &str),
        address: &str,
        pings: &Latencies,
        bytes: u64,
        took: Duration,
    ) -> Self {
        Self {
            from: from.into(),
            to: to.into(),
            address: address.into(),
            ping: LatencyReport::new(pings),
            bytes_verified: bytes,
            gbit_per_s: per_second(approximate(bytes) * 8.0 / 1e9, took),
        }
    }

    /// All of it in one sentence.
    pub(super) fn sentence(&self) -> String {
        format!(
            "{} pinged {} at {} in {:.0} µs (p50; p99 {:.0} µs), and streamed {} to it by TCP at {:.2} Gbit/s.",
            self.from,
            self.to,
            self.address,
            self.ping.p50_us,
            self.ping.p99_us,
            crate::size::show(self.bytes_verified),
            self.gbit_per_s
        )
    }
}

impl KillReport {
    /// Adds what the other guest went through.
    pub(super) fn with_bystander(mut self, figures: &Figures) -> Self {
        let phase = |phase: Phase| PhaseReport {
            phase: phase.name(),
            latency: LatencyReport::new(figures.latencies_of(phase)),
        };
        self.bystander = Phase::ALL.map(phase).into();
        self
    }

    pub(super) fn new(guest: &str, round: u32) -> Self {
        Self {
            guest: guest.into(),
            round,
            released_ms: 0.0,
            first_request_ms: 0.0,
            sectors_of_flushed_round: 0,
            sectors_of_newer_round: 0,
            bystander: Vec::new(),
        }
    }
}

impl Report {
    pub(super) fn print(&self) {
        let mut guests = table(&[
            "guest", "written", "MiB/s", "read", "MiB/s", "IOPS", "p50 µs", "p99 µs", "requests", "flushes",
            "verified",
        ]);
        for guest in &self.guests {
            guests.add_row([
                guest.name.clone(),
                crate::size::show(guest.bytes_written),
                format!("{:.0}", guest.write_mib_per_s),
                crate::size::show(guest.bytes_read),
                format!("{:.0}", guest.read_mib_per_s),
                format!("{:.0}", guest.iops),
                format!("{:.0}", guest.latency.p50_us),
                format!("{:.0}", guest.latency.p99_us),
                guest.requests.to_string(),
                guest.flushes.to_string(),
                crate::size::show(guest.bytes_verified),
            ]);
        }
        println!("\n{guests}");

        let bystander = self.guests.iter().find(|guest| guest.name != self.kill.guest);
        let bystander = bystander.map_or("the other guest", |guest| &guest.name);
        let mut phases =
            table(&[&format!("{bystander}'s requests"), "number", "p50 µs", "p99 µs", "longest µs"]);
        for phase in &self.kill.bystander {
            phases.add_row([
                match phase.phase {
                    "during" => format!("until {} was back", self.kill.guest),
                    "before" => "before the kill".into(),
                    _ => "afterwards".into(),
                },
                phase.latency.requests.to_string(),
                format!("{:.0}", phase.latency.p50_us),
                format!("{:.0}", phase.latency.p99_us),
                format!("{:.0}", phase.latency.max_us),
            ]);
        }
        println!("\n{phases}");
        println!(
            "\nAfter SIGKILL the root had released everything of {0} in {1:.1} ms, and {0}'s first request after its \
             restart\nwas complete after {2:.1} ms. All data are right.",
            self.kill.guest, self.kill.released_ms, self.kill.first_request_ms
        );
        println!("{}", self.network.sentence());
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn per_second(amount: f64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { amount / time.as_secs_f64() }
}

fn mib(bytes: u64) -> f64 {
    approximate(bytes) / f64::from(1 << 20)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "figures for people need no 53 bits")]
fn approximate(number: u64) -> f64 {
    number as f64
}
