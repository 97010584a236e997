//! What it takes to send requests again that a root took to its grave.
//!
//! Kept beside the ring to the peer, under the same lock, and only where the guest is to survive its root. A record
//! stays until its slot's next request takes its place; whether it still counts is what [`Replies`] says.
//!
//! [`Replies`]: super::replies::Replies

use std::collections::VecDeque;

use smallvec::SmallVec;
use vmbus_ringbuf::{GpaRange, Outgoing as Packet, OutgoingKind, Pfns, TransferRange};

use super::replies::slot_of;

/// Whether a request may run a second time, when nobody knows whether it has run before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// It may: its effect is the same.
    Again,
    /// It must not: it ends as [`Interrupted`](crate::ChannelError::Interrupted).
    Never,
}

/// The requests that were sent, by reply slot.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    records: Vec<Record>,
    /// Requests sent so far.
    count: u64,
    /// Slots of the requests to be sent again, in the order in which they were first sent.
    again: VecDeque<usize>,
}

#[derive(Debug)]
struct Record {
    id: u64,
    /// Its place in the order of all requests.
    number: u64,
    replay: Replay,
    kind: Kind,
    payload: SmallVec<[u8; 64]>,
}

#[derive(Debug)]
enum Kind {
    InBand,
    GpaDirect(SmallVec<[Range; 1]>),
    TransferPages { set_id: u16, ranges: SmallVec<[TransferRange; 2]> },
}

#[derive(Clone, Copy, Debug)]
struct Range {
    byte_count: u32,
    byte_offset: u32,
    first_pfn: u64,
}

impl InFlight {
    /// Notes a request that has been sent.
    pub(super) fn note(&mut self, packet: &Packet<'_>, replay: Replay) {
        let Some(slot) = slot_of(packet.transaction_id).filter(|_| packet.completion_requested) else {
            return;
        };
        let kind = match packet.kind {
            OutgoingKind::InBand => Kind::InBand,
            OutgoingKind::GpaDirect(ranges) => Kind::GpaDirect(ranges.iter().filter_map(range).collect()),
            OutgoingKind::TransferPages { set_id, ranges } => {
                Kind::TransferPages { set_id, ranges: SmallVec::from_slice(ranges) }
            }
            // Never sent by a channel as requests of its own.
            OutgoingKind::Completion | OutgoingKind::GpaDirectEncoded { .. } => return,
        };
        self.count += 1;
        let (id, number) = (packet.transaction_id, self.count);
        // Slots are taken one after the other, but sent in any order.
        while self.records.len() <= slot {
            let payload = SmallVec::new();
            self.records.push(Record {
                id: 0,
                number: 0,
                replay: Replay::Never,
                kind: Kind::InBand,
                payload,
            });
        }
        let record = &mut self.records[slot];
        record.payload.clear();
        record.payload.extend_from_slice(packet.payload);
        (record.id, record.number, record.replay, record.kind) = (id, number, replay, kind);
    }

    /// Prepares to send again what `is_waiting` for an answer still; gives those that must not run again.
    pub(super) fn begin_again(&mut self, mut is_waiting: impl FnMut(u64) -> bool) -> Vec<u64> {
        let mut waiting: Vec<usize> =
            (0..self.records.len()).filter(|&slot| is_waiting(self.records[slot].id)).collect();
        waiting.sort_by_key(|&slot| self.records[slot].number);
        let (again, never): (Vec<usize>, Vec<usize>) =
            waiting.into_iter().partition(|&slot| match self.records[slot].replay {
                Replay::Again => true,
                Replay::Never => false,
            });
        self.again = again.into();
        never.into_iter().map(|slot| self.records[slot].id).collect()
    }

