//! `vmbus bench ring`: packets through one ring in real shared memory, mapped as channels map it.

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use vmbus_core::memory::SharedMemory as _;
use vmbus_partition::{GpaSpace, Mapping, Region, RingMapping};
use vmbus_ringbuf::{Consumer, Outgoing, Pace, Producer, PushError};

use super::comparison::{self, Case, Goal};
use super::{Settings, place};

const RING: usize = 1 << 20;
const PAGE: usize = 4096;

const RTRB: &str = "rtrb, two threads, 64 B";
const COPIES_4K: &str = "copies, two threads, 4 KiB";
const COPIES_64K: &str = "copies, two threads, 64 KiB";

const HOW: &str = "Ring of 1 MiB in a memfd, mapped twice in a row by each end. Two threads are pinned to a processor \
each.\nrtrb: a byte ring of 1 MiB, 64 B copied in and out, one commit each. Copies: two threads copy in and out of one\n\
buffer of the ring's size, with no hand-over.";

pub(super) fn measure(settings: &Settings) -> Result<()> {
    // Before anything is pinned.
    place::processors()?;
    let cases = vec![
        Case::new("one thread, 64 B, batches of 32", "ns CPU/packet", |time| {
            one_thread::<64>(32, packets(time, 10))
        })
        .aiming_at(Goal::AtMost(10.0)),
        Case::new("one thread, 64 B, one by one", "ns CPU/packet", |time| {
            one_thread::<64>(1, packets(time, 14))
        })
        .aiming_at(Goal::AtMost(14.0)),
        Case::new("one thread, 4 KiB, one by one", "ns CPU/packet", |time| {
            one_thread::<4096>(1, packets(time, 150))
        }),
        Case::new(RTRB, "M/s", |time| rtrb_two_threads::<64>(packets(time, 70)).map(|rate| rate / 1e6)),
        Case::new("two threads, 64 B, batches of 32", "M/s", |time| {
            two_threads::<64>(32, packets(time, 20)).map(|rate| rate / 1e6)
        })
        .beside(RTRB)
        .aiming_at(Goal::TimesAtLeast(2.0)),
        Case::new("two threads, 64 B, one by one", "M/s", |time| {
            two_threads::<64>(1, packets(time, 50)).map(|rate| rate / 1e6)
        })
        .beside(RTRB)
        .aiming_at(Goal::TimesAtLeast(1.0)),
        Case::new("two threads, 512 B, batches of 32", "M/s", |time| {
            two_threads::<512>(32, packets(time, 60)).map(|rate| rate / 1e6)
        }),
        Case::new(COPIES_4K, "GB/s", |time| {
            plain_copies::<4096>(packets(time, 250)).map(|rate| rate * 4096.0 / 1e9)
        }),
        Case::new("two threads, 4 KiB, batches of 32", "GB/s", |time| {
            two_threads::<4096>(32, packets(time, 250)).map(|rate| rate * 4096.0 / 1e9)
        })
        .beside(COPIES_4K)
        .aiming_at(Goal::TimesAtLeast(0.7)),
        Case::new("two threads, 4 KiB, one by one", "GB/s", |time| {
            two_threads::<4096>(1, packets(time, 250)).map(|rate| rate * 4096.0 / 1e9)
        })
        .beside(COPIES_4K)
        .aiming_at(Goal::TimesAtLeast(0.7)),
        Case::new(COPIES_64K, "GB/s", |time| {
            plain_copies::<65536>(packets(time, 4000)).map(|rate| rate * 65536.0 / 1e9)
        }),
        Case::new("two threads, 64 KiB, one by one", "GB/s", |time| {
            two_threads::<65536>(1, packets(time, 4000)).map(|rate| rate * 65536.0 / 1e9)
        })
        .beside(COPIES_64K)
        .aiming_at(Goal::TimesAtLeast(0.7)),
    ];
    comparison::run("ring", HOW, settings, cases)
}

/// How many packets take about `time` at `nanoseconds` each; a multiple of 32.
fn packets(time: Duration, nanoseconds: u64) -> usize {
    let count = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / nanoseconds;
    usize::try_from(count.max(1)).unwrap_or(usize::MAX).next_multiple_of(32)
}

/// The two ends of a new ring.
fn ring() -> Result<(Producer<RingMapping>, Consumer<RingMapping>)> {
    let mapping = Mapping::anonymous(PAGE + RING)?;
    let region = Region { gpa: 0, domain: 0, mapping };
    let space = Arc::new(GpaSpace::new(vec![region], 16)?);
    let pages = || 0..((PAGE + RING) / PAGE) as u64;
    let (writing, reading) = (space.ring(pages())?, space.ring(pages())?);
    if !writing.is_mapped_twice() || !reading.is_mapped_twice() {
        return Err(anyhow!("the system refuses to map a ring twice in a row"));
    }
    let mut consumer = Consumer::new(reading)?;
    consumer.mask();
    Ok((Producer::new(writing)?, consumer))
}

