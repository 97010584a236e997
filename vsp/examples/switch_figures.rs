//! What the switch costs for each frame, from the sender's copy to the receiver that takes it, beside the copy alone.
//!
//! `cargo run --release -p vmbus-vsp --example switch_figures [rounds] [filter]`
//!
//! Receivers count frames and look at nothing else. Processor time of one thread, medians over the rounds, 21 unless
//! told, lines alternating within each round.

#![expect(clippy::unwrap_used, reason = "a measurement that fails has nothing to say")]

use std::hint::black_box;

use nix::time::{ClockId, clock_gettime};
use vmbus_vsp::network::switch::{
    Batch, Capabilities, Checksum, Connection, Delivered, Frames, IpVersion, MacAddress, Offload, Permission,
    Port, PortSettings, Rate, Segmentation, Senders, Switch, VlanMode, VlanSet,
};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(21, |rounds| rounds.parse().expect("a number of rounds"));
    let filter = arguments.next().unwrap_or_default();
    let chosen: Vec<_> = LINES.iter().filter(|line| line.name.contains(&filter)).collect();
    let mut samples = vec![Vec::new(); chosen.len()];
    for _ in 0..rounds {
        for (line, samples) in chosen.iter().zip(&mut samples) {
            samples.push((line.measure)());
        }
    }
    for (line, mut samples) in chosen.iter().zip(samples) {
        samples.sort_by(f64::total_cmp);
        let (low, middle, high) = (samples[0], samples[samples.len() / 2], samples[samples.len() - 1]);
        let rate = 1000.0 / middle;
        println!("{:46} {middle:8.1} ns ({low:.1} .. {high:.1}), {rate:.1} M/s", line.name);
    }
}

/// One line of the table.
struct Line {
    name: &'static str,
    /// Nanoseconds for each copy of a frame.
    measure: fn() -> f64,
}

const fn line(name: &'static str, measure: fn() -> f64) -> Line {
    Line { name, measure }
}

const LINES: &[Line] = &[
    line("copy alone, 64 B, batches of 32", || copies(64)),
    line("copy alone, 1514 B, batches of 32", || copies(1514)),
    line("64 B to a null port, batches of 32", || World::plain(1).run(64, 32, 1)),
    line("64 B to a null port, one by one", || World::plain(1).run(64, 1, 1)),
    line("1514 B to a null port, batches of 32", || World::plain(1).run(1514, 32, 1)),
    line("1514 B to a null port, one by one", || World::plain(1).run(1514, 1, 1)),
    line("64 B to two ports in turn, batches of 32", || World::plain(2).run(64, 32, 2)),
    line("64 B to two ports in turn, one by one", || World::plain(2).run(64, 1, 2)),
    line("64 B with every guard and limit, batches of 32", || World::guarded().run(64, 32, 1)),
    line("64 B with a tag in the frame, batches of 32", || World::tagged().run_tagged()),
    line("1514 B, checksum filled in, batches of 32", || World::plain(1).run_checksum()),
    line("64 KiB cut into 1460 B, each segment", || World::plain(1).run_segments()),
    line("64 B to 2 ports at once, each copy", || World::plain(2).run_flood(2)),
    line("64 B to 256 ports at once, each copy", || World::plain(256).run_flood(256)),
];

const FRAMES: usize = 200_000;

/// Takes all and forgets it.
struct Null;

impl Port for Null {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        Delivered::all(black_box(frames))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }
}

struct World {
    sender: Connection,
    receivers: Vec<Connection>,
}

impl World {
    fn plain(receivers: u16) -> Self {
        Self::new(receivers, PortSettings::new("sender"), &PortSettings::new("receiver"))
    }

    fn guarded() -> Self {
        let plenty = Some(Rate { per_second: 1 << 50, burst: 1 << 50 });
        let settings = PortSettings {
            senders: Senders::Only(vec![mac(0)]),
            dhcp_server: Permission::Denied,
            router: Permission::Denied,
            flood_limit: plenty,
            send_limit: plenty,
            ..PortSettings::new("sender")
        };
        Self::new(1, settings, &PortSettings { receive_limit: plenty, ..PortSettings::new("receiver") })
    }

    fn tagged() -> Self {
        let vlan = VlanMode::Trunk { native: None, tagged: VlanSet::all() };
        let receiver = PortSettings { vlan: VlanMode::Access(5), ..PortSettings::new("receiver") };
        Self::new(1, PortSettings { vlan, ..PortSettings::new("sender") }, &receiver)
    }

