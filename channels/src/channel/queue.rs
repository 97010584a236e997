//! Requests that were taken from the ring to get at what stands behind them, and wait in private memory.

use std::collections::VecDeque;

use super::request::Request;

/// Requests that may wait whatever their size.
const FEW: usize = 64;
/// Bytes of packets beyond which no more than those wait.
const BYTES_AT_MOST: usize = 1 << 20;

/// How many requests wait at most, where the peer need not be able to rely on its ring being read.
pub(crate) const WAITING_AT_ROOT: usize = FEW;
/// The same at a guest. Both ends take requests only if they have room for their completions. Two that send as fast as
/// they can would wait for each other, each for the ring that only the other can read: the guest goes on reading. More
/// than that, no device has under way.
pub(crate) const WAITING_AT_GUEST: usize = 16 << 10;

/// Requests in the order in which they came.
#[derive(Default)]
pub(super) struct Queue {
    requests: VecDeque<Request>,
    bytes: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether what comes has to stay in the ring, where `at_most` may wait here.
    pub(super) fn is_full(&self, at_most: usize) -> bool {
        self.len() >= at_most || (self.len() >= FEW && self.bytes >= BYTES_AT_MOST)
    }

    pub(super) fn push(&mut self, request: Request) {
        self.bytes += request.packet_bytes();
        self.requests.push_back(request);
    }

    pub(super) fn pop(&mut self) -> Option<Request> {
        let request = self.requests.pop_front()?;
        self.bytes -= request.packet_bytes();
        Some(request)
    }

    /// All of them.
    pub(super) fn take(&mut self) -> VecDeque<Request> {
        self.bytes = 0;
        std::mem::take(&mut self.requests)
    }
}
