//! A stream in a ring whose writer follows no rule: any packets, good ones between them, in pieces of any size.

use vmbus_ringbuf::{
    Consumer, Outgoing, PlainRing, Producer, StreamReader, end_stream, stream_room, write_stream,
};

const RING: u32 = 4096;

/// Writes what the bytes say and reads it. What is read is what was written before the first packet that is wrong;
/// there a fault stands, and stays. A writer that follows the rules is never at fault.
pub fn run(bytes: &[u8]) {
    let ring = PlainRing::new(RING);
    let mut producer = Producer::new(ring.clone()).expect("a fresh ring");
    let mut consumer = Consumer::new(ring).expect("a fresh ring");
    let (mut reader, mut story) = (StreamReader::new(), Story::default());
    let mut rest = bytes;
    while let Some((&[step, size], more)) = rest.split_first_chunk::<2>() {
        let (data, more) = more.split_at(more.len().min(usize::from(size)));
        match step % 4 {
            0 => story.write(&mut producer, data),
            1 if story.is_open() => {
                let _ = end_stream(&mut producer).expect("there is room for the end, once");
                story.ended = true;
            }
            2 => story.push(&mut producer, step, data),
            _ => story.read(&mut reader, &mut consumer, usize::from(size)),
        }
        rest = more;
    }
    while story.read_some(&mut reader, &mut consumer, 1 << 12) {}
    assert_eq!(story.read, story.written, "all that came before the end or the fault is read");
    assert_eq!(reader.is_ended(), story.ended);
    assert_eq!(reader.fault().is_some(), story.broken);
}

/// What should come out.
#[derive(Default)]
struct Story {
    written: Vec<u8>,
    read: Vec<u8>,
    ended: bool,
    broken: bool,
}

impl Story {
    /// Whether what is written now should come out.
    fn is_open(&self) -> bool {
        !self.ended && !self.broken
    }

    fn write(&mut self, producer: &mut Producer<PlainRing>, data: &[u8]) {
        let Ok((bytes, _)) = write_stream(producer, data) else { panic!("the reader follows the rules") };
        assert!(bytes <= data.len());
        if bytes == 0 && !data.is_empty() {
            let wanted = stream_room(producer.capacity(), data.len());
            let fits = producer.request_space(wanted).expect("the reader follows the rules");
            assert!(!fits, "no room was found where there is some");
        }
        if self.is_open() {
            self.written.extend_from_slice(&data[..bytes]);
        }
    }

    /// Any bytes as the payload of a packet of three kinds.
    fn push(&mut self, producer: &mut Producer<PlainRing>, step: u8, data: &[u8]) {
        let packet = match step / 4 % 4 {
            0 => Outgoing::completion(7, data),
            1 => Outgoing::request(7, data),
            _ => Outgoing::in_band(data),
        };
        let mut batch = producer.batch();
        // The end's own room is kept, as its writer has a right to it.
        if batch.room().is_ok_and(|room| room < 400) || batch.push(packet).is_err() {
            return;
        }
        let _ = batch.commit().expect("the reader follows the rules");
        if !self.is_open() {
            return;
        }
        // Its reader sees the padding, too.
        let mut padded = data.to_vec();
        padded.resize(data.len().next_multiple_of(8), 0);
        let header = padded.first_chunk::<8>().map(|&[a, b, c, d, e, f, g, h]| {
            (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]) as usize)
        });
        match header {
            Some((1, 0)) if step / 4 % 4 > 1 => self.ended = true,
            Some((1, len)) if step / 4 % 4 > 1 && len <= padded.len() - 8 => {
                self.written.extend_from_slice(&padded[8..8 + len]);
            }
            Some(_) | None => self.broken = true,
        }
    }

    fn read(&mut self, reader: &mut StreamReader, consumer: &mut Consumer<PlainRing>, size: usize) {
        self.read_some(reader, consumer, size);
    }

    /// Whether there may be more.
    fn read_some(
        &mut self,
        reader: &mut StreamReader,
        consumer: &mut Consumer<PlainRing>,
        size: usize,
    ) -> bool {
        let mut buffer = vec![0; size];
        match reader.read(consumer, &mut buffer) {
            Ok((bytes, _)) => {
                assert!(bytes <= size);
                self.read.extend_from_slice(&buffer[..bytes]);
                assert!(self.written.starts_with(&self.read), "other bytes than were written");
                bytes > 0
            }
            Err(fault) => {
                assert!(self.broken, "{fault}: a fault where none is");
                assert_eq!(reader.read(consumer, &mut buffer), Err(fault), "a fault stays");
                false
            }
        }
    }
}
