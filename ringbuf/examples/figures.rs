//! The ring's figures beside the same work done by `rtrb` and by plain copies, alternating within one run.
//!
//! `cargo run --release -p vmbus-ringbuf --example figures [rounds] [filter]`
//!
//! The rings lie in a partition's memory, mapped as they are at run time. Medians (and best) over the rounds, 21 unless told. Two threads are pinned to the first two processors.

#![expect(clippy::unwrap_used, reason = "a measurement that fails has nothing to say")]

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use vmbus_partition::{GpaSpace, Mapping, Region, RingMapping};
use vmbus_ringbuf::{Consumer, Outgoing, Pace, Producer, PushError, RingMemory};

/// Data bytes of every ring measured.
const RING: u32 = 1 << 20;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(21, |rounds| rounds.parse().expect("a number of rounds"));
    let filter = arguments.next().unwrap_or_default();

    let mut samples = vec![Vec::new(); MEASUREMENTS.len()];
    for _ in 0..rounds {
        for (measurement, samples) in MEASUREMENTS.iter().zip(&mut samples) {
            if measurement.name.contains(&filter) {
                samples.push((measurement.measure)());
            }
        }
    }
    for (measurement, taken) in MEASUREMENTS.iter().zip(&samples) {
        if taken.is_empty() {
            continue;
        }
        let (low, middle, high) = spread(taken.clone());
        print!("{:34} {middle:8.2} {:13} ({low:.2} .. {high:.2})", measurement.name, measurement.unit);
        let beside = MEASUREMENTS.iter().position(|other| other.name == measurement.beside);
        if let Some(beside) = beside.filter(|&beside| !samples[beside].is_empty()) {
            // Round by round, as the machine drifts.
            let ratios = taken.iter().zip(&samples[beside]).map(|(ours, theirs)| ours / theirs).collect();
            let (low, middle, high) = spread(ratios);
            print!(", {middle:.2} times ({low:.2} .. {high:.2}) {}", measurement.beside);
        }
        println!();
    }
}

/// One line of the table.
struct Measurement {
    name: &'static str,
    unit: &'static str,
    /// The line it is to be compared with.
    beside: &'static str,
    measure: fn() -> f64,
}

const fn line(
    name: &'static str,
    unit: &'static str,
    beside: &'static str,
    measure: fn() -> f64,
) -> Measurement {
    Measurement { name, unit, beside, measure }
}

const RTRB: &str = "rtrb, two threads, 64 B";
const COPIES_4K: &str = "copies, two threads, 4 KiB";
const COPIES_64K: &str = "copies, two threads, 64 KiB";
const BARE: &str = "bare ping-pong over two lines";

const MEASUREMENTS: &[Measurement] = &[
    line("one thread, 64 B, batches of 32", "ns CPU/packet", "", || one_thread::<64>(32, 1_000_000)),
    line("one thread, 64 B, one by one", "ns CPU/packet", "", || one_thread::<64>(1, 1_000_000)),
    line("one thread, 4 KiB, one by one", "ns CPU/packet", "", || one_thread::<4096>(1, 50_000)),
    line(RTRB, "M/s", "", || rtrb_two_threads::<64>(1_000_000) / 1e6),
    line("two threads, 64 B, batches of 32", "M/s", RTRB, || two_threads::<64>(32, 1_000_000) / 1e6),
    line("two threads, 64 B, one by one", "M/s", RTRB, || two_threads::<64>(1, 1_000_000) / 1e6),
    line(COPIES_4K, "GB/s", "", || plain_copies::<4096>(100_000) * 4096.0 / 1e9),
    line("two threads, 4 KiB, one by one", "GB/s", COPIES_4K, || {
        two_threads::<4096>(1, 100_000) * 4096.0 / 1e9
    }),
    line("two threads, 4 KiB, batches of 32", "GB/s", COPIES_4K, || {
        two_threads::<4096>(32, 100_000) * 4096.0 / 1e9
    }),
    line(COPIES_64K, "GB/s", "", || plain_copies::<65536>(8_000) * 65536.0 / 1e9),
    line("two threads, 64 KiB, one by one", "GB/s", COPIES_64K, || {
        two_threads::<65536>(1, 8_000) * 65536.0 / 1e9
    }),
    line(BARE, "ns/round", "", || bare_ping_pong(100_000)),
    line("ping-pong, two threads, 64 B", "ns/round", BARE, || ping_pong(100_000)),
];

