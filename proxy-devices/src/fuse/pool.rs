//! Shared memory for requests, set aside when the door opens, so that a request neither allocates nor fails for want
//! of memory.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vmbus_channels::Buffer;
use vmbus_vsc::{Disk, DiskError};

/// Room for one request.
#[derive(Debug)]
pub(super) struct Space {
    /// What the disk reads and writes: whole sectors, then [`Space::spare`].
    pub(super) buffer: Buffer,
    /// What the kernel gets: shared memory is copied before it is looked at, since the root may write to it any time.
    /// Grows to what the requests need and then stays.
    pub(super) private: Vec<u8>,
    /// Where two more sectors begin, in bytes.
    pub(super) spare: usize,
}

/// Spaces of one size. Who finds none waits until one is returned.
#[derive(Debug)]
pub(super) struct Pool {
    /// Longest request that a space has room for, in bytes.
    longest: usize,
    count: usize,
    free: Mutex<Vec<Space>>,
    returned: Condvar,
}

impl Pool {
    /// Sets aside `count` spaces for requests of up to `longest` bytes at any offset.
    ///
    /// # Errors
    /// [`DiskError::Open`] if the guest has too little memory.
    pub(super) fn new(disk: &Disk, count: usize, longest: usize) -> Result<Arc<Self>, DiskError> {
        let sector = disk.info().sector_size as usize;
        // A request that begins and ends within sectors touches up to one more at either end.
        let spare = longest + 2 * sector;
        let space = || Ok(Space { buffer: disk.buffer(spare + 2 * sector)?, private: Vec::new(), spare });
        let free = (0..count).map(|_| space()).collect::<Result<Vec<_>, DiskError>>()?;
        Ok(Arc::new(Self { longest, count, free: Mutex::new(free), returned: Condvar::new() }))
    }

    /// Longest request that a space has room for, in bytes.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Takes a space. Blocks the thread while there is none.
    pub(super) fn take(self: &Arc<Self>) -> Loan {
        let mut free = self.free();
        loop {
            match free.pop() {
                Some(space) => return Loan { space: Some(space), pool: Arc::clone(self) },
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Blocks the thread until every space is back: nothing is in flight.
    pub(super) fn wait_until_idle(&self) {
        let mut free = self.free();
        while free.len() < self.count {
            free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Space>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A space on loan; goes back to its pool when dropped.
#[derive(Debug)]
pub(super) struct Loan {
    /// `None` only while it is being dropped.
    space: Option<Space>,
    pool: Arc<Pool>,
}

impl Deref for Loan {
    type Target = Space;

    fn deref(&self) -> &Space {
        self.space.as_ref().expect("a loan has its space until it is dropped")
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut Space {
        self.space.as_mut().expect("a loan has its space until it is dropped")
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.pool.free().extend(self.space.take());
        // Two kinds of waiters: for one space, and for all.
        self.pool.returned.notify_all();
    }
}
