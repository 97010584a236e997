//! Ports for tests and measurements: one that takes everything, and one that sends without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmbus_vsp::network::switch::{
    Batch, Capabilities, Connection, Delivered, Frames, MAX_FRAME, MacAddress, Offload, Port, PortSettings,
    Switch,
};

use super::PortError;

/// The EtherType that standards leave to experiments.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
/// Shortest frame: two addresses, a type, and the frame's number.
const SHORTEST: usize = 14 + 8;

/// Takes every frame as it is, counts it and forgets it.
#[derive(Clone, Debug, Default)]
pub struct Sink(Arc<Taken>);

#[derive(Debug, Default)]
struct Taken {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Sink {
    /// One that has taken nothing yet. Clones count together.
    pub fn new() -> Self {
        Self::default()
    }

    /// Frames taken.
    pub fn frames(&self) -> u64 {
        self.0.frames.load(Ordering::Relaxed)
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

impl Port for Sink {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        let delivered = Delivered::all(frames);
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        self.0.frames.fetch_add(count(delivered.frames), Ordering::Relaxed);
        self.0.bytes.fetch_add(count(delivered.bytes), Ordering::Relaxed);
        delivered
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all()
    }
}

/// What a generator sends.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Whom from.
    pub from: MacAddress,
    /// Whom to.
    pub to: MacAddress,
    /// Bytes of each frame; at least 22, as each frame has its number in bytes 14 to 22, big-endian, from 0 on.
    pub frame_len: usize,
    /// Frames that are sent at a time.
    pub burst: usize,
    /// Frames per second; as many as possible without.
    pub rate: Option<u32>,
}

/// Sends frames from a thread of its own. What comes to its port is forgotten. Dropping it ends it.
#[derive(Debug)]
pub struct Generator {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    stopped: AtomicBool,
}

impl Generator {
    /// Connects a generator to a switch and starts it.
    ///
    /// # Errors
    /// [`PortError::Connect`] if the switch does not want it, [`PortError::System`] for want of threads.
    pub fn start(switch: &Switch, traffic: Traffic, settings: PortSettings) -> Result<Self, PortError> {
        let connection = switch.connect(Sink::new(), settings)?;
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name("traffic".into()).spawn({
            let shared = Arc::clone(&shared);
            move || send(&traffic, &connection, &shared)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Frames sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Ends it; how many frames it has sent.
    pub fn stop(mut self) -> u64 {
        self.end();
        self.sent()
    }

    fn end(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.end();
    }
}

fn send(traffic: &Traffic, connection: &Connection, shared: &Shared) {
    let began = Instant::now();
    let len = traffic.frame_len.clamp(SHORTEST, MAX_FRAME);
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(&traffic.to.0);
    frame[6..12].copy_from_slice(&traffic.from.0);
    frame[12..14].copy_from_slice(&EXPERIMENTAL);
    let mut batch = Batch::new();
    let mut number: u64 = 0;
    while !shared.stopped.load(Ordering::Relaxed) {
        for _ in 0..traffic.burst.max(1) {
            frame[14..SHORTEST].copy_from_slice(&number.to_be_bytes());
            if batch.push(&frame, Offload::NONE).is_err() {
                break;
            }
            number += 1;
        }
        connection.send(&mut batch);
        shared.sent.store(number, Ordering::Relaxed);
        if let Some(rate) = traffic.rate {
            let due = Duration::from_secs_f64(due(number, rate));
            if let Some(early) = due.checked_sub(began.elapsed()) {
                thread::park_timeout(early);
            }
        }
    }
}

/// When so many frames are due, in seconds.
fn due(number: u64, rate: u32) -> f64 {
    let rate = u64::from(rate.max(1));
    let (whole, part) = (number / rate, number % rate);
    // A generator does not run for 2^32 seconds, and the rest is below 2^32.
    let exact = |number: u64| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    exact(whole) + exact(part) / exact(rate)
}
