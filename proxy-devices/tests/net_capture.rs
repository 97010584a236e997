//! Looking into the switches of a running root from another process's place.
#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::io::Read;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::Runtime;
use vmbus_channels::Root;
use vmbus_proxy_devices::net::{
    CaptureError, CaptureRequest, Generator, HostOptions, HostPort, NetStatus, Sink, Traffic, answer_for,
    capture,
};
use vmbus_vsp::network::switch::{
    Batch, Connection, MacAddress, Mirror, Mirrored, Offload, PortSettings, Switch,
};

const ALICE: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const BOB: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const HOST: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);

/// A root with one network: the built-in host, alice, and bob, who sends to himself all the time.
struct World {
    folder: TempDir,
    _runtime: Runtime,
    _root: Root,
    switch: Switch,
    alice: Connection,
    _host: HostPort,
    _bob: Generator,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let root = runtime.block_on(Root::listen(folder.path().join("bus.sock"))).unwrap();
        let switch = Switch::new("lan");
        answer_for(&root, vec![switch.clone()]);
        let options = HostOptions { mac: Some(HOST), ..HostOptions::new(Ipv4Addr::new(10, 0, 0, 1), 24) };
        let host = HostPort::connect(&switch, &options, PortSettings::new("host")).unwrap();
        let alice = switch.connect(Sink::new(), PortSettings::new("alice")).unwrap();
        let traffic = Traffic { from: BOB, to: BOB, frame_len: 777, burst: 1, rate: Some(2000) };
        let bob = Generator::start(&switch, traffic, PortSettings::new("bob")).unwrap();
        // Until the switch knows where he is, everybody gets what is for him.
        let deadline = Instant::now() + Duration::from_secs(30);
        while switch.addresses().iter().all(|known| known.address != BOB) {
            assert!(Instant::now() < deadline, "bob sends nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { folder, _runtime: runtime, _root: root, switch, alice, _host: host, _bob: bob }
    }

    fn capture(&self, switch: &str, port: Option<&str>) -> Result<impl Read + use<>, CaptureError> {
        let request =
            CaptureRequest { switch: switch.into(), port: port.map(Into::into), longest: Some(128) };
        capture(&self.folder.path().join("bus.sock"), &request)
    }

    /// Alice asks who has the host's address.
    fn ask(&self) {
        let mut frame = [&[0xff; 6][..], &ALICE.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &ALICE.0].concat();
        frame.extend([10, 0, 0, 7, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
        let mut batch = Batch::new();
        batch.push(&frame, Offload::NONE).unwrap();
        self.alice.send(&mut batch);
    }
}

/// The next frame of a capture: its first bytes, and its whole length.
fn next_frame(capture: &mut impl Read) -> (Vec<u8>, usize) {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    loop {
        let mut head = [0; 8];
        capture.read_exact(&mut head).unwrap();
        let mut body = vec![0; word(&head, 4) - 8];
        capture.read_exact(&mut body).unwrap();
        if word(&head, 0) == 6 {
            return (body[20..20 + word(&body, 12)].to_vec(), word(&body, 16));
        }
    }
}

#[test]
fn a_capture_of_one_port_has_what_it_sends_and_gets_and_nothing_of_others() {
    let world = World::new();
    let mut captured = world.capture("lan", Some("alice")).unwrap();
    world.ask();
    // The mirror is the last to get a frame: who is quick has answered by then.
    let mut both = [next_frame(&mut captured), next_frame(&mut captured)];
    both.sort();
    let [(answer, _), (question, len)] = both;
    assert_eq!((&question[..6], &question[6..12], len), (&[0xff; 6][..], &ALICE.0[..], 42));
    assert_eq!((&answer[..6], &answer[6..12]), (&ALICE.0[..], &HOST.0[..]), "bob's frames are not hers");

    let again = world.capture("lan", Some("alice")).map(drop);
    assert!(matches!(&again, Err(CaptureError::Refused(why)) if why.contains("already")), "{again:?}");
    drop(captured);
    let deadline = Instant::now() + Duration::from_secs(30);
    while world.switch.ports().iter().any(|port| port.settings.name == "capture") {
        assert!(Instant::now() < deadline, "the capture does not end with its reader");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The port goes a moment before the capture does.
    while let Err(error) = world.capture("lan", Some("alice")).map(drop) {
        assert!(Instant::now() < deadline, "the next capture is refused: {error}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_capture_of_a_network_has_all_and_of_long_frames_the_beginning() {
    let world = World::new();
    let mut captured = world.capture("lan", None).unwrap();
    let (frame, len) = next_frame(&mut captured);
    assert_eq!((frame.len(), len), (128, 777), "bob's");
    // Somebody who comes later is seen, too.
    let carol = world.switch.connect(Sink::new(), PortSettings::new("carol")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut seen = false;
    while !seen {
        assert!(Instant::now() < deadline, "carol is not seen");
        let mut batch = Batch::new();
        batch
            .push(&[[0xff; 6], [2, 0, 0, 0, 0, 3], [0x88, 0xb5, 0, 0, 0, 0]].concat(), Offload::NONE)
            .unwrap();
        carol.send(&mut batch);
        seen = (0..100).any(|_| next_frame(&mut captured).0[6..12] == [2, 0, 0, 0, 0, 3]);
    }
}

#[test]
fn what_cannot_be_captured_is_explained() {
    let world = World::new();
    let refused = |switch, port| match world.capture(switch, port).map(drop) {
        Err(CaptureError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused("wan", None), "no such network: there is lan");
    assert_eq!(refused("lan", Some("mallory")), "nobody is called `mallory` there at present");
    // As a root does that writes a file of all.
    let mirror = Mirror::Source(Mirrored::Sent);
    let _shown = world.switch.connect(Sink::new(), PortSettings { mirror, ..PortSettings::new("carol") });
    assert!(refused("lan", Some("alice")).contains("captured already"));
    drop(world.capture("lan", None).unwrap());
}

#[test]
fn a_listing_has_ports_stations_and_counts() {
    let world = World::new();
    world.ask();
    let status = NetStatus::of(world.folder.path().join("bus.sock")).unwrap();
    let [lan] = &status.switches[..] else { panic!("{status:?}") };
    let names: Vec<_> = lan.ports.iter().map(|port| port.name.as_str()).collect();
    assert_eq!((lan.name.as_str(), names), ("lan", vec!["host", "alice", "bob"]));
    let alice = &lan.ports[1];
    assert_eq!((alice.counters.sent_frames, alice.counters.sent_bytes), (1, 42));
    let known = lan.addresses.iter().find(|known| known.address == ALICE.to_string()).unwrap();
    assert_eq!(known.port, alice.id);
    let text = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<NetStatus>(&text).unwrap(), status, "for machines");
}
