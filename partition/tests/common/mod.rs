//! Both ends of a partition over each transport, and sleepers that keep the rules of `link`.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod base_vmm;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmbus_partition::{
    AttachLimits, Attaching, FromGuest, FromRoot, GuestEnd, GuestOptions, LinkError, RootEnd, attach, local,
};

pub type Ends = (Arc<dyn RootEnd>, Arc<dyn GuestEnd>);

pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn options() -> GuestOptions {
    GuestOptions { memory: 1 << 20, ..GuestOptions::named("tester") }
}

/// A process partition, both ends in this process over a socket pair.
pub fn over_socket() -> Ends {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guest = std::thread::spawn(move || attach::attach(theirs, &options()).unwrap());
    let root = attach_all(Attaching::new(ours, "unnamed", 7, AttachLimits::default()).unwrap()).unwrap();
    (root, Arc::new(guest.join().unwrap()))
}

/// A partition without a socket.
pub fn in_process() -> Ends {
    let (root, guest) = local::pair(&options(), 7).unwrap();
    (Arc::new(root), Arc::new(guest))
}

/// A VMM that speaks base frames only.
pub fn base_frames() -> Ends {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guest = base_vmm::BaseVmm::start(theirs, 1 << 20);
    let root = attach_all(Attaching::new(ours, "tester", 7, AttachLimits::default()).unwrap()).unwrap();
    (root, Arc::new(guest))
}

/// Waits until a partition is attached or refused.
pub fn attach_all(mut attaching: Attaching) -> Result<Arc<dyn RootEnd>, LinkError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(end) = attaching.advance()? {
            return Ok(end);
        }
        assert!(Instant::now() < deadline, "the partition never finished attaching");
        wait_readable(&[attaching.socket()], Duration::from_millis(100));
    }
}

/// Waits until one is readable; tells which are.
pub fn wait_readable(descriptors: &[BorrowedFd<'_>], most: Duration) -> Vec<bool> {
    let mut polled: Vec<_> = descriptors.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    poll(&mut polled, PollTimeout::try_from(most).unwrap()).unwrap();
    polled.iter().map(|fd| fd.any().unwrap_or(false)).collect()
}

/// The root, as one sleeper for all its workers.
pub struct RootSide {
    pub end: Arc<dyn RootEnd>,
    pub messages: VecDeque<(u32, Vec<u8>)>,
    pub signals: VecDeque<u16>,
    pub events: VecDeque<FromGuest>,
}

impl RootSide {
    pub fn new(end: Arc<dyn RootEnd>) -> Self {
        Self { end, messages: VecDeque::new(), signals: VecDeque::new(), events: VecDeque::new() }
    }

    /// Looks at everything once.
    pub fn look(&mut self) -> Result<(), LinkError> {
        for worker in 0..self.end.info().workers {
            self.end.take_flags(worker, &mut |flag| {
                if flag != 0 {
                    self.signals.push_back(flag)
                }
            });
        }
        self.end.flush()?;
        while let Some(event) = self.end.receive()? {
            match event {
                FromGuest::Message { connection_id, payload, message_type, .. } => {
                    assert_eq!(message_type, 1);
                    self.messages.push_back((connection_id, payload.to_vec()));
                }
                FromGuest::Signal { connection_id, .. } => {
                    self.signals.push_back((connection_id & 0x7ff) as u16)
                }
                other => self.events.push_back(other),
            }
        }
        Ok(())
    }

    /// Sleeps by the rules until something is there that `done` waits for.
    pub fn wait(&mut self, mut done: impl FnMut(&Self) -> bool) -> Result<(), LinkError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.look()?;
            if done(self) {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "the root waited in vain");
            let workers: Vec<u32> = (0..self.end.info().workers).collect();
            let pending = workers.iter().fold(false, |pending, worker| self.end.arm(*worker) | pending);
            if !pending {
                let bells = workers.iter().filter_map(|worker| self.end.worker_bell(*worker));
                let descriptors: Vec<_> = bells.chain(self.end.socket()).collect();
                wait_readable(&descriptors, PATIENCE);
            }
            for worker in workers {
                self.end.disarm(worker);
                self.end.clear_bell(worker);
            }
        }
    }
}

/// The guest, as one sleeper for all its processors.
pub struct GuestSide {
    pub end: Arc<dyn GuestEnd>,
    pub messages: VecDeque<Vec<u8>>,
    pub signals: VecDeque<(u32, u16)>,
    pub events: VecDeque<FromRoot>,
}

impl GuestSide {
    pub fn new(end: Arc<dyn GuestEnd>) -> Self {
        Self { end, messages: VecDeque::new(), signals: VecDeque::new(), events: VecDeque::new() }
    }

    pub fn look(&mut self) -> Result<(), LinkError> {
        self.end.flush()?;
        while let Some(event) = self.end.receive()? {
            match event {
                FromRoot::Message { payload, message_type, .. } => {
                    assert_eq!(message_type, 1);
                    self.messages.push_back(payload.to_vec());
                }
                other => self.events.push_back(other),
            }
        }
        for vp in 0..self.end.info().vps {
            self.end.take_flags(vp, &mut |flag| {
                if flag != 0 {
                    self.signals.push_back((vp, flag))
                }
            });
        }
        Ok(())
    }

    pub fn wait(&mut self, mut done: impl FnMut(&Self) -> bool) -> Result<(), LinkError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.look()?;
            if done(self) {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "the guest waited in vain");
            let vps: Vec<u32> = (0..self.end.info().vps).collect();
            let pending = vps.iter().fold(false, |pending, vp| self.end.arm(*vp) | pending);
            if !pending {
                let bells = vps.iter().filter_map(|vp| self.end.vp_bell(*vp));
                let descriptors: Vec<_> = bells.chain(self.end.socket()).collect();
                wait_readable(&descriptors, PATIENCE);
            }
            for vp in vps {
                self.end.disarm(vp);
                self.end.clear_bell(vp);
            }
        }
    }
}

/// Whether a descriptor is readable now.
pub fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    wait_readable(&[descriptor.as_fd()], Duration::ZERO)[0]
}
