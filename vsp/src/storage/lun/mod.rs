//! A logical unit: one disk, as SCSI commands see it.
//!
//! [`Lun::execute`] takes a command and the guest's buffer and either ends at once or gives a future for the rest.
//! Which commands exist and how their bytes lie is `vmbus_core::storage::scsi`'s affair; what they do to a disk is
//! decided here.

mod provisioning;
mod report;
mod transfer;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Semaphore;
use vmbus_core::storage::Outcome;
use vmbus_core::storage::scsi::{BlockRange, Command, Failure};

use super::backend::{Backend, Durability, Geometry, Identity};
use super::data::Data;
use super::in_flight::InFlight;
use provisioning::SameMode;
use report::request_sense;
pub(super) use report::{inquire_nothing, report_luns};

/// A disk: a backend and what SCSI adds to it. One `Lun` may be attached to several controllers.
pub struct Lun {
    backend: Box<dyn Backend>,
    identity: Identity,
    /// Everything but `sectors` is as the backend said at first.
    geometry: Geometry,
    sector_shift: u32,
    sectors: AtomicU64,
    /// Counts changes of `sectors`.
    resizes: AtomicU64,
    /// Writes that wait for the medium.
    writes: Arc<InFlight>,
    /// I/O errors of the medium so far.
    failures: AtomicU64,
    /// Permits for commands that need private memory.
    scratches: Semaphore,
}

/// Commands of one disk that have private memory at a time, so that guests cannot make us hold much of it.
const MOST_SCRATCHES: usize = 4;

/// Why a geometry is not that of a disk. The fault of whoever wrote the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LunError {
    /// The logical sector is neither 512 nor 4096 bytes.
    #[error("a disk has sectors of 512 or 4096 bytes, not {0}")]
    LogicalSector(u32),
    /// The physical sector is no power-of-two multiple of the logical one, or over 16 MiB.
    #[error("physical sectors of {physical} bytes do not fit logical ones of {logical}")]
    PhysicalSector {
        /// Physical sector in bytes.
        physical: u32,
        /// Logical sector in bytes.
        logical: u32,
    },
    /// There is no sector, or more than 2^63 bytes of them.
    #[error("a disk of {0} sectors")]
    Sectors(u64),
}

/// How a command goes on.
pub enum Execution {
    /// It has ended.
    Done(Outcome),
    /// It waits for its medium. The future must be run to its end: a write stops holding up flushes only then.
    Later(Pin<Box<dyn Future<Output = Outcome> + Send>>),
}

/// What one guest has still to be told about one disk. Belongs to the guest's connection, shared by its channels.
#[derive(Debug)]
pub struct Nexus {
    /// The resizes that this guest knows of.
    seen_resizes: AtomicU64,
    was_reset: AtomicBool,
}

impl Lun {
    /// A disk over `backend`.
    ///
    /// # Panics
    /// If the backend's geometry is none, see [`LunError`]: a fault of the backend's author.
    pub fn new(backend: impl Backend) -> Self {
        let geometry = backend.geometry();
        if let Err(error) = check(&geometry) {
            panic!("{error}");
        }
        Self {
            identity: backend.identity(),
            backend: Box::new(backend),
            geometry,
            sector_shift: geometry.logical_sector.trailing_zeros(),
            sectors: AtomicU64::new(geometry.sectors),
            resizes: AtomicU64::new(0),
            writes: Arc::default(),
            failures: AtomicU64::new(0),
            scratches: Semaphore::new(MOST_SCRATCHES),
        }
    }

