//! Waiting for a descriptor, and being told to stop meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A way to get a thread out of its wait.
#[derive(Debug)]
pub(super) struct Wake {
    event: EventFd,
    stopped: AtomicBool,
}

/// What a wait ended with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// What a descriptor is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    Readable,
    Both,
    /// For nothing: only for the time or a call.
    Nothing,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event, stopped: AtomicBool::new(false) })
    }

    /// Ends the wait under way, or the next one.
    pub(super) fn call(&self) {
        // A counter that is full is readable, too.
        let _ = self.event.write(1);
    }

    /// Calls, for the last time.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.call();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Waits for a descriptor, for a call, or for `patience`.
    pub(super) fn wait(
        &self,
        descriptor: Option<BorrowedFd<'_>>,
        interest: Interest,
        patience: Option<Duration>,
    ) -> io::Result<Ready> {
        let events = match interest {
            Interest::Readable => PollFlags::POLLIN,
            Interest::Both => PollFlags::POLLIN | PollFlags::POLLOUT,
            Interest::Nothing => PollFlags::empty(),
        };
        // Without a descriptor the second place is not looked at.
        let watched = descriptor.unwrap_or(self.event.as_fd());
        let mut all = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN), PollFd::new(watched, events)];
        let timeout = patience.map_or(PollTimeout::NONE, |patience| {
            // Rounded up, so that the time has come when the wait is over.
            let millis = patience.as_micros().div_ceil(1000);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        let count = if descriptor.is_some() { 2 } else { 1 };
        match poll(&mut all[..count], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [called, watched] = all.map(|one| one.revents().unwrap_or(PollFlags::empty()));
        if !called.is_empty() {
            let _ = self.event.read();
        }
        if descriptor.is_none() {
            return Ok(Ready::default());
        }
        // An end or an error is found by reading.
        let ended = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        Ok(Ready {
            readable: watched.intersects(PollFlags::POLLIN | ended),
            writable: watched.contains(PollFlags::POLLOUT),
        })
    }
}
