//! A guest's NIC as the network card of smoltcp's stack.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use vmbus_vsc::{NicError, NicQueue, TransmitInfo};

/// Frames that wait for the stack at most; the provider keeps the others.
const WAITING: usize = 512;
/// The most that are taken at a time: of more, which come from a provider that delivers them again and again, the newest
/// are lost.
const WAITING_AT_MOST: usize = 8192;

/// The card.
pub(super) struct Card {
    queue: NicQueue,
    received: VecDeque<Vec<u8>>,
    /// Memory to use again.
    spare: Vec<Vec<u8>>,
    frame: Vec<u8>,
    /// What went wrong where nobody could be told.
    error: Option<NicError>,
}

impl Card {
    pub(super) fn new(queue: NicQueue) -> Self {
        Self { queue, received: VecDeque::new(), spare: Vec::new(), frame: Vec::new(), error: None }
    }

    pub(super) fn address(&self) -> [u8; 6] {
        self.queue.info().address
    }

    /// Takes what has come.
    pub(super) fn receive_all(&mut self) -> Result<()> {
        if self.received.len() >= WAITING {
            return Ok(());
        }
        let (received, spare) = (&mut self.received, &mut self.spare);
        self.queue.receive(|view| {
            if received.len() >= WAITING_AT_MOST {
                return;
            }
            let mut frame = spare.pop().unwrap_or_default();
            frame.resize(view.len(), 0);
            // One that cannot be read is lost, as on a wire.
            if view.read(0, &mut frame).is_ok() {
                received.push_back(frame);
            }
        })?;
        Ok(())
    }

    /// Sends what the stack has made.
    pub(super) fn send_all(&mut self) -> Result<()> {
        self.queue.submit()?;
        self.error.take().map_or(Ok(()), |error| Err(error.into()))
    }

    /// Waits until something comes or goes.
    pub(super) fn wait(&mut self, patience: Duration) -> Result<()> {
        self.queue.wait(Some(patience))?;
        Ok(())
    }
}

impl Device for Card {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sent<'_>)> {
        let frame = self.received.pop_front()?;
        let Self { queue, spare, frame: scratch, error, .. } = self;
        Some((Received { frame, spare }, Sent { queue, frame: scratch, error }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent { queue: &mut self.queue, frame: &mut self.frame, error: &mut self.error })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        // Without room for a tag.
        capabilities.max_transmission_unit = self.queue.info().longest_frame() - 4;
        capabilities
    }
}

/// A frame that has come.
pub(super) struct Received<'a> {
    frame: Vec<u8>,
    spare: &'a mut Vec<Vec<u8>>,
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        let result = take(&self.frame);
        self.spare.push(self.frame);
        result
    }
}

/// Room for a frame.
pub(super) struct Sent<'a> {
    queue: &'a mut NicQueue,
    frame: &'a mut Vec<u8>,
    error: &'a mut Option<NicError>,
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.frame.resize(len, 0);
        let result = fill(self.frame);
        let info = TransmitInfo::default();
        let sent = match self.queue.push(self.frame, &info) {
            Ok(true) => Ok(()),
            // The provider has not taken what is before it: that must not be long.
            Ok(false) => self.queue.send(self.frame, &info),
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            *self.error = Some(error);
        }
        result
    }
}
