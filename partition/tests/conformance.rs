//! What every transport must do, once for each: a process partition over a socket, a base VMM, and one in this process.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test that fails may panic"
)]

mod common;

use std::sync::Arc;

use common::{Ends, GuestSide, RootSide};
use vmbus_core::memory::SharedMemory;
use vmbus_partition::{FromGuest, FromRoot, LinkError};

macro_rules! every_transport {
    ($($name:ident),* $(,)?) => {
        mod over_socket { $(#[test] fn $name() { super::$name(super::common::over_socket()); })* }
        mod base_frames { $(#[test] fn $name() { super::$name(super::common::base_frames()); })* }
        mod in_process { $(#[test] fn $name() { super::$name(super::common::in_process()); })* }
    };
}

every_transport! {
    the_root_knows_whom_it_has,
    messages_keep_their_order_both_ways_with_200_pending,
    signals_reach_the_one_they_are_for_and_are_taken_once,
    a_sleeper_never_misses_a_signal,
    memory_is_the_same_on_both_sides,
    the_root_notices_that_the_guest_has_gone,
    the_guest_notices_that_the_root_has_gone,
    what_was_posted_before_the_end_arrives,
    oversized_messages_are_the_callers_fault,
    connection_status_and_requests_arrive,
}

fn the_root_knows_whom_it_has((root, guest): Ends) {
    let info = root.info();
    assert_eq!((info.name.as_str(), info.id), ("tester", 7));
    assert_eq!(info.vps, guest.info().vps);
    assert_eq!(info.workers, guest.info().workers);
}

fn messages_keep_their_order_both_ways_with_200_pending((root, guest): Ends) {
    let (mut root, mut guest) = (RootSide::new(root), GuestSide::new(guest));
    for round in 0..3u8 {
        for number in 0..200u8 {
            guest.end.post(4, &[round, number, 1]).unwrap();
            root.end.deliver(0, 2, &[round, number, 2]).unwrap();
        }
        let (root_thread, guest_thread) = std::thread::scope(|scope| {
            // Who has heard everything stays until it has said everything, too.
            let root =
                scope.spawn(|| root.wait(|side| side.messages.len() == 200 && side.end.flush().unwrap()));
            let guest =
                scope.spawn(|| guest.wait(|side| side.messages.len() == 200 && side.end.flush().unwrap()));
            (root.join().unwrap(), guest.join().unwrap())
        });
        root_thread.unwrap();
        guest_thread.unwrap();
        for number in 0..200u8 {
            assert_eq!(root.messages.pop_front().unwrap(), (4, vec![round, number, 1]));
            assert_eq!(guest.messages.pop_front().unwrap(), [round, number, 2]);
        }
    }
}

fn signals_reach_the_one_they_are_for_and_are_taken_once((root, guest): Ends) {
    let (mut root, mut guest) = (RootSide::new(root), GuestSide::new(guest));
    for flag in [1, 63, 64, 2047] {
        guest.end.signal(0x2000 | flag);
    }
    root.wait(|side| side.signals.len() == 4).unwrap();
    root.signals.make_contiguous().sort_unstable();
    assert_eq!(root.signals, [1, 63, 64, 2047]);
    root.look().unwrap();
    assert_eq!(root.signals.len(), 4, "a signal was seen twice");

    root.end.signal(0, 5);
    root.end.signal(1, 2047);
    guest.wait(|side| side.signals.len() == 2).unwrap();
    guest.signals.make_contiguous().sort_unstable();
    assert_eq!(guest.signals, [(0, 5), (1, 2047)]);

    // What does not exist is ignored, and so is a flag that no area has.
    root.end.signal(999, 5);
    root.end.signal(0, 2048);
    root.end.signal(0, 6);
    guest.wait(|side| side.signals.len() == 3).unwrap();
    assert_eq!(guest.signals[2], (0, 6));
}

fn a_sleeper_never_misses_a_signal((root, guest): Ends) {
    let (mut root, mut guest) = (RootSide::new(root), GuestSide::new(guest));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..2000u32 {
                root.wait(|side| !side.signals.is_empty()).unwrap();
                assert_eq!(u32::from(root.signals.pop_front().unwrap()), number % 2000 + 1);
                root.end.signal(number % 2, (number % 2000 + 1) as u16);
            }
        });
        for number in 0..2000u32 {
            guest.end.signal(0x2000 | (number % 2000 + 1));
            guest.wait(|side| !side.signals.is_empty()).unwrap();
            assert_eq!(guest.signals.pop_front().unwrap(), (number % 2, (number % 2000 + 1) as u16));
        }
    });
}

fn memory_is_the_same_on_both_sides((root, guest): Ends) {
    let pages = guest.allocate(0, 3 * 4096).unwrap();
    pages.mapping().write(5000, b"from the guest");
    let seen = root.memory().span(pages.gpa(), pages.len()).unwrap();
    let mut bytes = [0; 14];
    seen.read(5000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    seen.write(0, b"from the root").unwrap();
    let mut bytes = [0; 13];
    pages.mapping().read(0, &mut bytes);
    assert_eq!(&bytes, b"from the root");
    let ring = root.memory().ring(pages.pfns()).unwrap();
    assert_eq!(vmbus_ringbuf::RingMemory::data_size(&ring), 8192);
}

fn the_root_notices_that_the_guest_has_gone((root, guest): Ends) {
    let mut root = RootSide::new(root);
    root.look().unwrap();
    let leaving = std::thread::spawn(move || drop(guest));
    root.wait(|side| side.events.back() == Some(&FromGuest::HungUp)).unwrap();
    leaving.join().unwrap();
    assert_eq!(root.end.receive().unwrap(), None, "nothing comes after the end");
    // What is sent to the dead is lost, and no signal kills us.
    for _ in 0..100 {
        root.end.signal(0, 1);
        let _ = root.end.deliver(0, 2, &[1]);
    }
}

fn the_guest_notices_that_the_root_has_gone((root, guest): Ends) {
    let mut guest = GuestSide::new(guest);
    drop(root);
    guest.wait(|side| side.events.back() == Some(&FromRoot::HungUp)).unwrap();
    assert_eq!(guest.end.receive().unwrap(), None);
}

fn what_was_posted_before_the_end_arrives((root, guest): Ends) {
    for number in 0..10u8 {
        guest.post(1, &[number]).unwrap();
    }
    drop(guest);
    let mut root = RootSide::new(root);
    root.wait(|side| side.events.back() == Some(&FromGuest::HungUp)).unwrap();
    assert_eq!(root.messages.len(), 10);
}

fn oversized_messages_are_the_callers_fault((root, _guest): Ends) {
    assert!(matches!(root.deliver(0, 2, &[0; 241]), Err(LinkError::TooLong { len: 241 })));
    assert!(root.deliver(0, 2, &[0; 240]).is_ok());
}

fn connection_status_and_requests_arrive((root, guest): Ends) {
    let mut guest = GuestSide::new(guest);
    root.set_connection_status(4, 18).unwrap();
    root.system_reset().unwrap();
    root.system_quit().unwrap();
    let wanted = [
        FromRoot::ConnectionStatus { connection_id: 4, status: 18 },
        FromRoot::SystemReset,
        FromRoot::SystemQuit,
    ];
    guest.wait(|side| side.events.len() >= wanted.len()).unwrap();
    assert_eq!(guest.events, wanted);
    let _: Arc<dyn vmbus_partition::GuestEnd> = guest.end;
}
