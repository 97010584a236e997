//! A NIC's queue for a thread that sends and receives in batches.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmbus_channels::{Arrivals, BlockingChannel, Channel, ChannelError, Completions, Guest, Spin};
use vmbus_core::network::Oid;
use vmbus_core::network::ndis::PacketFilter;
use vmbus_core::network::rndis::Status;

use super::conversation::{Conversation, Ended, Ticket};
use super::engine::{Engine, NicStatistics};
use super::error::NicError;
use super::known::{COMPLETED, Known, Link};
use super::options::NicInfo;
use super::receive::FrameView;
use super::transmit::{Refused, TransmitInfo};

/// One queue of a NIC, without a runtime. Frames are pushed, and sent together by [`submit`](Self::submit); those that
/// come are shown one after the other by [`receive`](Self::receive), in the memory where the provider has put them.
pub struct NicQueue {
    engine: Engine,
    completions: Completions,
    known: Arc<Known>,
    info: NicInfo,
    channel: Arc<BlockingChannel>,
    /// With the primary channel the others would close.
    _primary: Option<Arc<BlockingChannel>>,
    /// The guest leaves the bus with its last handle.
    guest: Guest,
}

impl NicQueue {
    pub(super) fn new(
        channel: Channel,
        engine: Engine,
        known: &Arc<Known>,
        info: NicInfo,
        guest: Guest,
    ) -> Self {
        let channel = Arc::new(channel.into_blocking());
        let completions = channel.completions();
        Self { engine, completions, known: Arc::clone(known), info, channel, _primary: None, guest }
    }

    /// The same for another channel of the NIC.
    pub(super) fn beside(&self, channel: Channel, engine: Engine) -> Self {
        let queue = Self::new(channel, engine, &self.known, self.info, self.guest.clone());
        Self { _primary: Some(Arc::clone(&self.channel)), ..queue }
    }

    /// What the NIC is.
    pub fn info(&self) -> NicInfo {
        self.info
    }

    /// What the provider says of the link at present.
    pub fn link(&self) -> Link {
        self.known.link()
    }

    /// What has passed this queue since the NIC was opened.
    pub fn statistics(&self) -> NicStatistics {
        self.engine.statistics()
    }

    /// How long [`wait`](Self::wait) looks before it sleeps.
    pub fn set_spin(&self, spin: Spin) {
        self.channel.set_spin(spin);
    }

    /// Adds a frame, which [`submit`](Self::submit) sends; `false` if all memory for such frames is in use, until the
    /// provider has taken some.
    ///
    /// # Errors
    /// [`NicError::FrameLength`], [`NicError::NotOffered`]: the caller's fault.
    pub fn push(&mut self, frame: &[u8], info: &TransmitInfo) -> Result<bool, NicError> {
        match self.engine.push(frame, info) {
            Ok(()) => Ok(true),
            Err(Refused::Full) => Ok(false),
            Err(Refused::Error(error)) => Err(error),
        }
    }

    /// Whether a frame of the MTU would be taken now.
    pub fn has_room(&self) -> bool {
        self.engine.has_room()
    }

    /// Sends what was pushed, as far as there is room in the ring, with one signal at most. Never waits; what found no
    /// room is sent by the next call, or while [`wait`](Self::wait) waits.
    ///
    /// # Errors
    /// [`NicError::Channel`]: the bus is gone.
    pub fn submit(&mut self) -> Result<(), NicError> {
        self.engine.seal();
        Ok(self.engine.flush(|requests| self.channel.try_submit(requests))?)
    }

    /// Sends a frame, waiting for room as long as it takes. Frames that come meanwhile wait for
    /// [`receive`](Self::receive).
    ///
    /// # Errors
    /// As [`push`](Self::push) and [`submit`](Self::submit).
    pub fn send(&mut self, frame: &[u8], info: &TransmitInfo) -> Result<(), NicError> {
        while !self.push(frame, info)? {
            self.submit()?;
            self.wait_on(None)?;
        }
        self.submit()
    }

