//! Where commands go: the addresses of a controller.
//!
//! A controller has one path with one target on it; its disks are logical units 0 to 255 there. Guests scan further
//! than that, and draw conclusions from the very way in which nothing is there: see [`Target::execute`].

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use vmbus_core::storage::scsi::{Command, Failure};
use vmbus_core::storage::{Address, Outcome, Srb};
use vmbus_partition::GuestPages;

use super::data::Data;
use super::lun::{self, Execution, Lun, Nexus};
use super::nexuses::Nexuses;

/// Disks by number.
type Luns = BTreeMap<u8, Arc<Lun>>;

/// The disks of a controller, as all its guests see them.
#[derive(Debug, Default)]
pub struct Units {
    luns: watch::Sender<Luns>,
}

/// What has become of a controller's disks since a guest last looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Disks have come, or taken the place of others.
    pub added: bool,
    /// Disks have gone.
    pub removed: bool,
}

/// The disks of a controller as one channel of a guest has them: a snapshot, so that running a command takes no lock.
#[derive(Debug)]
pub struct Target {
    units: watch::Receiver<Luns>,
    nexuses: Nexuses,
    /// By number.
    attached: Vec<Option<Attached>>,
}

#[derive(Debug)]
struct Attached {
    lun: Arc<Lun>,
    nexus: Arc<Nexus>,
}

impl Units {
    /// Puts a disk at `number`; `false` if another is there.
    pub fn add(&self, number: u8, lun: Arc<Lun>) -> bool {
        self.luns.send_if_modified(|luns| {
            let free = !luns.contains_key(&number);
            if free {
                luns.insert(number, lun);
            }
            free
        })
    }

    /// Takes the disk at `number` away.
    pub fn remove(&self, number: u8) -> Option<Arc<Lun>> {
        let mut removed = None;
        self.luns.send_if_modified(|luns| {
            removed = luns.remove(&number);
            removed.is_some()
        });
        removed
    }

    /// The disks and their numbers.
    pub fn list(&self) -> Vec<(u8, Arc<Lun>)> {
        self.luns.borrow().iter().map(|(&number, lun)| (number, Arc::clone(lun))).collect()
    }
}

impl Target {
    /// A guest's new view of `units`.
    pub fn new(units: &Units) -> Self {
        Self::with(units.luns.subscribe(), Nexuses::default())
    }

    /// The view of another channel of the same guest.
    pub fn another(&self) -> Self {
        Self::with(self.units.clone(), self.nexuses.clone())
    }

    fn with(units: watch::Receiver<Luns>, nexuses: Nexuses) -> Self {
        let mut target = Self { units, nexuses, attached: Vec::new() };
        target.look();
        target
    }

    /// Ends when disks have come or gone; [`Target::refresh`] then takes that over. Never ends otherwise.
    pub async fn changed(&mut self) {
        if self.units.changed().await.is_err() {
            // The controller is withdrawn: its disks stay as they are.
            std::future::pending().await
        }
        self.units.mark_changed();
    }

    /// Takes over what has changed; `None` if nothing has, which is found with one load.
    #[inline]
    pub fn refresh(&mut self) -> Option<Changes> {
        self.units.has_changed().is_ok_and(|changed| changed).then(|| self.look())
    }

    /// Runs a command. `data` are the pages that came with it. Never blocks.
    ///
    /// Where nothing is, INQUIRY says so with success (guests make phantom disks of a failure) and REPORT LUNS gives
    /// an empty list. Everything else fails, and on paths other than the first not as an invalid *unit*: Linux then
    /// removes the unit of that number from the first path, where it may be a disk in use.
    #[inline]
    pub fn execute(&self, srb: &Srb, data: Option<&GuestPages>) -> Execution {
        let Some(data) = Data::new(data, srb.data_transfer_length.get(), srb.direction()) else {
            return done(Failure::BufferTooSmall);
        };
        let Ok(cdb) = srb.cdb() else { return done(Failure::InvalidField) };
        let command = match Command::parse(cdb) {
            Ok(command) => command,
            // An absent disk is absent for unknown commands, too.
            Err(error) if self.find(srb.address()).is_some() => return done(error.failure()),
            Err(_) => return done(absent(srb.address())),
        };
        match self.find(srb.address()) {
            Some(Attached { lun, nexus }) if !matches!(command, Command::ReportLuns { .. }) => {
                lun.execute(nexus, &command, data)
            }
            Some(_) | None => self.execute_without_disk(srb.address(), &command, data),
        }
    }

    /// Tells a disk of a read that is about to be executed.
    #[inline]
    pub fn expect(&self, srb: &Srb) {
        if let Some(attached) = self.find(srb.address())
            && let Ok(Ok(Command::Read(blocks))) = srb.cdb().map(Command::parse)
        {
            attached.lun.expect(&blocks);
        }
    }

    /// Resets the disk at `address`; `false` if there is none.
    pub fn reset(&self, address: Address) -> bool {
        self.find(address).map(|attached| attached.nexus.reset()).is_some()
    }

    /// Resets every disk.
    pub fn reset_all(&self) {
        self.attached.iter().flatten().for_each(|attached| attached.nexus.reset());
    }

    #[inline]
    fn find(&self, address: Address) -> Option<&Attached> {
        match address {
            Address { path: 0, target: 0, lun } => self.attached.get(usize::from(lun))?.as_ref(),
            Address { .. } => None,
        }
    }

    #[cold]
    fn execute_without_disk(&self, address: Address, command: &Command, data: Data<'_>) -> Execution {
        let moved = if let Command::ReportLuns { select, allocation_length } = command {
            let here = (address.path, address.target) == (0, 0);
            let luns = self.attached.iter().enumerate().filter(|(_, slot)| here && slot.is_some());
            let numbers = luns.filter_map(|(number, _)| u8::try_from(number).ok());
            lun::report_luns(numbers, *select, *allocation_length, data)
        } else if let Command::Inquiry { options, page, allocation_length } = command {
            lun::inquire_nothing(*options, *page, *allocation_length, data)
        } else {
            Err(absent(address))
        };
        Execution::Done(moved.map_or_else(|failure| failure.outcome(), Outcome::success))
    }

    /// Disks that stay keep their nexus; one that was exchanged for another counts as gone and come.
    fn look(&mut self) -> Changes {
        let mut before = std::mem::take(&mut self.attached);
        let mut changes = Changes::default();
        for (&number, lun) in &*self.units.borrow_and_update() {
            let place = usize::from(number);
            self.attached.resize_with(place, || None);
            let here = before.get_mut(place).and_then(|slot| slot.take_if(|old| Arc::ptr_eq(&old.lun, lun)));
            changes.added |= here.is_none();
            let lun = Arc::clone(lun);
            self.attached.push(Some(here.unwrap_or_else(|| Attached { nexus: self.nexuses.of(&lun), lun })));
        }
        changes.removed = before.iter().any(Option::is_some);
        changes
    }
}

#[cold]
fn done(failure: Failure) -> Execution {
    Execution::Done(failure.outcome())
}

/// What is answered where nothing is; see [`Target::execute`].
fn absent(address: Address) -> Failure {
    match address.path {
        0 => Failure::NoSuchLun,
        _ => Failure::NoDevice,
    }
}
