//! A guest's memory, a controller's disks, and commands between them, without a bus.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmbus_core::guid;
use vmbus_core::storage::scsi::{Command, Sense};
use vmbus_core::storage::{Address, DataDirection, Outcome, ScsiStatus, Srb, SrbStatus, Version};
use vmbus_partition::{GpaSpace, GuestPages, Mapping, Region};
use vmbus_vsp::storage::{
    Backend, Durability, Execution, Geometry, Identity, Lun, Memory, Target, Units, WriteCache,
};

pub(crate) const DISK: Address = Address { path: 0, target: 0, lun: 0 };
pub(crate) const BUFFER: usize = 1 << 20;

/// A controller with a disk at LUN 0 and the guest that uses it.
pub(crate) struct World {
    pub(crate) units: Units,
    pub(crate) target: Target,
    pub(crate) lun: Arc<Lun>,
    space: Arc<GpaSpace>,
}

pub(crate) fn identity() -> Identity {
    Identity { disk: guid!("11223344-5566-7788-99aa-bbccddeeff00"), serial: "B-1 \u{7}4711ü".into() }
}

impl World {
    pub(crate) fn new(backend: impl Backend) -> Self {
        let lun = Arc::new(Lun::new(backend).with_identity(identity()));
        let units = Units::default();
        assert!(units.add(0, Arc::clone(&lun)));
        let target = Target::new(&units);
        let mapping = Mapping::anonymous(BUFFER).unwrap();
        let region = Region { gpa: 0x10_0000, domain: 0, mapping };
        Self { units, target, lun, space: Arc::new(GpaSpace::new(vec![region], 0).unwrap()) }
    }

    /// A disk in memory of 8 MiB.
    pub(crate) fn memory() -> Self {
        Self::new(Memory::new(8 << 20).unwrap())
    }

    /// The first `length` bytes of the guest's buffer, which begins in the middle of a page.
    pub(crate) fn pages(&self, length: usize) -> GuestPages {
        self.space.span(0x10_0000 + 0x600, length).unwrap()
    }

    pub(crate) fn fill(&self, byte: u8) {
        self.pages(BUFFER - 0x600).write(0, &vec![byte; BUFFER - 0x600]).unwrap();
    }

    pub(crate) fn put(&self, bytes: &[u8]) {
        self.pages(bytes.len()).write(0, bytes).unwrap();
    }

    pub(crate) fn seen(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.pages(length).read(0, &mut bytes).unwrap();
        bytes
    }

    /// Runs a command's bytes with a buffer of `length` bytes and whatever the guest says of its direction.
    pub(crate) fn start(
        &self,
        address: Address,
        cdb: &[u8],
        direction: DataDirection,
        length: u32,
    ) -> Execution {
        let mut srb =
            Srb::request(Version::V6_2, address, &Command::TestUnitReady.emit().unwrap(), direction, length);
        srb.cdb_length = u8::try_from(cdb.len()).unwrap();
        srb.cdb_or_sense[..cdb.len()].copy_from_slice(cdb);
        let pages = (length > 0).then(|| self.pages(length as usize));
        self.target.execute(&srb, pages.as_ref())
    }

    pub(crate) fn run_at(
        &self,
        address: Address,
        cdb: &[u8],
        direction: DataDirection,
        length: u32,
    ) -> Outcome {
        finish(self.start(address, cdb, direction, length))
    }

    /// Runs a command's bytes with a buffer for data from the disk.
    pub(crate) fn ask(&self, cdb: &[u8], length: u32) -> Outcome {
        self.run_at(DISK, cdb, DataDirection::FromDevice, length)
    }

    /// Runs a command's bytes with `bytes` for the disk.
    pub(crate) fn tell(&self, cdb: &[u8], bytes: &[u8]) -> Outcome {
        self.put(bytes);
        self.run_at(DISK, cdb, DataDirection::ToDevice, u32::try_from(bytes.len()).unwrap())
    }

    /// The answer to a command that must succeed.
    pub(crate) fn answer(&self, cdb: &[u8], length: u32) -> Vec<u8> {
        self.fill(0xee);
        let outcome = self.ask(cdb, length);
        assert_eq!(outcome.srb_status, SrbStatus::SUCCESS, "{cdb:02x?}: {outcome:?}");
        let moved = outcome.transferred as usize;
        let beyond = self.seen(BUFFER - 0x600).split_off(moved);
        assert!(
            beyond.iter().all(|&byte| byte == 0xee),
            "{cdb:02x?} wrote beyond the {moved} bytes it answered"
        );
        self.seen(moved)
    }

