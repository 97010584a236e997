//! The VMBus ring: a control page and a data area in memory that both ends share.
//!
//! A [`Producer`] writes packets in batches and a [`Consumer`] takes them; each keeps its own index in a private
//! variable and treats everything it reads from shared memory as written by an enemy, at any moment. Nothing here
//! waits, signals or knows what a doorbell is: operations that may owe the peer a wake-up return a [`Signal`], and
//! the caller rings. How long to look again before sleeping is the caller's business too; [`Pace`] is the calculator
//! for the pause between two looks.
//!
//! The memory itself is behind [`RingMemory`], generic and never `dyn`. The layout is described in
//! `docs/src/protocol/ring.md`.
//!
//! ```
//! use vmbus_ringbuf::{Consumer, Outgoing, PlainRing, Producer, Signal};
//!
//! let memory = PlainRing::new(4096);
//! let mut producer = Producer::new(memory.clone())?;
//! let mut consumer = Consumer::new(memory)?;
//!
//! let mut batch = producer.batch();
//! batch.push(Outgoing::request(7, b"question"))?;
//! assert_eq!(batch.commit()?, Signal::Ring);
//!
//! let packet = consumer.next()?.expect("one packet was committed");
//! let mut question = [0; 8];
//! packet.read_payload(0, &mut question)?;
//! assert_eq!((packet.transaction_id, &question), (7, b"question"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod consumer;
mod fault;
mod memory;
mod outgoing;
mod pace;
mod packet;
mod plain;
mod producer;
mod saved;
mod signal;
mod stream;

pub use consumer::{Consumer, Unmasked};
pub use fault::{OutOfPacket, PushError, RingFault};
pub use memory::{ControlWord, Flat, RingMemory};
pub use outgoing::{GpaRange, Head, Outgoing, OutgoingKind, Pfns, TransferRange};
pub use pace::Pace;
pub use packet::{
    CONTROL_SIZE, DESCRIPTOR_SIZE, FEATURE_PENDING_SEND_SIZE, MAX_DATA_SIZE, MAX_PACKET_SIZE, Packet,
    PacketKind, TRAILER_SIZE, packet_size,
};
pub use plain::PlainRing;
pub use producer::{Batch, PayloadWriter, Producer};
pub use saved::{SavedConsumer, SavedProducer, TakeUpError};
pub use signal::Signal;
pub use stream::{MAX_STREAM_DATA, StreamFault, StreamReader, end_stream, stream_room, write_stream};
