//! A request of the peer, from its arrival to its one completion.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;
use vmbus_partition::GuestPages;

use super::core::Core;
use crate::error::ChannelError;

/// What a packet brings beside its payload.
pub(super) enum Attached {
    Nothing,
    /// GPA-direct: memory of the guest.
    Pages(SmallVec<[GuestPages; 1]>),
    /// Ranges (offset, length) of a page set that the channel's protocol has set up before.
    Transfer {
        set_id: u16,
        ranges: SmallVec<[(u32, u32); 2]>,
    },
}

/// A packet that the peer sent, private and checked.
///
/// It completes exactly once: by [`complete`](Self::complete), by the channel's end, or, when it is dropped, with the
/// bytes given to [`Channel::answer_abandoned_with`](super::Channel::answer_abandoned_with).
pub struct Request {
    core: Arc<Core>,
    id: u64,
    /// Which of the roots of this channel sent it: an answer to one that is gone goes nowhere.
    epoch: u32,
    payload: SmallVec<[u8; 96]>,
    attached: Attached,
    /// Bytes of payload and ranges as they came.
    packet_bytes: usize,
    phase: Phase,
    wants_completion: bool,
    written: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// In private memory, not yet handed to a session.
    Queued,
    InFlight,
    Over,
}

impl Request {
    #[inline]
    pub(super) fn new(
        core: &Arc<Core>,
        (id, epoch): (u64, u32),
        wants_completion: bool,
        payload: SmallVec<[u8; 96]>,
        attached: Attached,
        packet_bytes: usize,
    ) -> Self {
        let written = AtomicBool::new(false);
        Self {
            core: Arc::clone(core),
            id,
            epoch,
            payload,
            attached,
            packet_bytes,
            phase: Phase::Queued,
            wants_completion,
            written,
        }
    }

    /// Makes it a request of another channel, which has taken over the rings that it came by.
    pub(super) fn rehome(mut self, core: &Arc<Core>, epoch: u32) -> Self {
        self.core = Arc::clone(core);
        self.epoch = epoch;
        self
    }

    /// Hands the request to a session.
    #[inline]
    pub(super) fn begin(mut self) -> Self {
        self.core.request_began(self.packet_bytes);
        self.phase = Phase::InFlight;
        self
    }

    /// The peer's name for the request; not necessarily unique.
    pub fn transaction_id(&self) -> u64 {
        self.id
    }

    /// Bytes that it stands for: the payload, and the memory that it refers to.
    pub(super) fn bytes_moved(&self) -> u64 {
        let memory: usize = match &self.attached {
            Attached::Nothing => 0,
            Attached::Pages(ranges) => ranges.iter().map(GuestPages::len).sum(),
            Attached::Transfer { ranges, .. } => ranges.iter().map(|(_, len)| *len as usize).sum(),
        };
        u64::try_from(self.payload.len().saturating_add(memory)).unwrap_or(u64::MAX)
    }

    /// Bytes of payload and ranges as they came.
    pub(super) fn packet_bytes(&self) -> usize {
        self.packet_bytes
    }

    /// The payload: a multiple of 8 bytes, the last up to 7 of them padding.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Whether the peer waits for a completion. Without, [`complete`](Self::complete) sends nothing.
    pub fn wants_completion(&self) -> bool {
        self.wants_completion
    }

    /// The guest memory of a GPA-direct packet, range by range; empty for others.
    pub fn ranges(&self) -> &[GuestPages] {
        match &self.attached {
            Attached::Pages(pages) => pages,
            Attached::Nothing | Attached::Transfer { .. } => &[],
        }
    }

    /// The ranges (offset, length) of a transfer-page packet and its set; `None` for others.
    pub fn transfer_pages(&self) -> Option<(u16, &[(u32, u32)])> {
        match &self.attached {
            Attached::Transfer { set_id, ranges } => Some((*set_id, ranges)),
            Attached::Nothing | Attached::Pages(_) => None,
        }
    }

    /// What the peer gave, for requests that speak of it.
    pub(crate) fn gifts(&self) -> Arc<crate::transfer::Gifts> {
        Arc::clone(self.core.side().gifts())
    }

    /// The one range of guest memory, to read from.
    ///
    /// # Errors
    /// [`ChannelError::Protocol`] if there is none or more than one: the peer's fault.
    pub fn readable_pages(&self) -> Result<&GuestPages, ChannelError> {
        match self.ranges() {
            [pages] => Ok(pages),
            ranges => {
                Err(ChannelError::Protocol(format!("{} ranges of memory where one is needed", ranges.len())))
            }
        }
    }

