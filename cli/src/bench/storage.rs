//! `vmbus bench storage`: random reads from a memory disk that another process serves.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use vmbus_channels::{Buffer, Device, Guest, Spin};
use vmbus_core::storage::SCSI_CLASS;
use vmbus_partition::Mapping;
use vmbus_vsc::{Disk, DiskQueue, DiskRequest};

use super::comparison::{self, Case, Goal, Sample};
use super::peer::Peer;
use super::{Settings, place};

const CPU: &str = "CPU us/IO";

const COPIES_4K: &str = "copies, 4 KiB";
const COPIES_64K: &str = "copies, 64 KiB";
const PREAD: &str = "pread, tmpfs, 4 KiB";

const HOW: &str = "Root with the disk and client are processes pinned to a processor each, unless the row says `one \
processor`.\nCPU is that of both ends. Copies: one thread copies the same blocks from memory to memory.";

/// One of so many requests has its latency taken.
const TIMED: u64 = 16;

/// Arguments of `vmbus bench storage`.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Size of the disk
    #[arg(long, default_value = "64M", value_parser = crate::size::parse)]
    disk: u64,
}

pub(super) fn measure(arguments: &Arguments) -> Result<()> {
    let (settings, size) = (&arguments.settings, arguments.disk.max(1 << 20));
    // Before anything is pinned.
    place::processors()?;
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let spins = Peer::bus(&path("spins"), 1, size, false)?;
    let sleeps = Peer::bus(&path("sleeps"), 1, size, true)?;
    let shares = Peer::bus(&path("shares"), 0, size, true)?;
    let mut polling = Client::connect(&runtime, &path("spins"), &spins, Spin::adaptive())?;
    let mut sleeping = Client::connect(&runtime, &path("sleeps"), &sleeps, Spin::never())?;
    let mut sharing = Client::connect(&runtime, &path("shares"), &shares, Spin::never())?;
    let tasks = Tasks::connect(&path("spins"), &spins)?;
    place::pin(0)?;
    for client in [&mut polling, &mut sleeping, &mut sharing] {
        // Every page of the disk is there from now on.
        client.read(65536, 32, Duration::from_secs_f64(size as f64 / 2e9))?;
    }

    let polling = std::cell::RefCell::new(polling);
    let reads = |length, depth| {
        let polling = &polling;
        move |time| polling.borrow_mut().read(length, depth, time)
    };
    let cases = vec![
        Case::new(PREAD, "k/s", |time| pread::<4096>(size, time)),
        Case::new(COPIES_4K, "k/s", |time| copies(size, 4096, time)),
        Case::new("4 KiB, depth 1", "k IOPS", reads(4096, 1)).beside(PREAD).aiming_at(Goal::AtLeast(250.0)),
        Case::new("4 KiB, depth 32", "k IOPS", reads(4096, 32))
            .beside(COPIES_4K)
            .aiming_at(Goal::AtLeast(1500.0)),
        Case::new("4 KiB, depth 128", "k IOPS", reads(4096, 128)).beside(COPIES_4K),
        Case::new("4 KiB, depth 32, async", "k IOPS", |time| tasks.read(4096, 32, time)),
        Case::new("4 KiB, depth 32, never spinning", "k IOPS", |time| sleeping.read(4096, 32, time))
            .aiming_at(Goal::ColumnAtMost(CPU, 0.6)),
        Case::new("4 KiB, depth 32, never spinning, one processor", "k IOPS", |time| {
            sharing.read(4096, 32, time)
        })
        .aiming_at(Goal::ColumnAtMost(CPU, 0.6)),
        Case::new(COPIES_64K, "k/s", |time| copies(size, 65536, time)),
        Case::new("64 KiB, depth 32", "k IOPS", reads(65536, 32)).beside(COPIES_64K),
    ];
    comparison::run("storage", HOW, settings, cases)
}

/// A disk, and what it takes to measure it.
struct Client {
    queue: DiskQueue,
    meter: Meter,
    buffers: Vec<Buffer>,
    _guest: Guest,
}

const DEEPEST: usize = 128;
const LONGEST: usize = 65536;

impl Client {
    fn connect(runtime: &tokio::runtime::Runtime, socket: &Path, peer: &Peer, spin: Spin) -> Result<Self> {
        let (guest, disk) = runtime.block_on(open_disk(socket, spin))?;
        let queue = disk.into_queue().context("the disk is in use")?;
        queue.set_spin(spin);
        let buffers = (0..DEEPEST).map(|_| guest.share(LONGEST)).collect::<Result<_, _>>()?;
        Ok(Self { queue, meter: Meter { peer: peer.id() }, buffers, _guest: guest })
    }

    /// Random reads of `length` bytes, `depth` at a time.
    fn read(&mut self, length: usize, depth: usize, time: Duration) -> Result<Sample> {
        let Self { queue, meter, buffers, .. } = self;
        let mut places = Places::new(queue.info().size(), length);
        let mut latencies = Vec::with_capacity(1 << 16);
        let mut starts = vec![None; depth];
        let mut free: Vec<usize> = (0..depth).collect();
        let (mut sent, mut failure) = (0_u64, None);
        let before = meter.read()?;
        let start = Instant::now();
        let mut running = true;
        while running || free.len() < depth {
            running = running && start.elapsed() < time;
            while running && let Some(slot) = free.pop() {
                starts[slot] = sent.is_multiple_of(TIMED).then(Instant::now);
                sent += 1;
                let request =
                    DiskRequest::Read { offset: places.next(), into: buffers[slot].range(..length) };
                queue.push(slot as u64, request)?;
            }
            queue.submit()?;
            if free.len() == depth {
                break;
            }
            queue.wait(|tag, result| {
                let slot = usize::try_from(tag).unwrap_or(0);
                if let Some(start) = starts[slot].take() {
                    latencies.push(start.elapsed());
                }
                if let Err(error) = result {
                    failure = Some(error);
                }
                free.push(slot);
            })?;
        }
        let elapsed = start.elapsed();
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(sample(sent, elapsed, meter.read()? - before, latencies)),
        }
    }
}