/// Lowest, median, highest.
fn spread(mut samples: Vec<f64>) -> (f64, f64, f64) {
    samples.sort_by(f64::total_cmp);
    (samples[0], samples[samples.len() / 2], samples[samples.len() - 1])
}

/// The same ring for each of its ends.
fn memory(data_size: u32) -> (RingMapping, RingMapping) {
    let size = data_size as usize + 4096;
    let region = Region { gpa: 0, domain: 0, mapping: Mapping::anonymous(size).unwrap() };
    let space = Arc::new(GpaSpace::new(vec![region], 100).unwrap());
    let ring = || space.ring(0..size as u64 / 4096).unwrap();
    (ring(), ring())
}

fn ends(data_size: u32) -> (Producer<RingMapping>, Consumer<RingMapping>) {
    let (ours, theirs) = memory(data_size);
    (Producer::new(ours).unwrap(), Consumer::new(theirs).unwrap())
}

/// Nanoseconds of processor time per packet written and read.
fn one_thread<const LEN: usize>(batch: usize, packets: usize) -> f64 {
    pin(0);
    // One mapping: on one core, two addresses of one cache line are in each other's way.
    let memory = Arc::new(memory(RING).0);
    let mut producer = Producer::new(Arc::clone(&memory)).unwrap();
    let mut consumer = Consumer::new(memory).unwrap();
    consumer.mask();
    let payload = [0x5a; LEN];
    let mut into = [0; LEN];
    let start = processor_time();
    for _ in 0..packets / batch {
        let mut writing = producer.batch();
        for _ in 0..batch {
            writing.push(Outgoing::request(1, black_box::<&[u8; LEN]>(&payload))).unwrap();
        }
        let _ = black_box(writing.commit().unwrap());
        for _ in 0..batch {
            let packet = consumer.next().unwrap().expect("as many as were written");
            packet.read_payload(0, black_box::<&mut [u8; LEN]>(&mut into)).unwrap();
        }
        let _ = black_box(consumer.publish_if_due().unwrap());
    }
    (processor_time() - start) / (packets / batch * batch) as f64
}

/// Packets per second.
fn two_threads<const LEN: usize>(batch: usize, packets: usize) -> f64 {
    let (mut producer, mut consumer) = ends(RING);
    consumer.mask();
    let total = packets / batch * batch;
    let payload = [0x5a; LEN];
    let mut into = [0; LEN];
    let write = move || {
        for _ in 0..packets / batch {
            let mut writing = producer.batch();
            for _ in 0..batch {
                while let Err(error) = writing.push(Outgoing::request(1, black_box::<&[u8; LEN]>(&payload))) {
                    assert_eq!(error, PushError::Full);
                    // A quarter of the ring comes back at a time.
                    rest(16);
                }
            }
            let _ = black_box(writing.commit().unwrap());
        }
    };
    let read = move || {
        let mut pace = Pace::new();
        let mut taken = 0;
        while taken < total {
            let before = taken;
            while let Some(packet) = consumer.next().unwrap() {
                packet.read_payload(0, black_box::<&mut [u8; LEN]>(&mut into)).unwrap();
                let _ = black_box(consumer.publish_if_due().unwrap());
                taken += 1;
            }
            let _ = black_box(consumer.publish_if_due().unwrap());
            rest(pace.found(taken - before));
        }
    };
    total as f64 / in_two_threads(write, read)
}

/// Messages per second through `rtrb`, one commit each.
fn rtrb_two_threads<const LEN: usize>(messages: usize) -> f64 {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<u8>::new(RING as usize);
    let payload = [0x5a; LEN];
    let mut into = [0; LEN];
    let write = move || {
        for _ in 0..messages {
            while producer.push_entire_slice(black_box::<&[u8; LEN]>(&payload)).is_err() {
                spin_loop();
            }
        }
    };
    let read = move || {
        for _ in 0..messages {
            while consumer.pop_entire_slice(black_box::<&mut [u8; LEN]>(&mut into)).is_err() {
                spin_loop();
            }
        }
    };
    messages as f64 / in_two_threads(write, read)
}

