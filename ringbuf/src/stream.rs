//! A stream of bytes in a ring: data in pipe packets, whose ends mean nothing, and an empty one at the end
//! (`docs/src/protocol/ring.md`, "Pipe framing").
//!
//! Bytes are copied once, from the ring to where the reader wants them and from the writer into the ring. Room for the
//! end of the stream is never written to, so that it can be said at any time without waiting.

use crate::consumer::Consumer;
use crate::fault::{PushError, RingFault};
use crate::memory::RingMemory;
use crate::outgoing::{Head, Outgoing, OutgoingKind};
use crate::packet::{PacketKind, packet_size};
use crate::producer::Producer;
use crate::signal::{Signal, advance};

/// Bytes of data that one packet of a stream carries at most.
pub const MAX_STREAM_DATA: usize = 16384;

/// Bytes of the pipe header that stands before the data.
const HEADER: usize = 8;
/// The pipe packet type for data.
const DATA: u32 = 1;
/// Ring bytes of a packet beyond its data, and of the end of the stream.
const OVERHEAD: usize = match packet_size(0, HEADER) {
    Some(size) => size,
    None => 0,
};

/// What a peer wrote that is no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// The ring itself is at fault.
    #[error(transparent)]
    Ring(#[from] RingFault),
    /// A packet that is no plain in-band one, or that wants an answer.
    #[error("the peer wrote a packet that no stream has")]
    Packet,
    /// A packet too short for the pipe header.
    #[error("the peer wrote a packet of a stream without its header")]
    Header,
    /// A pipe packet type that a stream does not have.
    #[error("the peer wrote a pipe packet of type {0}")]
    Type(u32),
    /// More data than the packet has room for.
    #[error("the peer says that {stated} bytes of data are in a packet of {room}")]
    Length {
        /// Bytes by the header.
        stated: u32,
        /// Bytes behind the header.
        room: u32,
    },
}

/// How far the reading of a stream is.
///
/// While the data of a packet was taken in part, nobody else may [`publish`](Consumer::publish) or
/// [`unmask`](Consumer::unmask) the consumer: the room of that packet would go back to the peer.
#[derive(Debug, Default)]
pub struct StreamReader {
    /// Where the rest of the packet last taken lies in the ring, and its bytes.
    held: Option<(u32, u32)>,
    ended: bool,
    fault: Option<StreamFault>,
}

impl StreamReader {
    /// At the start of a stream.
    pub const fn new() -> Self {
        Self { held: None, ended: false, fault: None }
    }

    /// Whether the peer has said that nothing more comes, and all before was read.
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether a packet was taken in part.
    pub const fn holds_packet(&self) -> bool {
        self.held.is_some()
    }

    /// What ended the stream out of order, once all data before it was read.
    pub const fn fault(&self) -> Option<StreamFault> {
        self.fault
    }

    /// Fills `into` as far as there is data. Gives the bytes, and whether the producer is to be signalled.
    /// 0 bytes: nothing is there now, or the stream [is over](Self::is_ended).
    ///
    /// # Errors
    /// The peer's fault, after all data that came before it, and from then on.
    pub fn read<R: RingMemory>(
        &mut self,
        consumer: &mut Consumer<R>,
        into: &mut [u8],
    ) -> Result<(usize, Signal), StreamFault> {
        let (mut filled, mut signal) = (0, Signal::Quiet);
        while filled < into.len() && !self.ended && self.fault.is_none() {
            match self.hold(consumer) {
                Ok(Some((at, left))) => {
                    let len = (left as usize).min(into.len() - filled);
                    consumer.memory().read(at, &mut into[filled..filled + len]);
                    filled += len;
                    // Not more than was left.
                    let taken = u32::try_from(len).unwrap_or(left);
                    let next = advance(at, taken, consumer.data_size());
                    self.held = (taken < left).then_some((next, left - taken));
                }
                Ok(None) if self.ended => {}
                Ok(None) => break,
                Err(fault) => self.fault = Some(fault),
            }
            signal = signal.or(self.give_back(consumer));
        }
        signal = signal.or(self.give_back(consumer));
        match self.fault {
            Some(fault) if filled == 0 => Err(fault),
            Some(_) | None => Ok((filled, signal)),
        }
    }