async fn open_disk(socket: &Path, spin: Spin) -> Result<(Guest, Disk)> {
    let guest = Guest::builder().name("bench").memory(64 << 20).spin(spin).connect(socket).await?;
    guest.wait_for(Device::class(SCSI_CLASS)).await?;
    let disk = Disk::open(&guest).await?;
    Ok((guest, disk))
}

/// A disk read by tasks of one thread.
struct Tasks {
    runtime: tokio::runtime::Runtime,
    disk: Disk,
    meter: Meter,
    _guest: Guest,
}

impl Tasks {
    fn connect(socket: &Path, peer: &Peer) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (guest, disk) = runtime.block_on(open_disk(socket, Spin::adaptive()))?;
        Ok(Self { runtime, disk, meter: Meter { peer: peer.id() }, _guest: guest })
    }

    fn read(&self, length: usize, depth: usize, time: Duration) -> Result<Sample> {
        let before = self.meter.read()?;
        let start = Instant::now();
        let (sent, latencies) = self.runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for task in 0..depth {
                let disk = self.disk.clone();
                tasks.spawn(async move {
                    let buffer = disk.buffer(length)?;
                    let mut places = Places::new(disk.size(), length);
                    places.skip(task);
                    let (mut sent, mut latencies) = (0_u64, Vec::new());
                    while start.elapsed() < time {
                        let began = sent.is_multiple_of(TIMED).then(Instant::now);
                        disk.read(places.next(), buffer.range(..)).await?;
                        latencies.extend(began.map(|began| began.elapsed()));
                        sent += 1;
                    }
                    anyhow::Ok((sent, latencies))
                });
            }
            let (mut sent, mut latencies) = (0, Vec::new());
            while let Some(task) = tasks.join_next().await {
                let (more, measured) = task??;
                sent += more;
                latencies.extend(measured);
            }
            anyhow::Ok((sent, latencies))
        })?;
        Ok(sample(sent, start.elapsed(), self.meter.read()? - before, latencies))
    }
}

fn sample(sent: u64, elapsed: Duration, cpu: f64, mut latencies: Vec<Duration>) -> Sample {
    latencies.sort();
    let at = |percent: usize| {
        latencies.get(latencies.len() * percent / 100).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    };
    Sample {
        value: sent as f64 / elapsed.as_secs_f64() / 1e3,
        beside_that: vec![("p50 us", at(50)), ("p99 us", at(99)), (CPU, cpu / 1e3 / sent as f64)],
    }
}

/// Processor time of both ends.
struct Meter {
    peer: u32,
}

impl Meter {
    /// Nanoseconds so far.
    fn read(&self) -> Result<f64> {
        Ok(place::process_time(std::process::id())? + place::process_time(self.peer)?)
    }
}

/// Copies per second from random places of a memory as large as the disk.
fn copies(size: u64, length: usize, time: Duration) -> Result<f64> {
    let from = Mapping::anonymous(usize::try_from(size)?)?;
    from.fill_zero(0, usize::try_from(size)?);
    let into = Mapping::anonymous(32 * length)?;
    into.fill_zero(0, 32 * length);
    per_second(size, length, time, |place, turn| {
        from.copy_to(usize::try_from(place)?, &into, turn * length, length);
        Ok(())
    })
}

/// Reads per second from random places of a file in memory.
fn pread<const LEN: usize>(size: u64, time: Duration) -> Result<f64> {
    let file = tempfile::tempfile_in("/dev/shm").context("no tmpfs at /dev/shm")?;
    let zeros = vec![0; 1 << 20];
    for place in (0..size).step_by(zeros.len()) {
        file.write_all_at(&zeros, place)?;
    }
    let mut into = vec![0; 32 * LEN];
    per_second(size, LEN, time, |place, turn| {
        file.read_exact_at(&mut into[turn * LEN..][..LEN], place)?;
        Ok(())
    })
}

/// Thousands per second.
fn per_second(
    size: u64,
    length: usize,
    time: Duration,
    mut each: impl FnMut(u64, usize) -> Result<()>,
) -> Result<f64> {
    let mut places = Places::new(size, length);
    let start = Instant::now();
    let mut count = 0_u64;
    while start.elapsed() < time {
        for turn in 0..32 {
            each(places.next(), turn)?;
        }
        count += 32;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64() / 1e3)
}

/// Random places on the disk, the same ones each time.
struct Places {
    state: u64,
    blocks: u64,
    length: u64,
}

impl Places {
    fn new(size: u64, length: usize) -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, blocks: (size / length as u64).max(1), length: length as u64 }
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..1000 * count {
            self.next();
        }
    }

    #[inline]
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % self.blocks * self.length
    }
}