    /// The next request to be sent again, to `send`, which tells whether there was room for it. `None`: that was all.
    pub(super) fn next_again<T>(&self, send: impl FnOnce(&Packet<'_>) -> T) -> Option<T> {
        let record = self.records.get(*self.again.front()?)?;
        let (transaction_id, payload) = (record.id, &record.payload[..]);
        let packet = |kind| Packet { kind, transaction_id, completion_requested: true, payload };
        Some(match &record.kind {
            Kind::InBand => send(&packet(OutgoingKind::InBand)),
            Kind::GpaDirect(ranges) => {
                let ranges: SmallVec<[GpaRange<'_>; 4]> = ranges.iter().map(Range::as_gpa).collect();
                send(&packet(OutgoingKind::GpaDirect(&ranges)))
            }
            Kind::TransferPages { set_id, ranges } => {
                send(&packet(OutgoingKind::TransferPages { set_id: *set_id, ranges }))
            }
        })
    }

    /// The one that [`next_again`](Self::next_again) gave is out.
    pub(super) fn sent_again(&mut self) {
        self.again.pop_front();
    }
}

/// A channel's own ranges are pages in a row.
fn range(range: &GpaRange<'_>) -> Option<Range> {
    let first_pfn = match range.pfns {
        Pfns::From(first) => first,
        Pfns::Listed(_) => return None,
    };
    Some(Range { byte_count: range.byte_count, byte_offset: range.byte_offset, first_pfn })
}

impl Range {
    fn as_gpa(&self) -> GpaRange<'static> {
        GpaRange {
            byte_count: self.byte_count,
            byte_offset: self.byte_offset,
            pfns: Pfns::From(self.first_pfn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u64) -> u64 {
        slot + 1
    }

    /// Ids and payloads of all that is sent again.
    fn sent_again(in_flight: &mut InFlight) -> Vec<(u64, Vec<u8>)> {
        let mut sent = Vec::new();
        while let Some(packet) =
            in_flight.next_again(|packet| (packet.transaction_id, packet.payload.to_vec()))
        {
            sent.push(packet);
            in_flight.sent_again();
        }
        sent
    }

    #[test]
    fn what_waits_is_sent_again_in_its_order_and_what_must_not_is_named() {
        let mut in_flight = InFlight::default();
        for (slot, replay) in [(2, Replay::Again), (0, Replay::Never), (3, Replay::Again), (1, Replay::Again)]
        {
            in_flight.note(&Packet::request(id(slot), &slot.to_le_bytes()), replay);
        }
        in_flight.note(&Packet::in_band(b"nobody answers"), Replay::Again);

        let never = in_flight.begin_again(|waiting| waiting != id(3));
        assert_eq!(never, [id(0)]);
        let again = [(id(2), vec![2, 0, 0, 0, 0, 0, 0, 0]), (id(1), vec![1, 0, 0, 0, 0, 0, 0, 0])];
        assert_eq!(sent_again(&mut in_flight), again);
        assert!(sent_again(&mut in_flight).is_empty());
    }

    #[test]
    fn the_next_request_of_a_slot_takes_the_place_of_the_last() {
        let mut in_flight = InFlight::default();
        in_flight.note(&Packet::request(id(0), b"first"), Replay::Never);
        in_flight.note(&Packet::request(id(0) | 1 << 32, b"second"), Replay::Again);
        assert!(in_flight.begin_again(|_| true).is_empty());
        assert_eq!(sent_again(&mut in_flight), [(id(0) | 1 << 32, b"second".to_vec())]);
    }

    #[test]
    fn memory_is_named_again_as_it_was() {
        let mut in_flight = InFlight::default();
        let ranges = [GpaRange { byte_count: 8192, byte_offset: 512, pfns: Pfns::From(77) }];
        in_flight.note(&Packet::gpa_direct(id(0), &ranges, b"read"), Replay::Again);
        in_flight.begin_again(|_| true);
        let same = in_flight.next_again(|packet| match packet.kind {
            OutgoingKind::GpaDirect(named) => named == ranges,
            _ => false,
        });
        assert_eq!(same, Some(true));
    }
}