    fn new(receivers: u16, sender: PortSettings, receiver: &PortSettings) -> Self {
        let switch = Switch::new("figures");
        let sender = switch.connect(Null, sender).unwrap();
        let receivers = (0..receivers).map(|_| switch.connect(Null, receiver.clone()).unwrap()).collect();
        let world = Self { sender, receivers };
        for (number, receiver) in (1..).zip(&world.receivers) {
            let mut batch = Batch::new();
            batch.push(&frame(MacAddress::BROADCAST, mac(number), 64), Offload::NONE).unwrap();
            receiver.send(&mut batch);
        }
        world
    }

    /// Sends frames to the receivers in turn.
    fn run(&self, len: usize, batch: usize, receivers: usize) -> f64 {
        let frames: Vec<_> = (1..).take(receivers).map(|number| frame(mac(number), mac(0), len)).collect();
        self.send(&frames, Offload::NONE, batch, FRAMES)
    }

    fn run_tagged(&self) -> f64 {
        let mut tagged = frame(mac(1), mac(0), 64);
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        self.send(&[tagged], Offload::NONE, 32, FRAMES)
    }

    fn run_checksum(&self) -> f64 {
        self.send(&[tcp(1514)], Offload { checksum: Checksum::tcp(34), ..Offload::NONE }, 32, FRAMES)
    }

    fn run_segments(&self) -> f64 {
        let segmentation = Segmentation { segment_size: 1460, tcp_offset: 34, ip: IpVersion::V4 };
        let offload = Offload { segmentation: Some(segmentation), ..Offload::NONE };
        self.send(&[tcp(54 + 44 * 1460)], offload, 8, FRAMES / 44)
    }

    fn run_flood(&self, receivers: usize) -> f64 {
        self.send(&[frame(MacAddress::BROADCAST, mac(0), 64)], Offload::NONE, 32, FRAMES / receivers)
    }

    /// Nanoseconds for each copy that this makes.
    fn send(&self, frames: &[Vec<u8>], offload: Offload, batch_len: usize, count: usize) -> f64 {
        let mut batch = Batch::new();
        let mut next = frames.iter().cycle();
        let before = self.sender.statistics().copies;
        let start = cpu_time();
        for _ in 0..count / batch_len {
            for frame in next.by_ref().take(batch_len) {
                batch.push(black_box(frame), offload).unwrap();
            }
            self.sender.send(&mut batch);
        }
        let time = cpu_time() - start;
        let taken: u64 = self.receivers.iter().map(|receiver| receiver.statistics().delivered.frames).sum();
        let copies = self.sender.statistics().copies - before;
        assert!(taken >= copies && copies > 0, "{taken} of {copies} arrived");
        #[expect(clippy::cast_precision_loss, reason = "few")]
        let copies = copies as f64;
        time / copies
    }
}

/// The sender's copy and nothing else.
fn copies(len: usize) -> f64 {
    let mut batch = Batch::new();
    let frame = frame(mac(1), mac(0), len);
    let start = cpu_time();
    for _ in 0..FRAMES / 32 {
        for _ in 0..32 {
            batch.push(black_box(&frame), Offload::NONE).unwrap();
        }
        black_box(batch.frames());
        batch.clear();
    }
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let frames = FRAMES as f64;
    (cpu_time() - start) / frames
}

fn mac(number: u16) -> MacAddress {
    let [high, low] = number.to_be_bytes();
    MacAddress([2, 0, 0, 0, high, low])
}

fn frame(to: MacAddress, from: MacAddress, len: usize) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &[0x08, 0x00]].concat();
    frame.resize(len, 7);
    frame
}

/// A TCP segment without checksums.
fn tcp(len: usize) -> Vec<u8> {
    let mut frame = frame(mac(1), mac(0), len);
    let total = u16::try_from(len - 14).unwrap().to_be_bytes();
    frame[14..34].copy_from_slice(&[
        0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    frame[46] = 0x50;
    frame
}

/// Processor time of this thread, in nanoseconds.
fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    #[expect(clippy::cast_precision_loss, reason = "a short time")]
    let (seconds, nanoseconds) = (time.tv_sec() as f64, time.tv_nsec() as f64);
    seconds * 1e9 + nanoseconds
}