/// Nanoseconds of processor time per packet written and read.
fn one_thread<const LEN: usize>(batch: usize, packets: usize) -> Result<f64> {
    let work = move || -> Result<f64> {
        place::pin(0)?;
        let (mut producer, mut consumer) = ring()?;
        let payload = [0x5a; LEN];
        let mut into = [0; LEN];
        let start = place::thread_time()?;
        for _ in 0..packets / batch {
            let mut writing = producer.batch();
            for _ in 0..batch {
                writing.push(Outgoing::request(1, black_box::<&[u8; LEN]>(&payload)))?;
            }
            let _ = black_box(writing.commit()?);
            for _ in 0..batch {
                let packet = consumer.next()?.context("a packet was lost")?;
                packet.read_payload(0, black_box::<&mut [u8; LEN]>(&mut into))?;
            }
            let _ = black_box(consumer.publish_if_due()?);
        }
        Ok((place::thread_time()? - start) / packets as f64)
    };
    std::thread::spawn(work).join().map_err(|_| anyhow!("the thread panicked"))?
}

/// Packets per second.
fn two_threads<const LEN: usize>(batch: usize, packets: usize) -> Result<f64> {
    let (mut producer, mut consumer) = ring()?;
    let payload = [0x5a; LEN];
    let mut into = [0; LEN];
    let write = move || -> Result<()> {
        let mut pace = Pace::new();
        for _ in 0..packets / batch {
            let mut writing = producer.batch();
            for _ in 0..batch {
                while let Err(error) = writing.push(Outgoing::request(1, black_box::<&[u8; LEN]>(&payload))) {
                    match error {
                        PushError::Full => rest(pace.found(2)),
                        PushError::TooLarge | PushError::Range | PushError::Fault(_) => {
                            return Err(error.into());
                        }
                    }
                }
            }
            let _ = black_box(writing.commit()?);
        }
        Ok(())
    };
    let read = move || -> Result<()> {
        let mut pace = Pace::new();
        let mut taken = 0;
        while taken < packets {
            let before = taken;
            while let Some(packet) = consumer.next()? {
                packet.read_payload(0, black_box::<&mut [u8; LEN]>(&mut into))?;
                let _ = black_box(consumer.publish_if_due()?);
                taken += 1;
            }
            let _ = black_box(consumer.publish_if_due()?);
            rest(pace.found(taken - before));
        }
        Ok(())
    };
    Ok(packets as f64 / in_two_threads(write, read)?)
}

/// Messages per second through `rtrb`, one commit each.
fn rtrb_two_threads<const LEN: usize>(messages: usize) -> Result<f64> {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<u8>::new(RING);
    let payload = [0x5a; LEN];
    let mut into = [0; LEN];
    let write = move || {
        for _ in 0..messages {
            while producer.push_entire_slice(black_box::<&[u8; LEN]>(&payload)).is_err() {
                spin_loop();
            }
        }
        Ok(())
    };
    let read = move || {
        for _ in 0..messages {
            while consumer.pop_entire_slice(black_box::<&mut [u8; LEN]>(&mut into)).is_err() {
                spin_loop();
            }
        }
        Ok(())
    };
    Ok(messages as f64 / in_two_threads(write, read)?)
}

/// Copies per second.
fn plain_copies<const LEN: usize>(copies: usize) -> Result<f64> {
    let writing = Mapping::anonymous(RING)?;
    let reading = writing.clone();
    let payload = [0x5a; LEN];
    let mut into = [0; LEN];
    let write = move || {
        for index in 0..copies {
            writing.write(index * LEN % RING, black_box::<&[u8; LEN]>(&payload));
        }
        Ok(())
    };
    let read = move || {
        for index in 0..copies {
            reading.read(index * LEN % RING, black_box::<&mut [u8; LEN]>(&mut into));
        }
        Ok(())
    };
    Ok(copies as f64 / in_two_threads(write, read)?)
}

/// Seconds until both are done.
fn in_two_threads(
    first: impl FnOnce() -> Result<()> + Send + 'static,
    second: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<f64> {
    let ready = Arc::new(Barrier::new(3));
    let run = |processor: usize, work: Box<dyn FnOnce() -> Result<()> + Send>| {
        let ready = Arc::clone(&ready);
        std::thread::spawn(move || -> Result<(Instant, Instant)> {
            let pinned = place::pin(processor);
            ready.wait();
            pinned?;
            let start = Instant::now();
            work()?;
            Ok((start, Instant::now()))
        })
    };
    let threads = [run(0, Box::new(first)), run(1, Box::new(second))];
    ready.wait();
    let [first, second] = threads.map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked")));
    let (first, second) = (first??, second??);
    Ok((first.1.max(second.1) - first.0.min(second.0)).as_secs_f64())
}

fn rest(hints: u32) {
    for _ in 0..hints {
        spin_loop();
    }
}
