//! `vmbus bench net`: frames from one guest to another through a switch, beside sockets that move the same frames.

use std::cell::RefCell;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use vmbus_channels::{Device, Guest, Root, Spin};
use vmbus_core::network::{CLASS, LargeSend};
use vmbus_partition::{GuestOptions, local};
use vmbus_vsc::{Nic, NicOptions, NicQueue, TransmitInfo};
use vmbus_vsp::network::NetworkAdapter;
use vmbus_vsp::network::switch::{
    Capabilities, Delivered, Frames as Delivery, MacAddress, Port, PortSettings, Switch,
};

use super::comparison::{self, Case, Goal, Sample};
use super::frames::{self, BATCH, Counts, Frames, GUESTS, What, frame};
use super::peer::Peer;
use super::{Settings, place};

const SOCKETS_64: &str = "seqpacket sockets, 64 B, batches of 32";
const SOCKETS_64_SINGLE: &str = "seqpacket sockets, 64 B, one by one";
const SOCKETS_1514: &str = "seqpacket sockets, 1514 B, batches of 32";
const SOCKETS_1514_SINGLE: &str = "seqpacket sockets, 1514 B, one by one";
const SOCKETS_PING: &str = "seqpacket sockets, there and back, 64 B";
const CPU: &str = "CPU ns/frame";

const HOW: &str = "Two guests are processes on one processor, the root with the switch between them is one on \
another. What the\nreceiver's driver has copied out counts; LOST is what the switch dropped because the receiver was not \
fast enough.\nSockets: the same three processes, joined by Unix seqpacket sockets, sendmmsg and recvmmsg. Null port: \
guest, root\nand a port that takes everything share one thread, whose processor time counts. CPU is that of all processes.";

pub(super) fn measure(settings: &Settings) -> Result<()> {
    // Before anything is pinned.
    place::processors()?;
    let directory = tempfile::tempdir()?;
    let ours = RefCell::new(Ours::start(&directory.path().join("bus"))?);
    let sockets = RefCell::new(Sockets::start()?);
    place::pin(0)?;
    let flood = |len, batch| {
        let ours = &ours;
        move |time| ours.borrow_mut().flood(&frame(What::Load, len), &PLAIN, batch, time)
    };
    let by_sockets = |len, batch| {
        let sockets = &sockets;
        move |time| sockets.borrow_mut().flood(len, batch, time)
    };
    let cases = vec![
        Case::new(SOCKETS_64, "M frames/s", by_sockets(64, BATCH)),
        Case::new("64 B, batches of 32", "M frames/s", flood(64, BATCH))
            .beside(SOCKETS_64)
            .aiming_at(Goal::AtLeast(4.0)),
        Case::new(SOCKETS_64_SINGLE, "M frames/s", by_sockets(64, 1)),
        Case::new("64 B, one by one", "M frames/s", flood(64, 1)).beside(SOCKETS_64_SINGLE),
        Case::new(SOCKETS_1514, "M frames/s", by_sockets(1514, BATCH)),
        Case::new("1514 B, batches of 32", "M frames/s", flood(1514, BATCH)).beside(SOCKETS_1514),
        Case::new(SOCKETS_1514_SINGLE, "M frames/s", by_sockets(1514, 1)),
        Case::new("1514 B, one by one", "M frames/s", flood(1514, 1)).beside(SOCKETS_1514_SINGLE),
        Case::new("large sends of 60,000 B", "Gbit/s", |time| ours.borrow_mut().large_sends(time))
            .aiming_at(Goal::AtLeast(30.0)),
        Case::new(SOCKETS_PING, "us", |time| sockets.borrow_mut().ping(time)),
        Case::new("there and back, 64 B", "us", |time| ours.borrow_mut().ping(time)).beside(SOCKETS_PING),
        Case::new("null port, 1514 B, batches of 32", "M frames/s CPU", |time| null_port(BATCH, time))
            .aiming_at(Goal::AtLeast(3.0)),
        Case::new("null port, 1514 B, one by one", "M frames/s CPU", |time| null_port(1, time))
            .aiming_at(Goal::AtLeast(1.3)),
    ];
    comparison::run("net", HOW, settings, cases)
}

