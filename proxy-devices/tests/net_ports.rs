//! What may stand at a switch's port, and what it makes of frames and of those who misbehave.
#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use vmbus_proxy_devices::net::{
    Generator, HostOptions, HostPort, LinkEnds, LinkPort, Sink, StreamPort, Traffic,
};
use vmbus_vsp::network::switch::{
    Batch, Capabilities, Connection, Delivered, DropReason, Frames, MacAddress, Offload, Port, PortSettings,
    Switch,
};

const DEADLINE: Duration = Duration::from_secs(30);
const ALICE: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const BOB: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

/// A port whose frames a test looks at.
struct Station {
    connection: Connection,
    received: Receiver<Vec<u8>>,
}

struct Ear(Sender<Vec<u8>>);

impl Port for Ear {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        for frame in frames {
            let _ = self.0.send(frame.bytes.to_vec());
        }
        Delivered::all(frames)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }
}

impl Station {
    fn at(switch: &Switch) -> Self {
        let (ear, received) = channel();
        let connection = switch.connect(Ear(ear), PortSettings::new("station")).unwrap();
        Self { connection, received }
    }

    fn send(&self, frames: &[Vec<u8>]) {
        let mut batch = Batch::new();
        for frame in frames {
            if batch.push(frame, Offload::NONE).is_err() {
                self.connection.send(&mut batch);
                batch.push(frame, Offload::NONE).unwrap();
            }
        }
        self.connection.send(&mut batch);
    }

    fn receive(&self) -> Vec<u8> {
        self.received.recv_timeout(DEADLINE).expect("a frame in time")
    }
}

fn frame(to: MacAddress, from: MacAddress, number: u16, len: usize) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &[0x88, 0xb5], &number.to_be_bytes()].concat();
    frame.resize(len, number.to_le_bytes()[0]);
    frame
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A stream socket's frame.
fn framed(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
}

fn read_frame(stream: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

fn stream_port(switch: &Switch, path: &Path) -> StreamPort {
    StreamPort::connect(switch, path, PortSettings::new("stream")).unwrap()
}

#[test]
fn frames_cross_a_stream_socket_both_ways_and_its_port_survives_the_other_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("router.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let switch = Switch::new("lan");
    let station = Station::at(&switch);
    let port = stream_port(&switch, &path);
    for _ in 0..2 {
        let (mut router, _) = listener.accept().unwrap();
        eventually("the port is up", || port.is_up());
        for len in [14, 60, 1514, 65_535] {
            let there = frame(MacAddress::BROADCAST, ALICE, 1, len.max(16));
            station.send(std::slice::from_ref(&there));
            assert_eq!(read_frame(&mut router), there);
            let back = frame(ALICE, BOB, 2, len.max(16));
            router.write_all(&framed(&back)).unwrap();
            assert_eq!(station.receive(), back);
        }
        drop(router);
    }
}

#[test]
fn a_stream_that_announces_a_frame_beyond_all_bounds_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("router.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let switch = Switch::new("lan");
    let _port = stream_port(&switch, &path);
    let (mut router, _) = listener.accept().unwrap();
    router.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(router.read(&mut [0]).unwrap(), 0, "the end");
}

#[test]
fn a_stream_that_takes_nothing_any_more_is_ended_and_dialled_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("router.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let switch = Switch::new("lan");
    let station = Station::at(&switch);
    let port = stream_port(&switch, &path);
    let (mut router, _) = listener.accept().unwrap();
    eventually("the port is up", || port.is_up());
    // It could still send, but hears nothing.
    router.shutdown(Shutdown::Read).unwrap();
    let frame = frame(MacAddress::BROADCAST, ALICE, 1, 60);
    station.send(std::slice::from_ref(&frame));
    listener.set_nonblocking(true).unwrap();
    let mut again = None;
    eventually("a new stream", || {
        again = listener.accept().ok();
        again.is_some()
    });
    assert!(router.write_all(&framed(&frame)).is_err(), "the old one has ended");
    let (mut router, _) = again.unwrap();
    router.set_nonblocking(false).unwrap();
    eventually("the port is up again", || port.is_up());
    station.send(std::slice::from_ref(&frame));
    assert_eq!(read_frame(&mut router), frame);
}

#[test]
fn a_stream_that_nobody_reads_drops_frames_and_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("router.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let switch = Switch::new("lan");
    let station = Station::at(&switch);
    let port = stream_port(&switch, &path);
    let (mut router, _) = listener.accept().unwrap();
    eventually("the port is up", || port.is_up());
    let frames: Vec<_> =
        (0..10_000).map(|number| frame(MacAddress::BROADCAST, ALICE, number, 1514)).collect();
    station.send(&frames);
    let counts = switch.statistics();
    let dropped = counts.dropped_received.of(DropReason::Full);
    assert!(dropped > 0 && counts.delivered.frames + dropped == 10_000, "{counts:?}");

    // What was taken comes out, whole and in order; then there is room again.
    let taken = usize::try_from(counts.delivered.frames).unwrap();
    assert!((0..taken).all(|number| read_frame(&mut router) == frames[number]));
    station.send(&frames[..1]);
    assert_eq!(read_frame(&mut router), frames[0]);
}

#[test]
fn two_switches_are_one_network_over_udp_and_over_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let free = |_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let [left, right] = [0, 1].map(free);
    let cables = [
        (LinkEnds::Udp { local: left, remote: right }, LinkEnds::Udp { local: right, remote: left }),
        (
            LinkEnds::Unix { local: a.clone(), remote: b.clone() },
            LinkEnds::Unix { local: b.clone(), remote: a.clone() },
        ),
    ];
    for (left, right) in cables {
        let switches = [Switch::new("left"), Switch::new("right")];
        let stations = [Station::at(&switches[0]), Station::at(&switches[1])];
        let link =
            |switch: &Switch, ends| LinkPort::connect(switch, ends, PortSettings::new("link")).unwrap();
        let left_port = link(&switches[0], &left);
        // Nobody is there yet, which the port says.
        stations[0].send(&[frame(BOB, ALICE, 0, 60)]);
        let right_port = link(&switches[1], &right);
        for number in 1..100 {
            let there = frame(BOB, ALICE, number, 14 + 9000);
            // A refusal of the datagram before may come back with this one.
            eventually("the link is up", || {
                stations[0].send(std::slice::from_ref(&there));
                stations[1].received.recv_timeout(Duration::from_millis(100)).is_ok_and(|came| came == there)
            });
            let back = frame(ALICE, BOB, number, 60);
            stations[1].send(std::slice::from_ref(&back));
            assert_eq!(stations[0].receive(), back);
        }
        drop((left_port, right_port));
    }
    assert!(!a.exists() && !b.exists(), "no socket is left behind");
}