    /// Shows the frames that have come, without waiting; gives how many. Their memory goes back to the provider when all
    /// of them were shown.
    ///
    /// # Errors
    /// [`NicError::Channel`]: the bus is gone.
    pub fn receive(&mut self, mut each: impl FnMut(FrameView<'_>)) -> Result<u64, NicError> {
        self.poll()?;
        let (mut frames, mut bytes, mut malformed) = (0, 0, 0);
        while let Some(packet) = self.engine.next_packet() {
            malformed += packet.visit(|place| {
                let frame = FrameView::new(&packet, &place);
                frames += 1;
                bytes += u64::try_from(frame.len()).unwrap_or(0);
                each(frame);
            });
            self.completions.push(packet.into_request(), &COMPLETED)?;
        }
        self.engine.visited(frames, bytes, malformed);
        if !self.completions.is_empty() {
            self.completions.send_blocking()?;
        }
        Ok(frames)
    }

    /// Waits until frames come or the provider has taken some of ours, or `timeout` has passed: `false` then.
    ///
    /// # Errors
    /// [`NicError::Channel`]: the bus is gone.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool, NicError> {
        match self.wait_on(timeout) {
            Ok(()) => Ok(true),
            Err(NicError::Channel(ChannelError::TimedOut)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes what has come, without waiting; frames wait for [`receive`](Self::receive).
    pub(super) fn poll(&mut self) -> Result<(), NicError> {
        let mut arrivals = self.engine.spare();
        self.channel.try_take(&mut arrivals)?;
        self.take(arrivals)
    }

    fn wait_on(&mut self, timeout: Option<Duration>) -> Result<(), NicError> {
        let mut arrivals = self.engine.spare();
        let result = self.channel.take(&mut arrivals, self.engine.unsent(), timeout);
        self.take(arrivals)?;
        Ok(result?)
    }

    fn take(&mut self, arrivals: Arrivals) -> Result<(), NicError> {
        self.engine.absorb(arrivals)?;
        Ok(self.engine.flush(|requests| self.channel.try_submit(requests))?)
    }

    /// The value of an object, as [`Nic::query`](super::Nic::query). On the first queue only.
    ///
    /// # Errors
    /// As [`Nic::query`](super::Nic::query).
    pub fn query(&mut self, oid: Oid, with: &[u8]) -> Result<Vec<u8>, NicError> {
        super::nic::check_value(with)?;
        let ended = self.request(|conversation| conversation.query(oid, with))?;
        match ended.status {
            Status::SUCCESS => Ok(ended.data),
            status => Err(NicError::Object { oid, status }),
        }
    }

    /// Sets an object, as [`Nic::set`](super::Nic::set). On the first queue only.
    ///
    /// # Errors
    /// As [`Nic::set`](super::Nic::set).
    pub fn set(&mut self, oid: Oid, value: &[u8]) -> Result<(), NicError> {
        super::nic::check_value(value)?;
        let ended = self.request(|conversation| conversation.set(oid, value))?;
        match ended.status {
            Status::SUCCESS => {
                self.known.keep(oid, value);
                Ok(())
            }
            status => Err(NicError::Object { oid, status }),
        }
    }

    /// Says which frames are wanted, as [`Nic::set_filter`](super::Nic::set_filter). On the first queue only.
    ///
    /// # Errors
    /// As [`Nic::set`](super::Nic::set).
    pub fn set_filter(&mut self, filter: PacketFilter) -> Result<(), NicError> {
        self.set(Oid::GEN_CURRENT_PACKET_FILTER, &filter.bits().to_le_bytes())
    }

    fn request(&mut self, begin: impl FnOnce(&mut Conversation) -> Ticket) -> Result<Ended, NicError> {
        let reign = self.known.pieces.reign();
        let conversation = self.engine.conversation().ok_or(NicError::NotOffered("this on a sub-channel"))?;
        let ticket = begin(conversation);
        let result = loop {
            self.engine.pump();
            self.engine.flush(|requests| self.channel.try_submit(requests))?;
            if let Some(ended) = self.engine.conversation().and_then(|it| it.take(ticket)) {
                return Ok(ended);
            }
            if self.known.pieces.reign() != reign {
                break NicError::Interrupted;
            }
            let waited = self.wait_on(Some(LOOK_FOR_A_ROOT));
            // Nobody receives meanwhile.
            self.engine.drop_late_packets();
            match waited {
                Ok(()) | Err(NicError::Channel(ChannelError::TimedOut)) => {}
                Err(error) => break error,
            }
        };
        if let Some(conversation) = self.engine.conversation() {
            conversation.forget(ticket);
        }
        Err(result)
    }

    /// Waits until the provider has taken all that was sent, or `timeout` has passed: `false` then. Frames that come
    /// meanwhile wait for [`receive`](Self::receive).
    ///
    /// # Errors
    /// [`NicError::Channel`]: the bus is gone.
    pub fn drain(&mut self, timeout: Duration) -> Result<bool, NicError> {
        let until = Instant::now() + timeout;
        self.submit()?;
        while self.engine.statistics().in_flight() > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if !self.wait(Some(left))? && left.is_zero() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(feature = "smoltcp")]
impl NicQueue {
    /// Bytes of the receive buffer.
    pub(super) fn receive_bytes(&self) -> usize {
        self.known.pieces.buffer().len()
    }

    /// So many of the frames that were shown were not taken.
    pub(super) fn overrun(&mut self, frames: u64, bytes: u64) {
        self.engine.overrun(frames, bytes);
    }
}

impl fmt::Debug for NicQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("NicQueue").field("info", &self.info).finish_non_exhaustive()
    }
}

/// How often a thread that waits for an answer looks whether it went with its root.
const LOOK_FOR_A_ROOT: Duration = Duration::from_millis(100);
