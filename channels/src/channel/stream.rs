//! A channel that carries a stream of bytes: reading and writing without requests
//! (`docs/src/protocol/ring.md`, "Pipe framing").
//!
//! A closed channel's rings are nobody's, so what the peer wrote before the end is copied out when the channel closes:
//! a reader gets all of it, whether or not the peer still lives.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::{Buf, Bytes};
use vmbus_ringbuf::{StreamFault, StreamReader, end_stream, stream_room, write_stream};

use super::core::{Core, lock};
use super::flow::Hold;
use super::receiving::{Incoming, Nothing};
use super::sending::{Outgoing, due, refused};
use super::side::Side;
use super::swap::State;
use crate::error::ChannelError;
use crate::quotas::count;

/// Bytes of a closed stream that are kept for its reader; what is beyond is lost, and the reader is told.
const KEPT_AT_MOST: usize = 256 << 10;
/// Bytes copied at once when a stream closes.
const KEPT_AT_ONCE: usize = 16 << 10;

/// How far the reading of a stream is.
#[derive(Debug, Default)]
pub(super) struct Stream {
    reader: StreamReader,
    /// What was unread when the channel closed.
    kept: Bytes,
    /// Nobody reads any more.
    deaf: bool,
}

/// What reading a stream gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// So many bytes, more than 0.
    Bytes(usize),
    /// The peer said that nothing more comes.
    End,
    /// Nothing at present, or nothing that policy lets pass yet.
    Nothing(Option<Hold>),
}

/// What writing to a stream gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// So many bytes.
    Bytes(usize),
    /// The peer must read first.
    NoRoom,
    /// Policy lets it wait.
    Held(Hold),
}

impl Core {
    /// Makes this channel a stream. To be called before anybody can read or close it.
    pub(crate) fn carry_stream(&self) {
        let _ = self.stream.set(Mutex::default());
    }

    /// Fills `into` with what is there, waiting as long as looking pays.
    pub(crate) fn read_stream(&self, into: &mut [u8]) -> Result<Read, ChannelError> {
        self.judge(self.try_read_stream(into))
    }

    fn try_read_stream(&self, into: &mut [u8]) -> Result<Read, ChannelError> {
        let Some(stream) = self.stream.get() else { return Err(ChannelError::Closed) };
        let mut incoming = lock(&self.incoming);
        let mut stream = lock(stream);
        if self.is_closed() {
            return stream.read_kept(into);
        }
        if into.is_empty() {
            return Ok(Read::Bytes(0));
        }
        incoming.mask();
        let mut spinner = incoming.spinner.clone();
        let Incoming { consumer, flow, side, .. } = &mut *incoming;
        let found = spinner.look(|| {
            if let Some(flow) = flow {
                // A packet that was begun has passed.
                let waits = !stream.reader.holds_packet() && consumer.has_unread().unwrap_or(false);
                if let Some(hold) = waits.then(|| flow.holds()).flatten() {
                    return Some(Ok(Read::Nothing(Some(hold))));
                }
            }
            match stream.reader.read(consumer, into) {
                Ok((bytes, signal)) => {
                    ring_if(side, signal);
                    if let Some(flow) = flow {
                        if bytes > 0 { flow.passed(count(bytes)) } else { flow.emptied() }
                    }
                    match bytes {
                        0 => stream.reader.is_ended().then_some(Ok(Read::End)),
                        bytes => Some(Ok(Read::Bytes(bytes))),
                    }
                }
                Err(fault) => Some(Err(broken(fault))),
            }
        });
        incoming.spinner = spinner;
        found.unwrap_or(Ok(Read::Nothing(None)))
    }

    /// Sleeps until there may be something to read. `seen` is older than the look that found nothing.
    pub(crate) async fn sleep_for_data(self: Arc<Self>, seen: u64, held: Option<Hold>) {
        let asleep = Instant::now();
        let nothing = held.map_or(Nothing::Empty, Nothing::Held);
        self.park(seen, || self.last_look(&nothing), nothing.due()).await;
        self.slept(asleep);
    }

