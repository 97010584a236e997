//! `vmbus demo-guest`: one guest of the demonstration, at work on its disk.
//!
//! It tells what it does on standard output, one JSON [`Line`] each, and takes the words `during`, `after` and
//! `finish` on standard input. When that ends, so does it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write as _};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tokio::task::JoinSet;
use vmbus_channels::{Buffer, Device, Guest};
use vmbus_core::memory::SharedMemory as _;
use vmbus_core::storage::SCSI_CLASS;
use vmbus_vsc::Disk;

use super::figures::{Figures, Line, Phase};
use super::pattern::{Dice, Extent, Pattern, SECTOR};

/// Most requests in flight.
const DEEPEST: u64 = 32;
/// Every so many parts of a round another depth is chosen.
const PARTS: usize = 20;
/// How long a disk may take to be offered: whoever had it before may only just have gone.
const OFFER_PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `vmbus demo-guest`.
#[derive(Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    name: String,
    #[arg(long)]
    seed: u64,
    /// The last round that is known to have been flushed
    #[arg(long, default_value_t = 0)]
    flushed: u32,
    /// The last round that may have begun
    #[arg(long, default_value_t = 0)]
    begun: u32,
    /// Seconds to wait for another root
    #[arg(long, default_value_t = 0)]
    resume: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let orders = Arc::new(Orders::default());
    let listener = Arc::clone(&orders);
    std::thread::spawn(move || listener.follow());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work(arguments, orders));
    if let Err(error) = result {
        // The parent says it to whom it concerns.
        tell(&Line::Failed { message: format!("{error:#}") });
        std::process::exit(1);
    }
    Ok(())
}

/// What the parent wants.
#[derive(Default)]
struct Orders {
    phase: AtomicU8,
    finish: AtomicBool,
}

impl Orders {
    /// Takes orders until nobody is there to give any.
    fn follow(&self) {
        for order in io::stdin().lines() {
            match order.as_deref() {
                Ok("during") => self.phase.store(Phase::During as u8, Ordering::Relaxed),
                Ok("after") => self.phase.store(Phase::After as u8, Ordering::Relaxed),
                Ok("finish") => self.finish.store(true, Ordering::Relaxed),
                Ok(_) | Err(_) => break,
            }
        }
        std::process::exit(1);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Before,
            1 => Phase::During,
            2.. => Phase::After,
        }
    }
}

/// Says it to the parent; without one there is nobody to work for.
pub(super) fn tell(line: &Line) {
    let told = serde_json::to_string(line).map_err(io::Error::other).and_then(|mut line| {
        line.push('\n');
        io::stdout().lock().write_all(line.as_bytes())
    });
    if told.is_err() {
        std::process::exit(1);
    }
}

async fn work(arguments: &Arguments, orders: Arc<Orders>) -> Result<()> {
    let guest = Guest::builder()
        .name(&arguments.name)
        .resume(crate::guest::resume(arguments.resume))
        .connect(&arguments.socket)
        .await
        .context("cannot join the bus")?;
    tell(&Line::joined(guest.version()));
    tokio::time::timeout(OFFER_PATIENCE, guest.wait_for(Device::class(SCSI_CLASS)))
        .await
        .context("no disk is offered")??;
    let disk = Disk::open(&guest).await.context("cannot open the disk")?;
    ensure!(disk.size().is_multiple_of(SECTOR as u64) && disk.size() > 0, "a disk of {} bytes", disk.size());
    let mut worker = Worker::new(disk, arguments, orders)?;

    worker.check(arguments.flushed..=arguments.begun).await?;
    let (sectors, figures) = (worker.shared.found(), worker.shared.figures().clone());
    tell(&Line::Found { sectors, figures });
    let mut round = arguments.begun;
    while !worker.shared.orders.finish.load(Ordering::Relaxed) {
        round += 1;
        worker.write(round).await?;
        tell(&Line::Flushed { round, figures: worker.shared.figures().clone() });
        worker.check(round..=round).await?;
        tell(&Line::Checked { round, figures: worker.shared.figures().clone() });
    }
    tell(&Line::Done { round });
    Ok(())
}

struct Worker {
    shared: Arc<Shared>,
    dice: Dice,
    /// One for each request that may be in flight.
    lanes: Vec<Lane>,
}

/// Room for one request.
struct Lane {
    buffer: Buffer,
    private: Vec<u8>,
}

struct Shared {
    disk: Disk,
    pattern: Pattern,
    orders: Arc<Orders>,
    figures: Mutex<Figures>,
    /// Sectors by the round that they are of, in the check under way.
    found: Mutex<BTreeMap<u32, u64>>,
    began: AtomicBool,
}

#[derive(Clone, Debug)]
enum Job {
    Write(u32),
    Check(RangeInclusive<u32>),
}