    /// The one range of guest memory, to write to. Guests that need it are told of the writing before the request
    /// completes.
    ///
    /// # Errors
    /// As [`readable_pages`](Self::readable_pages).
    pub fn writable_pages(&self) -> Result<&GuestPages, ChannelError> {
        self.mark_written();
        self.readable_pages()
    }

    /// Says that [`ranges`](Self::ranges) are written to, for devices that take several.
    pub fn mark_written(&self) {
        self.written.store(true, Ordering::Relaxed);
    }

    /// Answers the request. Never waits for ring space: that was set aside before the request was taken.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] if the channel ended first, which completes the request as well;
    /// [`ChannelError::CompletionTooLarge`] if the payload exceeds the offer's `completion_room`: our own fault, and
    /// the request counts as dropped.
    pub async fn complete(self, payload: &[u8]) -> Result<(), ChannelError> {
        self.tell_written().await;
        self.complete_now(payload)
    }

    /// [`complete`](Self::complete) for a thread.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub fn complete_blocking(self, payload: &[u8]) -> Result<(), ChannelError> {
        if self.must_tell_written() {
            crate::block_on::block_on(self.tell_written());
        }
        self.complete_now(payload)
    }

    /// Whether the guest has to be told of writes to its memory, and wait for it, before the completion.
    pub(super) fn must_tell_written(&self) -> bool {
        self.written.load(Ordering::Relaxed) && self.core.tells_writes() && !self.ranges().is_empty()
    }

    pub(super) async fn tell_written(&self) {
        if self.must_tell_written() {
            self.core.tell_written(self.ranges()).await;
        }
    }

    fn complete_now(mut self, payload: &[u8]) -> Result<(), ChannelError> {
        if !self.wants_completion {
            return Ok(());
        }
        self.core.check_completion(payload.len())?;
        self.end();
        self.core.judge(self.core.complete([((self.id, self.epoch), payload)]))
    }

    /// For a completion that was written elsewhere.
    pub(super) fn end(&mut self) {
        if self.phase == Phase::InFlight {
            self.phase = Phase::Over;
            self.core.request_ended(self.packet_bytes);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.phase == Phase::InFlight {
            if self.wants_completion && !self.core.is_closed() {
                self.core.answer_abandoned((self.id, self.epoch));
            }
            self.end();
        }
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Request")
            .field("transaction_id", &self.id)
            .field("payload", &self.payload)
            .field("ranges", &self.ranges().len())
            .finish_non_exhaustive()
    }
}

/// Completions at a time to a peer that polls.
const WORTH_SENDING: usize = 8;

/// Completions to be written together, with one signal at most.
pub struct Completions {
    core: Arc<Core>,
    done: Vec<(Request, SmallVec<[u8; 96]>)>,
}

impl Completions {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self { core: Arc::clone(core), done: Vec::new() }
    }

    /// Adds the answer to `request`.
    ///
    /// # Errors
    /// [`ChannelError::CompletionTooLarge`] as in [`Request::complete`].
    #[inline]
    pub fn push(&mut self, request: Request, payload: &[u8]) -> Result<(), ChannelError> {
        self.core.check_completion(payload.len())?;
        self.done.push((request, SmallVec::from_slice(payload)));
        Ok(())
    }

    /// Whether these are better sent now than gathered on: the peer is looking for them already, so that it can go on
    /// while more are made and needs no signal, and they are enough to be worth the cache line that they take there.
    #[inline]
    pub fn are_awaited(&self) -> bool {
        self.done.len() >= WORTH_SENDING && self.core.peer_polls()
    }

    /// How many there are to send.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Sends what was added; the batch is empty afterwards and keeps its memory.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] if the channel ended first.
    pub async fn send(&mut self) -> Result<(), ChannelError> {
        for (request, _) in &self.done {
            if request.must_tell_written() {
                request.tell_written().await;
            }
        }
        self.send_now()
    }

    /// [`send`](Self::send) for a thread.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_blocking(&mut self) -> Result<(), ChannelError> {
        for (request, _) in &self.done {
            if request.must_tell_written() {
                crate::block_on::block_on(request.tell_written());
            }
        }
        self.send_now()
    }

    fn send_now(&mut self) -> Result<(), ChannelError> {
        let wanted = self.done.iter().filter(|(request, _)| request.wants_completion);
        let sent =
            self.core.complete(wanted.map(|(request, payload)| ((request.id, request.epoch), &payload[..])));
        for (mut request, _) in self.done.drain(..) {
            request.end();
        }
        self.core.judge(sent)
    }
}
