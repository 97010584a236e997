//! How much of the root's time a partition may take with what brings nothing.
//!
//! Work is counted in units: a message is one, and so is whatever it makes the root do. What follows no rule costs as
//! much as it is worth. A partition that has used up its allowance is read on later, after a time that is known; until
//! then its messages wait in its own memory, or in its socket.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use vmbus_core::server::{Fault, Whose};
use vmbus_partition::{FromGuest, LinkError};

use super::{Partition, Sources};
use crate::error::ChannelError;
use crate::event::Event;
use crate::pace::{Allowance, Storm};
use crate::quotas::{Gauge, Quotas};
use crate::sources;

/// A message that breaks a rule.
const FAULT: u32 = 50;
/// A ring that breaks a rule: closing the channel, taking it back and offering it anew.
const BROKEN_CHANNEL: u32 = 500;
/// A signal to nobody, or to a channel in a storm.
const SIGNAL_IN_VAIN: u32 = 5;
/// Memory that comes or goes, a reset, a crash.
const RARE: u32 = 50;
/// What a wake costs that comes without anything to do.
const REST_IN_STORM: Duration = Duration::from_millis(10);
/// Connections on which a base VMM posts.
const POSTS: [u32; 2] = [1, 4];
/// HV_STATUS_INSUFFICIENT_BUFFERS: the guest tries again a little later.
const INSUFFICIENT_BUFFERS: u32 = 0x13;

/// What a partition may take of the root's time, and what it has taken.
pub(super) struct Pacing {
    work: Allowance,
    storm: Storm,
    /// A wake without work, in a storm.
    rests: bool,
    /// Units since the last look.
    units: u32,
    /// Channels in a storm.
    pub(super) channels: Arc<AtomicUsize>,
    /// How often the partition had to wait.
    pub(super) waits: Gauge,
}

impl Pacing {
    pub(super) fn new(quotas: &Quotas) -> Self {
        let now = Instant::now();
        Self {
            work: Allowance::new(quotas.work_per_second, quotas.work_at_once, now),
            storm: Storm::new(now),
            rests: false,
            units: 0,
            channels: Arc::default(),
            waits: Gauge::default(),
        }
    }

    pub(super) fn change(&mut self, quotas: &Quotas) {
        self.work.change(quotas.work_per_second, quotas.work_at_once);
    }

    /// Something was done. Free unless the partition caused it: see [`charge`](Self::charge).
    pub(super) fn did(&mut self, units: u32) {
        self.units = self.units.saturating_add(units);
    }

    pub(super) fn fault(&mut self, fault: &Fault) {
        if fault.whose() == Whose::Peer {
            self.did(FAULT);
        }
    }

    /// The partition has said something. What a message makes us do is counted beside it.
    pub(super) fn heard(&mut self, message: &FromGuest) {
        match message {
            FromGuest::Message { .. }
            | FromGuest::Msr { .. }
            | FromGuest::Pong { .. }
            | FromGuest::Given { .. } => self.did(1),
            // Told by what they find.
            FromGuest::Signal { .. } | FromGuest::HungUp => {}
            FromGuest::MemoryChanged | FromGuest::Reset | FromGuest::Crash { .. } => self.did(RARE),
        }
    }

    /// A signal came as a frame. One that brings work is free.
    pub(super) fn signalled(&mut self, found: Found) {
        match found {
            Found::Work => {}
            Found::Nothing => self.did(SIGNAL_IN_VAIN),
        }
    }

    pub(super) fn session_ended(&mut self, result: &Result<(), ChannelError>) {
        if let Err(ChannelError::Ring(_) | ChannelError::Memory(_) | ChannelError::Protocol(_)) = result {
            self.work.take(BROKEN_CHANNEL);
        }
    }

    /// What was done until now is nobody's doing but ours.
    pub(super) fn forgive(&mut self) {
        self.units = 0;
    }

    /// What was done since the last look is the partition's doing. `true`: enough for now.
    pub(super) fn charge(&mut self) -> bool {
        self.work.take(std::mem::take(&mut self.units));
        self.work.is_overdrawn()
    }

    /// The partition has made us look, with or without a reason.
    pub(super) fn looked(&mut self, found: Found) {
        match found {
            Found::Work => self.storm.found_work(),
            Found::Nothing => self.rests = self.storm.in_vain(Instant::now()),
        }
    }

    /// How long the partition waits before it is looked at again.
    fn wait(&mut self) -> Option<Duration> {
        let storm = std::mem::take(&mut self.rests).then_some(REST_IN_STORM);
        if !self.work.is_overdrawn() {
            return storm;
        }
        self.work.wait(Instant::now()).max(storm)
    }
}

/// What a look at a partition has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Found {
    Nothing,
    Work,
}

/// What is to be done after a pause.
pub(super) enum After {
    GoOn,
    LetGo,
}

impl Partition {
    /// Lets the partition wait if it has taken more than it may. What others want of it is done meanwhile.
    pub(super) async fn pause(&mut self, sources: &Sources) -> Result<After, LinkError> {
        let Some(time) = self.pacing.wait() else { return Ok(After::GoOn) };
        self.pacing.waits.add(1);
        if self.pacing.waits.now.is_power_of_two() {
            self.root.tell(Event::Throttled { client: self.client.clone() });
        }
        self.tell_to_slow_down(INSUFFICIENT_BUFFERS)?;
        let end = tokio::time::Instant::now() + time;
        loop {
            tokio::select! {
                biased;
                command = self.inbox.recv() => match command {
                    Some(command) => {
                        if self.command(command) {
                            return Ok(After::LetGo);
                        }
                        self.act();
                        self.pacing.forgive();
                    }
                    None => return Ok(After::LetGo),
                },
                result = sources::readable(&sources.process) => {
                    result?;
                    return Err(LinkError::Gone);
                }
                () = tokio::time::sleep_until(end) => break,
            }
        }
        self.tell_to_slow_down(0)?;
        Ok(After::GoOn)
    }

    /// A base VMM's posts fail meanwhile: what it sends would fill its socket, and the VMM would wait.
    fn tell_to_slow_down(&self, status: u32) -> Result<(), LinkError> {
        if self.end.info().extended {
            return Ok(());
        }
        POSTS.into_iter().try_for_each(|connection| self.end.set_connection_status(connection, status))
    }
}