impl Worker {
    fn new(disk: Disk, arguments: &Arguments, orders: Arc<Orders>) -> Result<Self> {
        let lane = |_| Ok(Lane { buffer: disk.buffer(Extent::LONGEST)?, private: vec![0; Extent::LONGEST] });
        let lanes = (0..DEEPEST).map(lane).collect::<Result<_>>()?;
        let dice = Dice::new(arguments.seed ^ u64::from(arguments.begun));
        let shared = Shared {
            disk,
            pattern: Pattern::new(arguments.seed),
            orders,
            figures: Mutex::default(),
            found: Mutex::default(),
            began: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared), dice, lanes })
    }

    /// Writes the whole disk and makes it durable.
    async fn write(&mut self, round: u32) -> Result<()> {
        let started = Instant::now();
        self.pass(&Job::Write(round)).await?;
        self.shared.disk.flush().await.context("flush")?;
        let mut figures = self.shared.figures();
        figures.flushes += 1;
        figures.writing += started.elapsed();
        Ok(())
    }

    /// Reads the whole disk and compares it.
    async fn check(&mut self, rounds: RangeInclusive<u32>) -> Result<()> {
        let started = Instant::now();
        lock(&self.shared.found).clear();
        self.pass(&Job::Check(rounds)).await?;
        self.shared.figures().reading += started.elapsed();
        Ok(())
    }

    /// Does a job to every sector: extents in random order, at a depth that changes on the way.
    async fn pass(&mut self, job: &Job) -> Result<()> {
        let extents = self.dice.extents(self.shared.disk.size() / SECTOR as u64);
        let part_len = extents.len().div_ceil(PARTS);
        for (part, extents) in (0_u64..).zip(extents.chunks(part_len)) {
            if let Job::Write(round) = *job {
                tell(&Line::Writing { round, percent: part * 100 / PARTS as u64 });
            }
            let depth = usize::try_from(1 + self.dice.below(DEEPEST)).unwrap_or(1);
            let queue = Arc::new(Mutex::new(VecDeque::from(extents.to_vec())));
            let mut tasks = JoinSet::new();
            for lane in self.lanes.drain(self.lanes.len().saturating_sub(depth)..) {
                tasks.spawn(lane.run(Arc::clone(&self.shared), Arc::clone(&queue), job.clone()));
            }
            while let Some(lane) = tasks.join_next().await {
                self.lanes.push(lane??);
            }
        }
        Ok(())
    }
}

impl Lane {
    async fn run(
        mut self,
        shared: Arc<Shared>,
        queue: Arc<Mutex<VecDeque<Extent>>>,
        job: Job,
    ) -> Result<Self> {
        loop {
            let Some(extent) = lock(&queue).pop_front() else { return Ok(self) };
            match &job {
                Job::Write(round) => self.write(&shared, *round, extent).await?,
                Job::Check(rounds) => self.check(&shared, rounds, extent).await?,
            }
        }
    }

    async fn write(&mut self, shared: &Shared, round: u32, extent: Extent) -> Result<()> {
        let bytes = &mut self.private[..extent.bytes()];
        shared.pattern.fill(round, extent.first, bytes);
        self.buffer.mapping().write(0, bytes);
        let started = Instant::now();
        shared.disk.write(extent.offset(), self.buffer.range(..bytes.len())).await.context("write")?;
        let mut figures = shared.request_done(started);
        figures.writes += 1;
        figures.bytes_written += bytes.len() as u64;
        Ok(())
    }

    async fn check(&mut self, shared: &Shared, rounds: &RangeInclusive<u32>, extent: Extent) -> Result<()> {
        let bytes = &mut self.private[..extent.bytes()];
        // What an earlier request left here must not pass for what this one reads.
        self.buffer.mapping().fill_zero(0, bytes.len());
        if *rounds.start() == 0 {
            self.buffer.mapping().write(0, &vec![0xff; bytes.len()]);
        }
        let started = Instant::now();
        shared.disk.read(extent.offset(), self.buffer.range(..bytes.len())).await.context("read")?;
        drop(shared.request_done(started));
        self.buffer.mapping().read(0, bytes);
        let mut found = BTreeMap::<u32, u64>::new();
        shared.pattern.check(rounds, extent.first, bytes, |round| *found.entry(round).or_default() += 1)?;
        for (round, sectors) in found {
            *lock(&shared.found).entry(round).or_default() += sectors;
        }
        let mut figures = shared.figures();
        figures.reads += 1;
        figures.bytes_read += bytes.len() as u64;
        figures.bytes_verified += bytes.len() as u64;
        Ok(())
    }
}

impl Shared {
    fn figures(&self) -> MutexGuard<'_, Figures> {
        lock(&self.figures)
    }

    fn found(&self) -> BTreeMap<u32, u64> {
        lock(&self.found).clone()
    }

    fn request_done(&self, started: Instant) -> MutexGuard<'_, Figures> {
        let latency = started.elapsed();
        if !self.began.swap(true, Ordering::Relaxed) {
            tell(&Line::FirstRequest);
        }
        let mut figures = self.figures();
        figures.latencies_mut(self.orders.phase()).record(latency);
        figures
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
