//! Ports that come, go and are treated otherwise while others send.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;

use vmbus_vsp::network::switch::{
    Batch, Capabilities, ConnectError, Connection, Delivered, DropReason, Frames, MacAddress, Mirror,
    Mirrored, Offload, Port, PortSettings, Senders, Switch, VlanMode,
};

use crate::world::{World, frame, mac};

/// Checks that frames come in order, and has no room for every seventh.
#[derive(Default)]
struct Careful {
    /// The last number of each sender: they only grow.
    last: Mutex<[u64; SENDERS]>,
}

impl Port for Careful {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        let mut delivered = Delivered::default();
        let mut last = self.last.lock().expect("no panic");
        for frame in frames {
            let (sender, number) = numbers(frame.bytes);
            assert!(number > last[sender], "sender {sender} sent {} before {number}", last[sender]);
            last[sender] = number;
            if number % 7 != 0 {
                delivered.frames += 1;
                delivered.bytes += frame.bytes.len();
            }
        }
        delivered
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }
}

const SENDERS: usize = 3;

/// Which sender's which frame this is.
fn numbers(bytes: &[u8]) -> (usize, u64) {
    let number = u64::from_be_bytes(*bytes[14..].first_chunk().expect("a number"));
    (usize::from(bytes[11]), number)
}

fn numbered(to: MacAddress, sender: usize, number: u64) -> Vec<u8> {
    let mut bytes = frame(to, mac(u16::try_from(sender).expect("few")), "");
    bytes.extend(number.to_be_bytes());
    bytes
}

/// Sends and floods from three threads, while a fourth connects, reconfigures and disconnects ports.
#[test]
fn ports_come_and_go_while_others_send_and_the_counts_balance() {
    let switch = Switch::builder("churn").ports(16).build();
    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let connection = switch
                .connect(Careful::default(), PortSettings::new(format!("sender {sender}")))
                .expect("a port");
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let (mut batch, mut number) = (Batch::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..32 {
                        number += 1;
                        let to = match number % 3 {
                            0 => MacAddress::BROADCAST,
                            1 => mac(u16::try_from((sender + 1) % SENDERS).expect("few")),
                            _ => mac(100 + u16::try_from(number % 8).expect("few")),
                        };
                        batch.push(&numbered(to, sender, number), Offload::NONE).expect("room");
                    }
                    connection.send(&mut batch);
                }
            })
        })
        .collect();
    let mut ports = Vec::new();
    let wanted = if std::env::var_os("VMBUS_LONG").is_some() { 100_000_000 } else { 20_000 };
    let enough = || switch.statistics().sent.frames > wanted;
    for round in (0..50_000_u16).cycle() {
        if round % 2000 == 1999 && enough() {
            break;
        }
        let settings = PortSettings {
            vlan: VlanMode::Access(if round % 5 == 0 { 9 } else { 0 }),
            senders: if round % 3 == 0 { Senders::Only(vec![mac(100 + round % 8)]) } else { Senders::Any },
            mirror: match round % 11 {
                0 => Mirror::Destination,
                1 => Mirror::Source(Mirrored::Both),
                _ => Mirror::Off,
            },
            ..PortSettings::new("coming and going")
        };
        if ports.len() < 8 {
            match switch.connect(Careful::default(), settings) {
                Ok(port) => ports.push(port),
                Err(ConnectError::Address { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        } else if round % 2 == 0 {
            let _ = ports[usize::from(round) % 8].reconfigure(settings);
        } else {
            ports.swap_remove(usize::from(round) % 8);
        }
    }
    stop.store(true, Ordering::Relaxed);
    senders.into_iter().for_each(|sender| sender.join().expect("no panic"));
    drop(ports);
    assert_eq!((switch.ports().len(), switch.addresses().len()), (0, 0));
    let all = switch.statistics();
    assert_eq!(all.sent.frames, all.forwarded + all.dropped_sent.total(), "{all:?}");
    assert_eq!(all.copies, all.delivered.frames + all.dropped_received.total(), "{all:?}");
    assert!(all.delivered.frames > 0 && all.dropped_received.of(DropReason::Full) > 0, "{all:?}");
}

/// Sends again what it gets, at the other end of a cable.
#[derive(Default)]
struct Plug(RwLock<Option<Connection>>);

impl Port for Plug {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        let mut batch = Batch::new();
        frames.iter().for_each(|frame| batch.push(frame.bytes, frame.offload).expect("room"));
        if let Some(other_end) = &*self.0.read().expect("no panic") {
            other_end.send(&mut batch);
        }
        Delivered::all(frames)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all()
    }
}

#[test]
fn a_circle_of_cables_between_two_switches_comes_to_an_end() {
    let worlds = [World::new(), World::new()];
    let plugs: [_; 4] = std::array::from_fn(|_| Arc::new(Plug::default()));
    let connections: Vec<_> = (0..4)
        .map(|end| {
            worlds[end % 2]
                .switch
                .connect(Arc::clone(&plugs[end]), PortSettings::new("plug"))
                .expect("a port")
        })
        .collect();
    for (end, connection) in connections.into_iter().enumerate() {
        *plugs[end ^ 1].0.write().expect("no panic") = Some(connection);
    }
    let station = worlds[0].port("station");
    station.send(&frame(MacAddress::BROADCAST, mac(1), "round and round"));
    let looped: u64 =
        worlds.iter().map(|world| world.switch.statistics().dropped_sent.of(DropReason::Loop)).sum();
    assert!(looped > 0);
    worlds.iter().for_each(World::assert_balance);
    plugs.iter().for_each(|plug| drop(plug.0.write().expect("no panic").take()));
}

/// A port whose end is noticed by another port of the same switch.
struct LastWords(Switch, Arc<AtomicU64>);

impl Drop for LastWords {
    fn drop(&mut self) {
        self.1.fetch_add(1 + self.0.ports().len() as u64, Ordering::Relaxed);
    }
}

impl Port for LastWords {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        Delivered::all(frames)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all()
    }
}

#[test]
fn a_port_may_use_the_switch_while_it_goes() {
    let world = World::new();
    let ends = Arc::new(AtomicU64::new(0));
    let owner = PortSettings { senders: Senders::Only(vec![mac(1)]), ..PortSettings::new("owner") };
    let _owner = world.port_with(owner.clone());
    let port = || LastWords(world.switch.clone(), Arc::clone(&ends));
    assert!(world.switch.connect(port(), owner).is_err(), "the address is another's");
    assert_eq!(ends.load(Ordering::Relaxed), 2);
    drop(world.switch.connect(port(), PortSettings::new("guest")).expect("a port"));
    assert_eq!(ends.load(Ordering::Relaxed), 4);
}