    /// The data of the packet in hand, or of the next; `None` if there is none.
    fn hold<R: RingMemory>(&mut self, consumer: &mut Consumer<R>) -> Result<Option<(u32, u32)>, StreamFault> {
        if self.held.is_some() {
            return Ok(self.held);
        }
        let Some(packet) = consumer.next()? else { return Ok(None) };
        if packet.kind != PacketKind::InBand || packet.completion_requested {
            return Err(StreamFault::Packet);
        }
        let Some(room) = packet.payload_len.checked_sub(8) else { return Err(StreamFault::Header) };
        let mut header = [0; HEADER];
        packet.read_payload(0, &mut header).map_err(|_| StreamFault::Header)?;
        let [a, b, c, d, e, f, g, h] = header;
        let kind = u32::from_le_bytes([a, b, c, d]);
        if kind != DATA {
            return Err(StreamFault::Type(kind));
        }
        let stated = u32::from_le_bytes([e, f, g, h]);
        if stated > room {
            return Err(StreamFault::Length { stated, room });
        }
        let start = packet.payload_offset();
        if stated == 0 {
            self.ended = true;
            return Ok(None);
        }
        Ok(Some((advance(start, 8, consumer.data_size()), stated)))
    }

    /// Gives the room of whole packets back when it is worth it.
    fn give_back<R: RingMemory>(&mut self, consumer: &mut Consumer<R>) -> Signal {
        if self.held.is_some() {
            return Signal::Quiet;
        }
        match consumer.publish_if_due() {
            Ok(signal) => signal,
            Err(fault) => {
                self.fault.get_or_insert(fault.into());
                Signal::Quiet
            }
        }
    }
}

/// Writes as much of `from` as the ring takes now, in one packet. Gives the bytes, and whether the consumer is to be
/// signalled. 0 bytes of some: ask for [`stream_room`] with [`Producer::request_space`] and come again.
///
/// # Errors
/// [`PushError::Fault`], and [`PushError::Full`] for room that was there and is not any more: the peer's fault.
pub fn write_stream<R: RingMemory>(
    producer: &mut Producer<R>,
    from: &[u8],
) -> Result<(usize, Signal), PushError> {
    let most = most_data(producer.capacity()).min(from.len());
    let wanted = most.next_multiple_of(8) + 2 * OVERHEAD;
    let mut room = producer.known_room();
    if room < wanted {
        room = producer.room()?;
    }
    let len = most.min(room.saturating_sub(2 * OVERHEAD) & !7);
    // Not in tiny pieces, each of which costs a packet and perhaps a signal.
    if len < most.min(producer.capacity() / 8) || len == 0 {
        return Ok((0, Signal::Quiet));
    }
    let mut batch = producer.batch();
    push(&mut batch, &from[..len])?;
    Ok((len, batch.commit()?))
}

/// Ring bytes to wait for before more of a stream is worth writing, with `len` bytes to write.
pub fn stream_room(capacity: usize, len: usize) -> usize {
    most_data(capacity).min(len).next_multiple_of(8).min((capacity / 2) & !7) + 2 * OVERHEAD
}

/// Says that nothing more comes. There is always room for it, as long as it is said once.
///
/// # Errors
/// As [`write_stream`].
pub fn end_stream<R: RingMemory>(producer: &mut Producer<R>) -> Result<Signal, PushError> {
    let mut batch = producer.batch();
    push(&mut batch, &[])?;
    Ok(batch.commit()?)
}

fn push<R: RingMemory>(batch: &mut crate::Batch<'_, R>, data: &[u8]) -> Result<(), PushError> {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&DATA.to_le_bytes());
    header[4..].copy_from_slice(&u32::try_from(data.len()).map_err(|_| PushError::TooLarge)?.to_le_bytes());
    if data.is_empty() {
        return batch.push(Outgoing::in_band(&header));
    }
    let head = Head { kind: OutgoingKind::InBand, transaction_id: 0, completion_requested: false };
    batch.push_with(head, HEADER + data.len(), |payload| {
        // Within the length just stated.
        let _ = payload.write(0, &header);
        let _ = payload.write(HEADER, data);
    })
}

/// Bytes of data that one packet can carry in a ring that holds `capacity` bytes.
fn most_data(capacity: usize) -> usize {
    MAX_STREAM_DATA.min(capacity.saturating_sub(2 * OVERHEAD) & !7)
}