#[test]
fn what_a_generator_sends_arrives_at_a_sink_and_nothing_else_does() {
    let switch = Switch::new("lan");
    let sink = Sink::new();
    let sinks = switch.connect(sink.clone(), PortSettings::new("sink")).unwrap();
    let mut batch = Batch::new();
    batch.push(&frame(MacAddress::BROADCAST, BOB, 0, 60), Offload::NONE).unwrap();
    sinks.send(&mut batch);
    let traffic = Traffic { from: ALICE, to: BOB, frame_len: 64, burst: 32, rate: None };
    let generator = Generator::start(&switch, traffic, PortSettings::new("generator")).unwrap();
    eventually("a hundred thousand frames", || sink.frames() > 100_000);
    let sent = generator.stop();
    assert_eq!((sink.frames(), sink.bytes()), (sent, 64 * sent));
}

#[test]
fn a_generator_keeps_to_its_rate() {
    let switch = Switch::new("lan");
    let began = Instant::now();
    let traffic = Traffic { from: ALICE, to: BOB, frame_len: 64, burst: 10, rate: Some(1000) };
    let generator = Generator::start(&switch, traffic, PortSettings::new("generator")).unwrap();
    eventually("three hundred frames", || generator.sent() >= 300);
    assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
}

#[test]
fn the_built_in_host_answers_who_has_its_address() {
    let switch = Switch::new("lan");
    let station = Station::at(&switch);
    let options = HostOptions::new(Ipv4Addr::new(10, 0, 0, 1), 24);
    let _host = HostPort::connect(&switch, &options, PortSettings::new("host")).unwrap();
    let mut who_has = [&[0xff; 6][..], &ALICE.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &ALICE.0].concat();
    who_has.extend([10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    station.send(&[who_has]);
    let answer = station.receive();
    assert_eq!((&answer[..6], &answer[12..14], answer[21]), (&ALICE.0[..], &[8, 6][..], 2), "an ARP reply");
    assert_eq!(answer[28..32], [10, 0, 0, 1]);
}
