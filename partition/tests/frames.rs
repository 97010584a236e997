//! Frames: each survives its own bytes, and no bytes do any harm.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that fails may panic")]

use proptest::collection::vec;
use proptest::prelude::*;
use vmbus_partition::frame::{GiveFrame, GuestFrame, Hello, MemoryRange, RefusedWhat, RootFrame, frame_len};

fn ranges() -> impl Strategy<Value = Vec<MemoryRange>> {
    vec(any::<(u64, u64, u64)>(), 0..=64).prop_map(|ranges| {
        ranges.into_iter().map(|(gpa, size, fd_offset)| MemoryRange { gpa, size, fd_offset }).collect()
    })
}

/// Every kind of frame, with the given values in it.
fn guest_frames<'a>(
    regions: &[MemoryRange],
    data: &'a [u8],
    name: &'a str,
    [a, b, c]: [u32; 3],
) -> Vec<GuestFrame<'a>> {
    let (long, range) = (u64::from(a) << 32 | u64::from(b), regions.first().copied());
    let range = range.unwrap_or(MemoryRange { gpa: long, size: 1, fd_offset: 2 });
    vec![
        GuestFrame::Hello(Hello { num_vps: a, tsc_hz: long, ref_time: !long, regions: regions.to_vec() }),
        GuestFrame::PostMessage { vp: a, connection_id: b, message_type: c, data },
        GuestFrame::SignalEvent { vp: a, connection_id: b, flag: c },
        GuestFrame::MsrWrite { vp: a, msr: b, value: long },
        GuestFrame::Reset,
        GuestFrame::Crash { vp: a, parameters: [long, 1, 2, 3, 4], control: !long },
        GuestFrame::Pong { vp: a, arg: b },
        GuestFrame::ExtOffer { features: long, version: c, name },
        GuestFrame::MemoryAdd { range, domain: a },
        GuestFrame::MemoryRemove { range, domain: b },
        GuestFrame::Give(GiveFrame { id: b, len: long }),
        GuestFrame::Ignored,
    ]
}

fn root_frames<'a>(
    data: &'a [u8],
    dirty: &'a [u8],
    text: &'a str,
    [a, b, c]: [u32; 3],
) -> Vec<RootFrame<'a>> {
    let (features, sint, short) = (u64::from(a) << 32 | u64::from(b), (b % 16) as u8, c as u16);
    let refused =
        [RefusedWhat::Attach, RefusedWhat::Open(a), RefusedWhat::Share(b), RefusedWhat::Other(9, c)];
    let mut frames = vec![
        RootFrame::DeliverMessage { vp: a, sint, message_type: c, data },
        RootFrame::SetEventFlag { vp: a, sint, flag: short % 2048 },
        RootFrame::MemDirtyRaw(dirty),
        RootFrame::SetConnStatus { connection_id: a, status: b },
        RootFrame::Ping { vp: a, arg: b },
        RootFrame::SystemReset,
        RootFrame::SystemQuit,
        RootFrame::ExtAccept { features, partition: c, workers: short, vps: !short },
        RootFrame::MemoryAdd { range: MemoryRange { gpa: features, size: 1, fd_offset: 2 }, domain: b },
        RootFrame::Give(GiveFrame { id: a, len: features }),
        RootFrame::Ignored,
    ];
    frames.extend(refused.map(|what| RootFrame::Refused { what, code: b, reason: text }));
    frames
}

proptest! {
    #[test]
    fn frames_survive_their_bytes(
        regions in ranges(),
        data in vec(any::<u8>(), 0..=240),
        dirty in vec(any::<[u8; 16]>(), 0..10),
        name in "\\PC{0,16}",
        words: [u32; 3],
    ) {
        for frame in guest_frames(&regions, &data, &name, words) {
            let mut bytes = Vec::new();
            frame.emit(&mut bytes);
            prop_assert_eq!(frame_len(&bytes), Ok(Some(bytes.len())));
            prop_assert_eq!(GuestFrame::parse(&bytes), Ok(frame));
        }
        for frame in root_frames(&data, &dirty.concat(), &name, words) {
            let mut bytes = Vec::new();
            frame.emit(&mut bytes);
            prop_assert_eq!(frame_len(&bytes), Ok(Some(bytes.len())));
            prop_assert_eq!(RootFrame::parse(&bytes), Ok(frame));
        }
    }

    /// Any bytes, with a header that makes them one frame of a known or unknown type, are a frame or an error.
    #[test]
    fn no_bytes_do_any_harm(
        kind in prop_oneof![0u32..0x10, 0x80u32..0x90, 0x4000_0000u32..0x4000_0004, 0x4000_0080u32..0x4000_0084, any::<u32>()],
        mut bytes in vec(any::<u8>(), 16..400),
        honest: bool,
    ) {
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        if honest {
            let len = bytes.len() as u32 - 16;
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
        }
        let _ = frame_len(&bytes);
        for end in [bytes.len(), bytes.len() - 1, 16, 15, 0] {
            let _ = GuestFrame::parse(&bytes[..end]);
            let _ = RootFrame::parse(&bytes[..end]);
        }
    }
}

/// The bytes that QEMU's device sends and takes, written out.
#[test]
fn base_frames_are_what_the_device_speaks() {
    let mut bytes = Vec::new();
    let regions = vec![MemoryRange { gpa: 0, size: 0x2000_0000, fd_offset: 0 }];
    GuestFrame::Hello(Hello { num_vps: 1, tsc_hz: 2, ref_time: 3, regions }).emit(&mut bytes);
    let hello = [
        &[1, 0, 0, 0, 56, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        b"HVAT",
        &[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
        &[2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(bytes, hello.concat());

    bytes.clear();
    RootFrame::DeliverMessage { vp: 3, sint: 2, message_type: 1, data: &[9, 8] }.emit(&mut bytes);
    let deliver = [
        [0x81, 0, 0, 0, 18, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0].as_slice(),
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 8],
    ];
    assert_eq!(bytes, deliver.concat());

    bytes.clear();
    RootFrame::SetEventFlag { vp: 1, sint: 2, flag: 0x102 }.emit(&mut bytes);
    assert_eq!(bytes, [0x82, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0]);

    bytes.clear();
    RootFrame::MemDirty(&[(0x1000, 0x20)]).emit(&mut bytes);
    let dirty = [
        [0x83, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].as_slice(),
        &[0, 0x10, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(bytes, dirty.concat());
}

#[test]
fn many_dirty_ranges_are_split_into_frames_that_are_not_too_long() {
    let ranges: Vec<(u64, u64)> = (0..10_000).map(|page| (page * 8192, 4096)).collect();
    let mut bytes = Vec::new();
    RootFrame::MemDirty(&ranges).emit(&mut bytes);
    let (mut rest, mut seen) = (bytes.as_slice(), 0);
    while let Some(len) = frame_len(rest).unwrap() {
        let RootFrame::MemDirtyRaw(records) = RootFrame::parse(&rest[..len]).unwrap() else { panic!() };
        seen += records.len() / 16;
        rest = &rest[len..];
    }
    assert_eq!(seen, 10_000);
}

#[test]
fn a_long_reason_is_cut_at_a_character() {
    let mut bytes = Vec::new();
    let reason = "ß".repeat(1000);
    RootFrame::Refused { what: RefusedWhat::Attach, code: 0, reason: &reason }.emit(&mut bytes);
    let RootFrame::Refused { reason, .. } = RootFrame::parse(&bytes).unwrap() else { panic!() };
    assert_eq!(reason, "ß".repeat(512));
}