/// Copies per second: one thread copies in, the other out of one buffer of the ring's size, with no hand-over.
fn plain_copies<const LEN: usize>(copies: usize) -> f64 {
    let (writing, reading) = memory(RING);
    let payload = [0x5a; LEN];
    let mut into = [0; LEN];
    let steps = move |index: usize| u32::try_from(index * LEN % RING as usize).unwrap();
    let write = move || {
        for index in 0..copies {
            writing.write(steps(index), black_box::<&[u8; LEN]>(&payload));
        }
    };
    let read = move || {
        for index in 0..copies {
            reading.read(steps(index), black_box::<&mut [u8; LEN]>(&mut into));
        }
    };
    copies as f64 / in_two_threads(write, read)
}

/// Nanoseconds for a packet there and a packet back, both ends spinning.
fn ping_pong(rounds: usize) -> f64 {
    let ((mut asks, mut listens), (mut answers, mut hears)) = (ends(16384), ends(16384));
    hears.mask();
    listens.mask();
    let send = |producer: &mut Producer<RingMapping>, payload: &[u8; 64]| {
        let mut batch = producer.batch();
        batch.push(Outgoing::request(1, payload)).unwrap();
        let _ = batch.commit().unwrap();
    };
    let receive = |consumer: &mut Consumer<RingMapping>, pace: &mut Pace, into: &mut [u8; 64]| {
        while !consumer.has_unread().unwrap() {
            rest(pace.found(0));
        }
        consumer.next().unwrap().unwrap().read_payload(0, into).unwrap();
        let _ = consumer.publish_if_due().unwrap();
        rest(pace.found(1));
    };
    let client = move || {
        let (mut pace, mut into) = (Pace::new(), [1; 64]);
        for _ in 0..rounds {
            let payload = into;
            send(&mut asks, &payload);
            receive(&mut hears, &mut pace, &mut into);
        }
    };
    let server = move || {
        let (mut pace, mut into) = (Pace::new(), [1; 64]);
        for _ in 0..rounds {
            receive(&mut listens, &mut pace, &mut into);
            let payload = into;
            send(&mut answers, &payload);
        }
    };
    in_two_threads(client, server) * 1e9 / rounds as f64
}

/// Nanoseconds for 64 bytes there and back by a data line, then a flag line each way.
fn bare_ping_pong(rounds: u64) -> f64 {
    #[derive(Default)]
    #[repr(align(128))]
    struct Line([AtomicU64; 8]);
    #[derive(Default)]
    struct Way {
        data: Line,
        flag: Line,
    }
    fn send(way: &Way, round: u64) {
        way.data.0.iter().for_each(|word| word.store(round, Ordering::Relaxed));
        way.flag.0[0].store(round, Ordering::Release);
    }
    fn receive(way: &Way, round: u64) {
        while way.flag.0[0].load(Ordering::Acquire) != round {
            spin_loop();
        }
        way.data.0.iter().for_each(|word| {
            black_box(word.load(Ordering::Relaxed));
        });
    }
    let ways = Arc::new([Way::default(), Way::default()]);
    let other = Arc::clone(&ways);
    let client = move || {
        for round in 1..=rounds {
            send(&ways[0], round);
            receive(&ways[1], round);
        }
    };
    let server = move || {
        for round in 1..=rounds {
            receive(&other[0], round);
            send(&other[1], round);
        }
    };
    in_two_threads(client, server) * 1e9 / rounds as f64
}

/// Seconds until both are done.
fn in_two_threads(first: impl FnOnce() + Send + 'static, second: impl FnOnce() + Send + 'static) -> f64 {
    let (ready, go) = (Arc::new(Barrier::new(3)), Arc::new(AtomicBool::new(false)));
    let run = |processor: usize, work: Box<dyn FnOnce() + Send>| {
        let (ready, go) = (Arc::clone(&ready), Arc::clone(&go));
        thread::spawn(move || {
            pin(processor);
            ready.wait();
            while !go.load(Ordering::Acquire) {
                spin_loop();
            }
            work();
        })
    };
    let threads = [run(0, Box::new(first)), run(1, Box::new(second))];
    ready.wait();
    let start = Instant::now();
    go.store(true, Ordering::Release);
    for thread in threads {
        thread.join().unwrap();
    }
    start.elapsed().as_secs_f64()
}

fn rest(hints: u32) {
    for _ in 0..hints {
        spin_loop();
    }
}

/// Pins the calling thread, where there is such a processor.
fn pin(processor: usize) {
    let mut set = CpuSet::new();
    if set.set(processor).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

/// Nanoseconds of processor time that this thread has used.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64
}