const PLAIN: TransmitInfo = TransmitInfo { checksum: None, large_send: None, vlan: None, hash: None };
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A guest at a switch, with another guest that counts.
struct Ours {
    queue: NicQueue,
    root: Peer,
    sink: Peer,
    /// Keeps the guest on the bus.
    _runtime: tokio::runtime::Runtime,
}

impl Ours {
    fn start(socket: &Path) -> Result<Self> {
        let root = Peer::switch(socket, 1)?;
        let sink = Peer::counting(socket, 0)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let queue = runtime.block_on(frames::join(socket, GUESTS[0].0))?;
        queue.set_spin(Spin::adaptive());
        Ok(Self { queue, root, sink, _runtime: runtime })
    }

    /// Nanoseconds of processor time of all.
    fn cpu(&self) -> Result<f64> {
        let processes = [std::process::id(), self.root.id(), self.sink.id()];
        processes.into_iter().try_fold(0.0, |sum, process| Ok(sum + place::process_time(process)?))
    }

    fn flood(&mut self, frame: &[u8], info: &TransmitInfo, batch: usize, time: Duration) -> Result<Sample> {
        let before = self.counts()?;
        let cpu = self.cpu()?;
        let start = Instant::now();
        let mut sent = 0_u64;
        while start.elapsed() < time {
            // Readings of the clock cost as much as frames do.
            for _ in 0..16 {
                let mut pushed = 0;
                while pushed < batch && self.queue.push(frame, info)? {
                    pushed += 1;
                }
                self.queue.submit()?;
                sent += pushed as u64;
                if pushed < batch {
                    self.queue.wait(Some(PATIENCE))?;
                    self.queue.receive(|_| {})?;
                }
            }
        }
        if !self.queue.drain(PATIENCE)? {
            bail!("the switch does not take all frames");
        }
        let came = self.counts()?.minus(before);
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), self.cpu()? - cpu);
        let lost = 100.0 * (1.0 - came.frames as f64 / sent.max(1) as f64);
        Ok(Sample {
            value: came.frames as f64 / elapsed / 1e6,
            beside_that: vec![
                (CPU, cpu / came.frames.max(1) as f64),
                ("LOST %", lost.max(0.0)),
                ("Gbit/s", 8.0 * came.bytes as f64 / elapsed / 1e9),
            ],
        })
    }

    fn large_sends(&mut self, time: Duration) -> Result<f64> {
        let large_send = LargeSend { segment_size: 1448, tcp_offset: 34, version_2: true, ipv6: false };
        let info = TransmitInfo { large_send: Some(large_send), ..PLAIN };
        let segment = tcp(60_000);
        let start = Instant::now();
        let before = self.counts()?;
        let mut sent = 0_u64;
        while start.elapsed() < time {
            if self.queue.push(&segment, &info)? {
                self.queue.submit()?;
                sent += 1;
            } else {
                self.queue.wait(Some(PATIENCE))?;
                self.queue.receive(|_| {})?;
            }
        }
        if !self.queue.drain(PATIENCE)? {
            bail!("the switch does not take all frames");
        }
        let came = self.counts()?.minus(before);
        let bytes = came.bytes.min(sent * 64_000);
        Ok(8.0 * bytes as f64 / start.elapsed().as_secs_f64() / 1e9)
    }

    /// Asks the other guest for what it has counted. It may have dropped the question, or the answer be on its way.
    fn counts(&mut self) -> Result<Counts> {
        self.ask(What::Question)
    }

    fn ask(&mut self, what: What) -> Result<Counts> {
        let question = frame(what, 60);
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            self.queue.send(&question, &PLAIN)?;
            let again = Instant::now() + Duration::from_millis(200);
            while Instant::now() < again {
                self.queue.wait(Some(Duration::from_millis(200)))?;
                let mut answer = None;
                self.queue.receive(|frame| {
                    let mut bytes = [0; 60];
                    if frame.len() == 60 && frame.read(0, &mut bytes).is_ok() {
                        answer = Counts::of_answer(&bytes).or(answer);
                    }
                })?;
                if let Some(answer) = answer {
                    return Ok(answer);
                }
            }
        }
        bail!("the other guest does not answer")
    }

    fn ping(&mut self, time: Duration) -> Result<f64> {
        let start = Instant::now();
        let mut rounds = 0_u32;
        while start.elapsed() < time {
            for _ in 0..16 {
                self.ask(What::Ping)?;
            }
            rounds += 16;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds))
    }
}