    /// Runs a typed command.
    pub(crate) fn run(&self, command: Command, length: u32) -> Outcome {
        finish(self.run_later(command, length))
    }

    pub(crate) fn run_later(&self, command: Command, length: u32) -> Execution {
        self.start(DISK, command.emit().unwrap().as_bytes(), command.direction(), length)
    }
}

pub(crate) fn finish(execution: Execution) -> Outcome {
    match execution {
        Execution::Done(outcome) => outcome,
        Execution::Later(rest) => runtime().block_on(rest),
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// The three numbers of the sense data and the two statuses, the way the tables of standards print them.
pub(crate) fn verdict(outcome: &Outcome) -> (ScsiStatus, SrbStatus, String) {
    let sense = outcome.sense.as_ref().map_or("-".into(), Sense::to_string);
    (outcome.scsi_status, outcome.srb_status, sense)
}

/// A disk in memory that behaves worse: it may be slow, broken, or have a cache.
pub(crate) struct Troubled {
    pub(crate) memory: Memory,
    pub(crate) slow: bool,
    pub(crate) reads_fail: bool,
    pub(crate) writes_fail: Option<io::ErrorKind>,
    pub(crate) state: Arc<State>,
}

#[derive(Default)]
pub(crate) struct State {
    /// While set, slow writes do not end.
    pub(crate) stuck: AtomicBool,
    pub(crate) flushes: AtomicU32,
    pub(crate) stable_writes: AtomicU32,
    pub(crate) writes: AtomicU32,
    pub(crate) sectors: AtomicU32,
}

impl Troubled {
    pub(crate) fn new() -> Self {
        let memory = Memory::new(8 << 20).unwrap();
        Self { memory, slow: false, reads_fail: false, writes_fail: None, state: Arc::default() }
    }

    fn written(&self) -> io::Result<()> {
        self.writes_fail.map_or(Ok(()), |kind| Err(kind.into()))
    }
}

#[async_trait::async_trait]
impl Backend for Troubled {
    fn geometry(&self) -> Geometry {
        let sectors = u64::from(self.state.sectors.load(Ordering::Relaxed));
        let geometry = Geometry { write_cache: WriteCache::Volatile, ..self.memory.geometry() };
        if sectors == 0 { geometry } else { Geometry { sectors, ..geometry } }
    }

    fn try_read(&self, offset: u64, into: &GuestPages) -> Option<io::Result<()>> {
        if self.slow || self.reads_fail { None } else { self.memory.try_read(offset, into) }
    }

    fn try_write(&self, offset: u64, from: &GuestPages, durability: Durability) -> Option<io::Result<()>> {
        let possible = !self.slow && self.writes_fail.is_none() && durability == Durability::Visible;
        possible.then(|| self.memory.try_write(offset, from, durability)).flatten()
    }

    async fn read(&self, offset: u64, into: GuestPages) -> io::Result<()> {
        match self.reads_fail {
            true => Err(io::Error::other("bad sector")),
            false => self.memory.read(offset, into).await,
        }
    }

    async fn write(&self, offset: u64, from: GuestPages, durability: Durability) -> io::Result<()> {
        while self.state.stuck.load(Ordering::Relaxed) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        self.state.writes.fetch_add(1, Ordering::Relaxed);
        if durability == Durability::Stable {
            self.state.stable_writes.fetch_add(1, Ordering::Relaxed);
        }
        self.written()?;
        self.memory.write(offset, from, durability).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.state.flushes.fetch_add(1, Ordering::Relaxed);
        self.written()
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.written()?;
        self.memory.discard(range).await
    }

    async fn write_zeroes(&self, range: Range<u64>, durability: Durability) -> io::Result<()> {
        self.written()?;
        self.memory.write_zeroes(range, durability).await
    }
}

/// A disk of any size that holds nothing.
pub(crate) struct Huge(pub(crate) u64);

#[async_trait::async_trait]
impl Backend for Huge {
    fn geometry(&self) -> Geometry {
        let memory = Memory::new(4096).unwrap().geometry();
        Geometry { sectors: self.0 / 512, ..memory }
    }

    async fn read(&self, _: u64, _: GuestPages) -> io::Result<()> {
        Ok(())
    }

    async fn write(&self, _: u64, _: GuestPages, _: Durability) -> io::Result<()> {
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn discard(&self, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    async fn write_zeroes(&self, _: Range<u64>, _: Durability) -> io::Result<()> {
        Ok(())
    }
}
