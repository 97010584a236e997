//! A disk for a thread that submits and collects.

use std::sync::Arc;

use vmbus_channels::{BlockingChannel, BufferRange, Reply, Spin, Tagged};
use vmbus_core::storage::Version;
use vmbus_core::storage::scsi::{BlockRange, Command};

use super::DiskError;
use super::controller::{command_packet, parse_outcome};
use super::disk::{DiskInfo, blocks};

/// One request to a disk.
#[derive(Clone, Debug)]
pub enum DiskRequest {
    /// Reads into shared memory.
    Read {
        /// Where on the disk, in bytes.
        offset: u64,
        /// Where to.
        into: BufferRange,
    },
    /// Writes from shared memory.
    Write {
        /// Where on the disk, in bytes.
        offset: u64,
        /// Where from.
        from: BufferRange,
    },
    /// Makes writes durable that have completed.
    Flush,
}

/// A disk's requests and completions as two queues, without a runtime. Completions come in any order, each with the
/// tag of its request.
#[derive(Debug)]
pub struct DiskQueue {
    channel: Arc<BlockingChannel>,
    /// With the primary channel the others would close.
    _primary: Option<Arc<BlockingChannel>>,
    version: Version,
    lun: u8,
    info: DiskInfo,
    unsent: Vec<Tagged>,
    replies: Vec<(u64, Reply)>,
}

impl DiskQueue {
    pub(super) fn new(channel: Arc<BlockingChannel>, version: Version, lun: u8, info: DiskInfo) -> Self {
        Self { channel, _primary: None, version, lun, info, unsent: Vec::new(), replies: Vec::new() }
    }

    /// A queue of its own for another channel of the same controller.
    pub(super) fn beside(&self, channel: BlockingChannel) -> Self {
        let queue = Self::new(Arc::new(channel), self.version, self.lun, self.info);
        Self { _primary: Some(Arc::clone(&self.channel)), ..queue }
    }

    /// What the disk says of itself.
    pub fn info(&self) -> DiskInfo {
        self.info
    }

    /// How long [`wait`](Self::wait) looks before it sleeps.
    pub fn set_spin(&self, spin: Spin) {
        self.channel.set_spin(spin);
    }

    /// Adds a request; [`submit`](Self::submit) sends it.
    ///
    /// # Errors
    /// [`DiskError::Unaligned`], [`DiskError::BeyondEnd`]: the caller's fault.
    pub fn push(&mut self, tag: u64, request: DiskRequest) -> Result<(), DiskError> {
        let (command, range) = match request {
            DiskRequest::Read { offset, into } => {
                (Command::Read(blocks(&self.info, offset, into.byte_count())?), Some(into))
            }
            DiskRequest::Write { offset, from } => {
                (Command::Write(blocks(&self.info, offset, from.byte_count())?), Some(from))
            }
            DiskRequest::Flush => (Command::SynchronizeCache(BlockRange::new(0, 0)), None),
        };
        let payload = command_packet(self.version, self.lun, &command, range.as_ref())?;
        self.unsent.push(Tagged { tag, payload, range });
        Ok(())
    }

    /// Sends what was added, with as few signals as it takes. Waits for room if there is none.
    ///
    /// # Errors
    /// [`DiskError::Channel`] if the bus is gone.
    pub fn submit(&mut self) -> Result<(), DiskError> {
        let mut sent = 0;
        while sent < self.unsent.len() {
            sent += self.channel.submit(&self.unsent[sent..])?;
        }
        self.unsent.clear();
        Ok(())
    }

    /// Collects completions (tag, result), waiting for at least one.
    ///
    /// # Errors
    /// [`DiskError::Channel`] if the bus is gone: nothing in flight will complete.
    pub fn wait(&mut self, mut each: impl FnMut(u64, Result<(), DiskError>)) -> Result<(), DiskError> {
        self.channel.replies(&mut self.replies, true)?;
        for (tag, reply) in self.replies.drain(..) {
            let result = parse_outcome(&reply).and_then(|outcome| DiskError::check("a request", outcome));
            each(tag, result.map(drop));
        }
        Ok(())
    }
}
