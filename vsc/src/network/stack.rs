//! A NIC's queue as the device of a smoltcp stack.

use std::collections::VecDeque;
use std::time::Duration;

use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use super::error::NicError;
use super::options::ETHERNET_HEADER;
use super::queue::NicQueue;
use super::transmit::TransmitInfo;

/// Frames taken from the NIC at a time stay here until the stack wants them.
const SPARE: usize = 64;

/// A [`NicQueue`] for a smoltcp `Interface`: poll the interface, then [`wait`](Self::wait) for as long as it may.
///
/// Checksums are computed and looked at by the stack.
#[derive(Debug)]
pub struct NicDevice {
    queue: NicQueue,
    /// No more than the receive buffer holds.
    came: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    scratch: Vec<u8>,
    failure: Option<NicError>,
}

impl NicDevice {
    /// The device over this queue.
    pub fn new(queue: NicQueue) -> Self {
        Self { queue, came: VecDeque::new(), spare: Vec::new(), scratch: Vec::new(), failure: None }
    }

    /// The queue itself.
    pub fn queue(&mut self) -> &mut NicQueue {
        &mut self.queue
    }

    /// Waits until there may be something for the stack to do, or `timeout` has passed.
    ///
    /// # Errors
    /// [`NicError::Channel`]: the bus is gone. What went wrong while the stack was polled is told here, once.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<(), NicError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        // Without room for an answer the stack does nothing with what is there already.
        if self.came.is_empty() || !self.queue.has_room() {
            self.queue.wait(timeout)?;
        }
        Ok(())
    }

    /// Takes frames, when there are none.
    fn take(&mut self) {
        let Self { queue, came, spare, failure, .. } = self;
        let (mut frames, mut bytes) = (queue.info().pieces, queue.receive_bytes());
        let (mut lost, mut lost_bytes) = (0, 0);
        let taken = queue.receive(|frame| {
            // A provider that names a piece more than once could make them any number.
            let (Some(frames_left), Some(bytes_left)) =
                (frames.checked_sub(1), bytes.checked_sub(frame.len()))
            else {
                lost += 1;
                lost_bytes += u64::try_from(frame.len()).unwrap_or(0);
                return;
            };
            (frames, bytes) = (frames_left, bytes_left);
            let mut bytes = spare.pop().unwrap_or_default();
            bytes.resize(frame.len(), 0);
            // One that went with its root is none.
            if frame.read(0, &mut bytes).is_ok() {
                came.push_back(bytes);
            }
        });
        queue.overrun(lost, lost_bytes);
        if let Err(error) = taken {
            failure.get_or_insert(error);
        }
    }

    /// Whether a frame finds room, once it is known what the provider has taken by now.
    fn makes_room(&mut self) -> bool {
        if !self.queue.has_room()
            && let Err(error) = self.queue.poll()
        {
            self.failure.get_or_insert(error);
        }
        self.queue.has_room()
    }
}

impl Device for NicDevice {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        let longest = self.queue.info().mtu.saturating_add(ETHERNET_HEADER);
        capabilities.max_transmission_unit = usize::try_from(longest).unwrap_or(usize::MAX);
        capabilities
    }

    fn receive(&mut self, _timestamp: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        if self.came.is_empty() {
            self.take();
        }
        // An answer needs room, too.
        if !self.makes_room() {
            return None;
        }
        let bytes = self.came.pop_front()?;
        let Self { queue, spare, scratch, failure, .. } = self;
        Some((Received { bytes, spare }, Sending { queue, scratch, failure }))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Sending<'_>> {
        let has_room = self.makes_room();
        let Self { queue, scratch, failure, .. } = self;
        has_room.then_some(Sending { queue, scratch, failure })
    }
}

/// A frame for the stack.
#[derive(Debug)]
pub struct Received<'a> {
    bytes: Vec<u8>,
    spare: &'a mut Vec<Vec<u8>>,
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        let result = look(&self.bytes);
        if self.spare.len() < SPARE {
            self.spare.push(self.bytes);
        }
        result
    }
}

/// Room for a frame of the stack.
#[derive(Debug)]
pub struct Sending<'a> {
    queue: &'a mut NicQueue,
    scratch: &'a mut Vec<u8>,
    failure: &'a mut Option<NicError>,
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.scratch.clear();
        self.scratch.resize(len, 0);
        let result = fill(self.scratch);
        let pushed = self.queue.push(self.scratch, &TransmitInfo::default());
        let sent = pushed.and_then(|_| self.queue.submit());
        if let Err(error) = sent {
            self.failure.get_or_insert(error);
        }
        result
    }
}
