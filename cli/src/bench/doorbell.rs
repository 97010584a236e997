//! `vmbus bench doorbell`: there and back between two processes.

use std::hint::spin_loop;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vmbus_channels::{BlockingChannel, Device, Guest};
use vmbus_core::memory::SharedMemory as _;
use vmbus_partition::{Mapping, Memfd};

use super::comparison::{self, Case, Goal};
use super::peer::{self, Peer};
use super::{Settings, place};

const LINES: &str = "two lines, spinning";
const EVENTFD_APART: &str = "eventfd, two processors";
const EVENTFD_TOGETHER: &str = "eventfd, one processor";

const HOW: &str = "Two processes, pinned to a processor each or both to one; 64 B there and back.\n\
Lines: data, then a flag, in shared memory. Channel: a request and its completion in the blocking form.";

/// Rounds between two looks at the clock.
const ROUNDS: u32 = 64;

pub(super) fn measure(settings: &Settings) -> Result<()> {
    // Before anything is pinned.
    place::processors()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let directory = tempfile::tempdir()?;
    let connect = |name: &str, processor: usize, never: bool| -> Result<(Peer, Guest, BlockingChannel)> {
        let socket = directory.path().join(name);
        let peer = Peer::bus(&socket, processor, 1 << 20, never)?;
        let (guest, channel) = runtime.block_on(async {
            let guest = Guest::builder().name(name).spin(peer::spin(never)).connect(&socket).await?;
            guest.wait_for(Device::class(peer::ECHO)).await?;
            let channel = guest.open(Device::class(peer::ECHO)).await?;
            anyhow::Ok((guest, channel))
        })?;
        Ok((peer, guest, channel.into_blocking()))
    };
    let spinning = connect("spinning", 1, false)?;
    let apart = connect("apart", 1, true)?;
    let together = connect("together", 0, true)?;
    place::pin(0)?;
    let cases = vec![
        Case::new(LINES, "ns", lines),
        Case::new("channel, spinning", "ns", |time| channel(&spinning.2, time))
            .beside(LINES)
            .aiming_at(Goal::TimesAtMost(1.3)),
        Case::new(EVENTFD_APART, "ns", |time| eventfd(1, time)),
        Case::new("channel, sleeping, two processors", "ns", |time| channel(&apart.2, time))
            .beside(EVENTFD_APART)
            .aiming_at(Goal::TimesAtMost(1.1)),
        Case::new(EVENTFD_TOGETHER, "ns", |time| eventfd(0, time)),
        Case::new("channel, sleeping, one processor", "ns", |time| channel(&together.2, time))
            .beside(EVENTFD_TOGETHER)
            .aiming_at(Goal::TimesAtMost(1.1)),
    ];
    comparison::run("doorbell", HOW, settings, cases)
}

/// Nanoseconds per round of as many as fit into `time`.
fn rounds(time: Duration, mut round: impl FnMut() -> Result<()>) -> Result<f64> {
    // The first rounds wake everybody up.
    for _ in 0..ROUNDS {
        round()?;
    }
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        for _ in 0..ROUNDS {
            round()?;
        }
        count += ROUNDS;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(count))
}

fn channel(channel: &BlockingChannel, time: Duration) -> Result<f64> {
    let payload = [0x5a; 64];
    rounds(time, || {
        let reply = channel.send(&payload, [])?.reply_blocking()?;
        (reply[..] == payload).then_some(()).context("another answer came")
    })
}

fn eventfd(processor: usize, time: Duration) -> Result<f64> {
    let (there, back) =
        (EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?, EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
    let _peer =
        Peer::eventfd(there.as_fd().try_clone_to_owned()?, back.as_fd().try_clone_to_owned()?, processor)?;
    rounds(time, || {
        there.write(1)?;
        back.read()?;
        Ok(())
    })
}

/// A line of data and a line with a flag, each way.
pub(super) struct Lines(Mapping);

const WAYS: [usize; 2] = [0, 512];
const FLAG: usize = 256;
/// The flag that ends it.
const END: u32 = u32::MAX;

impl Lines {
    pub(super) fn over(memory: Mapping) -> Self {
        Self(memory)
    }

    #[inline]
    fn send(&self, way: usize, round: u32, data: &[u8; 64]) {
        self.0.write(WAYS[way], data);
        self.0.store_u32(WAYS[way] + FLAG, round, Ordering::Release);
    }

    /// The flag, once it is another than `last`.
    #[inline]
    fn receive(&self, way: usize, last: u32, data: &mut [u8; 64]) -> u32 {
        loop {
            let flag = self.0.load_u32(WAYS[way] + FLAG, Ordering::Acquire);
            if flag != last {
                self.0.read(WAYS[way], data);
                return flag;
            }
            spin_loop();
        }
    }
}

fn lines(time: Duration) -> Result<f64> {
    let memory = Memfd::new("vmbus-bench-lines", 4096)?.map_all()?;
    let _peer = Peer::lines(&memory, 1)?;
    let lines = Lines::over(memory);
    let (mut round, mut data) = (0, [0x5a; 64]);
    let taken = rounds(time, || {
        round += 1;
        let sent = data;
        lines.send(0, round, &sent);
        lines.receive(1, round - 1, &mut data);
        Ok(())
    });
    lines.send(0, END, &data);
    taken
}

/// The other end of [`lines`].
pub(super) fn answer_on_lines(lines: &Lines) {
    let (mut round, mut data) = (0, [0; 64]);
    loop {
        round = lines.receive(0, round, &mut data);
        if round == END {
            return;
        }
        lines.send(1, round, &data);
    }
}
