//! Any frames with any offloads into a switch whose ports are treated in any way, also while frames flow.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use vmbus_vsp::network::switch::{
    Batch, Capabilities, Checksum, Clock, Connection, Delivered, Frames, HeaderChecksum, IpVersion,
    Isolation, MacAddress, Mirror, Mirrored, Offload, Permission, Port, PortSettings, Rate, Segmentation,
    Senders, Switch, Vlan, VlanMode,
};

/// What a port got, since one last looked.
#[derive(Default)]
struct Inbox {
    takes: Capabilities,
    frames: Mutex<Vec<(Vec<u8>, Offload)>>,
}

impl Port for Inbox {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        let mut inbox = self.frames.lock().expect("no panic");
        inbox.extend(frames.iter().map(|frame| (frame.bytes.to_vec(), frame.offload)));
        // A port that says anything about what it took: the counts must balance all the same.
        let lie = frames.bytes() % 7;
        Delivered { frames: frames.len() + lie, filtered: lie, ..Delivered::all(frames) }
    }

    fn capabilities(&self) -> Capabilities {
        self.takes
    }
}

struct Plugged {
    connection: Connection,
    inbox: Arc<Inbox>,
}

/// Connects, reconfigures, sends and disconnects as the bytes say. Asserts that counts balance, that nobody gets a frame
/// that he may not have, and that he gets it as he takes it.
pub fn run(bytes: &[u8]) {
    let _ = play(&mut Unstructured::new(bytes));
}

fn play(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let time = Arc::new(Mutex::new(Duration::ZERO));
    let clock = Arc::clone(&time);
    let clock = Clock::new(move || *clock.lock().expect("no panic"));
    let switch = Switch::builder("fuzzed").clock(clock).addresses(16).ports(6).build();
    let mut ports: Vec<Plugged> = Vec::new();
    while !input.is_empty() {
        match input.int_in_range(0..=9)? {
            0 | 1 => {
                let inbox = Arc::new(Inbox {
                    takes: Capabilities::from_bits_truncate(u8::arbitrary(input)?),
                    ..Inbox::default()
                });
                if let Ok(connection) = switch.connect(Arc::clone(&inbox), settings(input)?) {
                    ports.push(Plugged { connection, inbox });
                }
            }
            2 if !ports.is_empty() => drop(ports.swap_remove(input.choose_index(ports.len())?)),
            3 if !ports.is_empty() => {
                let _ = ports[input.choose_index(ports.len())?].connection.reconfigure(settings(input)?);
            }
            4 => *time.lock().expect("no panic") += Duration::from_secs(u64::from(u16::arbitrary(input)?)),
            _ if !ports.is_empty() => {
                let mut batch = Batch::new();
                for _ in 0..input.int_in_range(1..=8)? {
                    batch.push(&frame(input)?, offload(input)?).expect("a short frame");
                }
                let sender = input.choose_index(ports.len())?;
                ports[sender].connection.send(&mut batch);
                look(&ports, sender);
            }
            _ => {}
        }
        assert!(switch.addresses().iter().filter(|known| known.idle.is_some()).count() <= 16);
        balance(&switch);
    }
    drop(ports);
    balance(&switch);
    assert!(switch.ports().is_empty() && switch.addresses().is_empty());
    Ok(())
}

fn balance(switch: &Switch) {
    let all = switch.statistics();
    assert_eq!(all.sent.frames, all.forwarded + all.dropped_sent.total());
    assert_eq!(all.copies, all.delivered.frames + all.dropped_received.total());
}

/// What each port got from this sender.
fn look(ports: &[Plugged], sender: usize) {
    let from = ports[sender].connection.settings();
    for (number, port) in ports.iter().enumerate() {
        let got = std::mem::take(&mut *port.inbox.frames.lock().expect("no panic"));
        let settings = port.connection.settings();
        if !got.is_empty() && settings.mirror != Mirror::Destination {
            assert_ne!(number, sender, "a frame came back to its sender");
            assert_ne!(from.mirror, Mirror::Destination, "a mirror has sent");
            assert!(from.isolation.permits(settings.isolation), "an isolated port was reached");
        }
        for (bytes, offload) in got {
            let source = MacAddress(*bytes[6..].first_chunk().expect("a header"));
            match &from.senders {
                _ if settings.mirror == Mirror::Destination => {}
                Senders::Any => assert!(source.is_station()),
                Senders::Only(own) => assert!(own.contains(&source), "{source} got past the guard"),
            }
            as_it_is_taken(&settings, port.inbox.takes, &bytes, offload);
        }
    }
}

fn as_it_is_taken(settings: &PortSettings, takes: Capabilities, bytes: &[u8], offload: Offload) {
    assert_ne!(offload.header, HeaderChecksum::Missing);
    assert!(offload.vlan.is_none() || takes.contains(Capabilities::VLAN));
    match offload.segmentation {
        Some(Segmentation { ip: IpVersion::V4, .. }) => {
            assert!(takes.contains(Capabilities::SEGMENTATION_V4))
        }
        Some(Segmentation { ip: IpVersion::V6, .. }) => {
            assert!(takes.contains(Capabilities::SEGMENTATION_V6))
        }
        None => assert!(!offload.checksum.is_missing() || takes.contains(Capabilities::CHECKSUM)),
    }
    if let Checksum::Missing { start, field } = offload.checksum {
        assert!(
            usize::from(start) + usize::from(field) + 2 <= bytes.len(),
            "a checksum outside of its frame"
        );
    }
    let tags = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]];
    let inner = |at: usize| bytes.get(at..at + 2).is_some_and(|kind| tags.iter().any(|tag| tag == kind));
    match (&settings.mirror, &settings.vlan) {
        (Mirror::Off | Mirror::Source(_), VlanMode::Access(_)) => {
            assert!(!inner(12) && offload.vlan.is_none(), "an untagged port got a tag");
        }
        (Mirror::Destination, _) | (_, VlanMode::Trunk { .. }) => {
            assert!(!inner(12) || (!inner(16) && offload.vlan.is_none()), "two tags");
        }
    }
}

