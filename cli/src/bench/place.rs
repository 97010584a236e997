//! Where threads run and what they use.

use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// The processors that this program may use, as it was before the first [`pin`].
pub(super) fn processors() -> Result<Vec<usize>> {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    if let Some(allowed) = ALLOWED.get() {
        return Ok(allowed.clone());
    }
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let list = (0..CpuSet::count()).filter(|&processor| allowed.is_set(processor).unwrap_or(false)).collect();
    Ok(ALLOWED.get_or_init(|| list).clone())
}

/// The system's number of the `nth` processor that this program may use; the last there is if there are fewer.
pub(super) fn processor(nth: usize) -> Result<usize> {
    let processors = processors()?;
    processors.get(nth).or(processors.last()).copied().context("no processor may be used")
}

/// Pins the calling thread, and those it will start, to a processor, by the system's number.
pub(super) fn pin_to(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Pins the calling thread to the `nth` processor.
pub(super) fn pin(nth: usize) -> Result<()> {
    pin_to(processor(nth)?)
}

/// Nanoseconds of processor time that the calling thread has used.
pub(super) fn thread_time() -> Result<f64> {
    clock(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// Nanoseconds of processor time that all threads of a process have used.
pub(super) fn process_time(process: u32) -> Result<f64> {
    clock(clock_getcpuclockid(Pid::from_raw(i32::try_from(process)?))?)
}

fn clock(clock: ClockId) -> Result<f64> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}