    /// The same disk with another identity than its backend gives it.
    pub fn with_identity(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    /// What the disk says of itself.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The backend.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Shape and abilities as guests see them now.
    pub fn geometry(&self) -> Geometry {
        Geometry { sectors: self.sectors(), ..self.geometry }
    }

    /// Takes over a changed size of the backend; every guest is told with its next command.
    pub fn resize(&self) -> Result<(), LunError> {
        let geometry = Geometry { sectors: self.backend.geometry().sectors, ..self.geometry };
        check(&geometry)?;
        if self.sectors.swap(geometry.sectors, Ordering::AcqRel) != geometry.sectors {
            self.resizes.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// A guest's new connection to this disk.
    pub fn attach(&self) -> Nexus {
        Nexus {
            seen_resizes: AtomicU64::new(self.resizes.load(Ordering::Acquire)),
            was_reset: AtomicBool::new(false),
        }
    }

    /// Runs a command of the guest that `nexus` belongs to. Never blocks.
    #[inline]
    pub fn execute(self: &Arc<Self>, nexus: &Nexus, command: &Command, data: Data<'_>) -> Execution {
        let execution = match (nexus.attention(self), command) {
            (None, Command::Read(blocks)) => self.read(blocks, data),
            (None, Command::Write(blocks)) => self.write(blocks, durability(blocks), data),
            (attention, command) => self.execute_rare(nexus, attention, command, data),
        };
        execution.unwrap_or_else(|failure| Execution::Done(failure.outcome()))
    }

    #[cold]
    fn execute_rare(
        self: &Arc<Self>,
        nexus: &Nexus,
        attention: Option<Failure>,
        command: &Command,
        data: Data<'_>,
    ) -> Result<Execution, Failure> {
        match (attention, command) {
            // These are answered whatever has happened.
            (_, Command::Inquiry { options, page, allocation_length }) => {
                self.inquiry(*options, *page, *allocation_length, data)
            }
            (_, Command::RequestSense { descriptor, allocation_length }) => {
                request_sense(attention.inspect(|_| nexus.told(self)), *descriptor, *allocation_length, data)
            }
            (Some(attention), _) => {
                nexus.told(self);
                Err(attention)
            }
            (None, command) => self.dispatch(command, data),
        }
    }

    fn dispatch(self: &Arc<Self>, command: &Command, data: Data<'_>) -> Result<Execution, Failure> {
        match *command {
            Command::Read(blocks) => self.read(&blocks, data),
            Command::Write(blocks) => self.write(&blocks, durability(&blocks), data),
            // The medium checks what it has written when it makes it stable.
            Command::WriteAndVerify(blocks) => self.write(&blocks, Durability::Stable, data),
            Command::Verify(blocks) => self.verify(&blocks, data),
            Command::SynchronizeCache(blocks) => self.synchronize(&blocks),
            Command::WriteSame(blocks) => self.write_same(&blocks, SameMode::of(&blocks)?, data),
            Command::Unmap { anchor, list_length } => self.unmap(anchor, list_length, data),
            Command::GetLbaStatus { lba, allocation_length } => self.lba_status(lba, allocation_length, data),
            Command::ReadCapacity10 { .. } => self.read_capacity_10(data),
            Command::ReadCapacity16 { allocation_length, .. } => {
                self.read_capacity_16(allocation_length, data)
            }
            Command::ModeSense { form, page_control, page, subpage, allocation_length, .. } => {
                self.mode_sense(form, page_control, (page, subpage), allocation_length, data)
            }
            Command::ModeSelect { form, save_pages, list_length, .. } => {
                self.mode_select(form, save_pages, list_length, data)
            }
            Command::StartStopUnit { start: false, .. } => Ok(self.flush()),
            Command::SendDiagnostic { self_test_code, page_format, list_length, .. } => {
                match (self_test_code, page_format, list_length) {
                    (0, false, 0) => Ok(Execution::done(0)),
                    _ => Err(Failure::InvalidField),
                }
            }
            Command::TestUnitReady
            | Command::StartStopUnit { start: true, .. }
            | Command::PreventAllowMediumRemoval { .. }
            | Command::Reserve
            | Command::Release => Ok(Execution::done(0)),
            Command::FormatUnit => self.writable().map(|()| Execution::done(0)),
            Command::PersistentReserveIn { .. } | Command::PersistentReserveOut { .. } => {
                Err(Failure::UnknownOpcode)
            }
            // Both are answered before they come here: by `execute_rare` and by the target.
            Command::Inquiry { .. } | Command::RequestSense { .. } | Command::ReportLuns { .. } => {
                Err(Failure::UnknownOpcode)
            }
        }
    }

    #[inline]
    fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Lun {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Lun")
            .field("identity", &self.identity)
            .field("geometry", &self.geometry())
            .finish_non_exhaustive()
    }
}

impl Execution {
    #[inline]
    fn done(moved: u32) -> Self {
        Self::Done(Outcome::success(moved))
    }

    fn later(rest: impl Future<Output = Outcome> + Send + 'static) -> Self {
        Self::Later(Box::pin(rest))
    }
}

impl fmt::Debug for Execution {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(outcome) => formatter.debug_tuple("Done").field(outcome).finish(),
            Self::Later(_) => formatter.write_str("Later(..)"),
        }
    }
}

impl Nexus {
    /// The disk was reset on behalf of this guest.
    pub fn reset(&self) {
        self.was_reset.store(true, Ordering::Release);
    }

    /// What the guest must be told before anything else.
    #[inline]
    fn attention(&self, lun: &Lun) -> Option<Failure> {
        if self.was_reset.load(Ordering::Acquire) {
            return Some(Failure::Reset);
        }
        let resized = self.seen_resizes.load(Ordering::Acquire) != lun.resizes.load(Ordering::Acquire);
        resized.then_some(Failure::CapacityChanged)
    }

    /// It has been told. A reset comes first and leaves the resize for the next time.
    fn told(&self, lun: &Lun) {
        if !self.was_reset.swap(false, Ordering::AcqRel) {
            self.seen_resizes.store(lun.resizes.load(Ordering::Acquire), Ordering::Release);
        }
    }
}

fn check(geometry: &Geometry) -> Result<(), LunError> {
    let (logical, physical) = (geometry.logical_sector, geometry.physical_sector);
    if !matches!(logical, 512 | 4096) {
        return Err(LunError::LogicalSector(logical));
    }
    if !physical.is_power_of_two() || physical < logical || physical > 16 << 20 {
        return Err(LunError::PhysicalSector { physical, logical });
    }
    if geometry.sectors == 0 || geometry.sectors > (1 << 63) / u64::from(logical) {
        return Err(LunError::Sectors(geometry.sectors));
    }
    Ok(())
}

#[inline]
fn durability(blocks: &BlockRange) -> Durability {
    match blocks.has(BlockRange::FUA) {
        true => Durability::Stable,
        false => Durability::Visible,
    }
}