    /// Writes as much of `from` as there is room for.
    pub(crate) fn write_stream(&self, from: &[u8]) -> Result<Written, ChannelError> {
        self.judge(self.with_outgoing(|outgoing| {
            if let Some(hold) = outgoing.flow.as_mut().and_then(|flow| flow.holds()) {
                return Ok(Written::Held(hold));
            }
            let (written, signal) =
                write_stream(&mut outgoing.producer, from).map_err(|error| refused(error, from.len(), 0))?;
            if written > 0 && outgoing.smallest_wish.take().is_some() {
                outgoing.producer.clear_space_request();
            }
            ring_if(&outgoing.side, signal);
            if written == 0 && !from.is_empty() {
                return Ok(Written::NoRoom);
            }
            if let Some(flow) = &mut outgoing.flow {
                flow.passed(count(written));
            }
            Ok(Written::Bytes(written))
        }))
    }

    /// Says that nothing more comes. Once; nothing may be written afterwards.
    pub(crate) fn end_stream(&self) -> Result<(), ChannelError> {
        self.judge(self.with_outgoing(|outgoing| {
            let signal = end_stream(&mut outgoing.producer).map_err(|error| refused(error, 0, 0))?;
            ring_if(&outgoing.side, signal);
            Ok(())
        }))
    }

    /// Sleeps until some of `len` bytes can be written. `seen` is older than the attempt that found no room.
    pub(crate) async fn sleep_for_room(self: Arc<Self>, seen: u64, len: usize) {
        let wanted = stream_room(self.capacity, len);
        self.park(seen, || self.has_room(wanted), pending()).await;
    }

    /// Sleeps until policy lets something pass that is to be written.
    pub(crate) async fn sleep_until_due(self: Arc<Self>, seen: u64, held: Hold) {
        self.park(seen, || false, due(held)).await;
    }

    /// Nobody is going to read: nothing is kept when the channel closes.
    pub(crate) fn stop_reading(&self) {
        if let Some(stream) = self.stream.get() {
            lock(stream).deaf = true;
        }
    }

    /// How the closed stream ended: with the peer's fault, or without.
    pub(crate) fn stream_result(&self) -> Result<(), ChannelError> {
        let fault = self.stream.get().and_then(|stream| lock(stream).reader.fault());
        fault.map_or(Ok(()), |fault| Err(broken(fault)))
    }

    /// Copies out what is unread, unless the channel is closed already. The ring is nobody's when the guard is gone,
    /// and must be marked closed before.
    pub(super) fn keep_stream(&self) -> Option<MutexGuard<'_, Incoming>> {
        let stream = self.stream.get()?;
        let mut incoming = lock(&self.incoming);
        let mut stream = lock(stream);
        if !self.is_closed() && !stream.deaf {
            stream.keep(&mut incoming);
        }
        Some(incoming)
    }

    fn with_outgoing<T>(
        &self,
        write: impl FnOnce(&mut Outgoing) -> Result<T, ChannelError>,
    ) -> Result<T, ChannelError> {
        let mut outgoing = lock(&self.outgoing);
        match outgoing.state {
            State::Open => write(&mut outgoing),
            // Streams end with their root.
            State::CatchingUp | State::Suspended | State::Shut => Err(ChannelError::Closed),
        }
    }
}

fn ring_if(side: &Side, signal: vmbus_ringbuf::Signal) {
    if signal.is_ring() {
        side.ring();
    }
}

impl Stream {
    fn keep(&mut self, incoming: &mut Incoming) {
        let mut kept = Vec::new();
        // The peer may go on writing: it is not followed for ever.
        while kept.len() < KEPT_AT_MOST {
            let start = kept.len();
            kept.resize(start + KEPT_AT_ONCE, 0);
            // A fault shows when what came before it was read.
            let bytes = match self.reader.read(&mut incoming.consumer, &mut kept[start..]) {
                Ok((bytes, _)) => bytes,
                Err(_) => 0,
            };
            kept.truncate(start + bytes);
            if bytes == 0 {
                break;
            }
        }
        self.kept = kept.into();
    }

    fn read_kept(&mut self, into: &mut [u8]) -> Result<Read, ChannelError> {
        if self.kept.is_empty() {
            return match (self.reader.is_ended(), self.reader.fault()) {
                (true, _) => Ok(Read::End),
                (false, Some(fault)) => Err(broken(fault)),
                (false, None) => Err(ChannelError::Closed),
            };
        }
        let bytes = self.kept.len().min(into.len());
        self.kept.copy_to_slice(&mut into[..bytes]);
        Ok(Read::Bytes(bytes))
    }
}

fn broken(fault: StreamFault) -> ChannelError {
    match fault {
        StreamFault::Ring(fault) => fault.into(),
        StreamFault::Packet | StreamFault::Header | StreamFault::Type(_) | StreamFault::Length { .. } => {
            ChannelError::Protocol(fault.to_string())
        }
    }
}