fn settings(input: &mut Unstructured<'_>) -> arbitrary::Result<PortSettings> {
    let permission = |input: &mut Unstructured<'_>| {
        Ok(if bool::arbitrary(input)? { Permission::Denied } else { Permission::Allowed })
    };
    let rate = |input: &mut Unstructured<'_>| -> arbitrary::Result<_> {
        let limited = input.ratio(1, 4)?;
        let (per_second, burst) =
            if limited { (u16::arbitrary(input)?, u8::arbitrary(input)?) } else { (0, 0) };
        Ok(limited.then_some(Rate { per_second: per_second.into(), burst: burst.into() }))
    };
    Ok(PortSettings {
        vlan: match input.int_in_range(0..=4)? {
            0 => VlanMode::Access(input.int_in_range(0..=3)?),
            1 => VlanMode::Trunk {
                native: Option::arbitrary(input)?,
                tagged: (0..input.int_in_range(0..=5_u16)?).collect(),
            },
            _ => VlanMode::default(),
        },
        isolation: match input.int_in_range(0..=5)? {
            0 => Isolation::Private,
            1 => Isolation::Community(input.int_in_range(0..=1)?),
            _ => Isolation::None,
        },
        senders: match input.int_in_range(0..=3)? {
            0 => Senders::Only(vec![station(input)?]),
            _ => Senders::Any,
        },
        dhcp_server: permission(input)?,
        router: permission(input)?,
        flood_limit: rate(input)?,
        send_limit: rate(input)?,
        receive_limit: rate(input)?,
        mirror: match input.int_in_range(0..=7)? {
            0 => Mirror::Destination,
            1 => Mirror::Source(Mirrored::Sent),
            2 => Mirror::Source(Mirrored::Received),
            3 => Mirror::Source(Mirrored::Both),
            _ => Mirror::Off,
        },
        addresses: input.int_in_range(0..=8)?,
        ..PortSettings::new("fuzzed")
    })
}

fn station(input: &mut Unstructured<'_>) -> arbitrary::Result<MacAddress> {
    Ok(MacAddress([2, 0, 0, 0, 0, input.int_in_range(0..=7)?]))
}

/// Headers that lead somewhere, then anything.
fn frame(input: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
    let mut frame = Vec::new();
    frame.extend(if input.ratio(1, 4)? { [0xff; 6] } else { station(input)?.0 });
    frame.extend(station(input)?.0);
    let heads: [&[u8]; 8] = [
        &[],
        &[0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2],
        &[0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 67],
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64],
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 58, 255],
        &[0x81, 0x00, 0, 1, 0x08, 0x00],
        &[0x81, 0x00, 0, 2, 0x81, 0x00],
        &[0, 100, 0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd, 0x60],
    ];
    frame.extend(heads[input.choose_index(heads.len())?]);
    if bool::arbitrary(input)? {
        // A TCP header behind either IP.
        let at = if bool::arbitrary(input)? { 34 } else { 54 };
        frame.resize(at + 20, 0);
        frame[at + 12] = 0x50;
        frame.resize(at + 20 + usize::from(u16::arbitrary(input)? % 4096), 7);
    }
    let rest = input.int_in_range(0..=40)?;
    frame.extend(input.bytes(rest.min(input.len()))?);
    if input.ratio(1, 16)? {
        frame.truncate(input.choose_index(frame.len() + 1)?);
    }
    Ok(frame)
}

fn offload(input: &mut Unstructured<'_>) -> arbitrary::Result<Offload> {
    let offset = |input: &mut Unstructured<'_>| match input.int_in_range(0..=3)? {
        0 => u16::arbitrary(input),
        1 => Ok(54),
        _ => Ok(34),
    };
    Ok(Offload {
        vlan: match input.int_in_range(0..=4)? {
            0 => Some(Vlan {
                priority: u8::arbitrary(input)?,
                drop_eligible: bool::arbitrary(input)?,
                id: input.int_in_range(0..=5)?,
            }),
            1 => Some(Vlan { priority: 0, drop_eligible: false, id: u16::arbitrary(input)? }),
            _ => None,
        },
        header: *input.choose(&[HeaderChecksum::Unknown, HeaderChecksum::Valid, HeaderChecksum::Missing])?,
        checksum: match input.int_in_range(0..=3)? {
            0 => Checksum::Valid,
            1 => Checksum::Missing { start: offset(input)?, field: *input.choose(&[6, 16, u16::MAX])? },
            _ => Checksum::Unknown,
        },
        segmentation: if input.ratio(1, 3)? {
            Some(Segmentation {
                segment_size: *input.choose(&[0, 48, 100, 1460, u16::MAX])?,
                tcp_offset: offset(input)?,
                ip: if bool::arbitrary(input)? { IpVersion::V4 } else { IpVersion::V6 },
            })
        } else {
            None
        },
        hash: Option::arbitrary(input)?,
    })
}