/// A TCP segment over IPv4 that is to be cut.
fn tcp(len: usize) -> Vec<u8> {
    let mut frame = frame(What::Load, len);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..54].fill(0);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&u16::try_from(len - 14).unwrap_or(u16::MAX).to_be_bytes());
    (frame[22], frame[23]) = (64, 6);
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    (frame[46], frame[47]) = (5 << 4, 0x10);
    frame
}

/// The same with sockets.
struct Sockets {
    out: OwnedFd,
    answers: OwnedFd,
    _relay: Peer,
    _sink: Peer,
}

impl Sockets {
    fn start() -> Result<Self> {
        let pair = || socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let ((out, relay_in), (relay_out, sink_in), (sink_out, answers)) = (pair()?, pair()?, pair()?);
        let relay = Peer::relay(relay_in, relay_out, 1)?;
        let sink = Peer::sink(sink_in, sink_out, 0)?;
        Ok(Self { out, answers, _relay: relay, _sink: sink })
    }

    fn ask(&self, what: What) -> Result<Counts> {
        let mut answer = [0; 60];
        Frames::of(&frame(what, 60), 1).send(self.out.as_raw_fd())?;
        let len = recv(self.answers.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        Counts::of_answer(&answer[..len]).context("the other process is gone")
    }

    fn flood(&mut self, len: usize, batch: usize, time: Duration) -> Result<f64> {
        let mut frames = Frames::of(&frame(What::Load, len), batch);
        let before = self.ask(What::Question)?;
        let start = Instant::now();
        while start.elapsed() < time {
            frames.send(self.out.as_raw_fd())?;
        }
        let came = self.ask(What::Question)?.minus(before);
        Ok(came.frames as f64 / start.elapsed().as_secs_f64() / 1e6)
    }

    fn ping(&mut self, time: Duration) -> Result<f64> {
        let start = Instant::now();
        let mut rounds = 0_u32;
        while start.elapsed() < time {
            self.ask(What::Ping)?;
            rounds += 1;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds))
    }
}

/// Takes everything.
struct Null;

impl Port for Null {
    fn deliver(&self, frames: Delivery<'_>) -> Delivered {
        Delivered::all(frames)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all()
    }
}

/// Frames per second of processor time that a guest sends, and its root takes, on one thread.
fn null_port(batch: usize, time: Duration) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let root = Root::builder().spin(Spin::never()).build();
        let switch = Switch::new("bench");
        let (name, address) = GUESTS[0];
        root.offer(NetworkAdapter::new(name, &switch, MacAddress(address)))?;
        let null = switch.connect(Null, PortSettings::new("null"))?;
        let (end, guest) = local::pair(&GuestOptions::named(name), root.next_partition())?;
        root.attach(Arc::new(end));
        let guest = Guest::builder().spin(Spin::never()).attach(Arc::new(guest)).await?;
        let nic = Nic::open_device(&guest, Device::class(CLASS), NicOptions::new()).await?;
        let load = frame(What::Load, 1514);
        let frames = vec![(&load[..], PLAIN); batch];
        let (start, cpu) = (Instant::now(), place::thread_time()?);
        while start.elapsed() < time {
            for _ in 0..16 {
                nic.send_batch(&frames).await?;
            }
        }
        nic.keep_alive().await?;
        let cpu = place::thread_time()? - cpu;
        let sent = nic.statistics().completed;
        if null.statistics().delivered.frames != sent {
            bail!("{} of {sent} frames arrived", null.statistics().delivered.frames);
        }
        Ok(sent as f64 / cpu * 1e3)
    })
}
