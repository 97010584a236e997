//! What the crate leaves alone in the program that links it. The only test of its process.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test that fails may panic")]
#![allow(unsafe_code, reason = "a program that is not Rust's has SIGPIPE at its default")]

mod common;

use nix::sys::signal::{SigHandler, Signal, signal};

/// Signal masks, dispositions and limits, as the kernel has them.
fn state() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let signals =
        status.lines().filter(|line| line.starts_with("Sig") && !line.starts_with("SigQ")).map(str::to_owned);
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    signals.chain(limits.lines().map(str::to_owned)).collect()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn signals_limits_and_descriptors_are_as_they_were() {
    // SAFETY: the default disposition runs no code of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
    let before = (state(), descriptors());
    for _ in 0..3 {
        let ((root, guest), (other_root, other_guest)) = (common::over_socket(), common::in_process());
        guest.post(4, b"message").unwrap();
        assert!(root.receive().unwrap().is_some());
        // The guest dies asleep, and the root rings it: a SIGPIPE would end this test.
        guest.arm(0);
        drop(guest);
        for flag in 1..10 {
            root.signal(0, flag);
            let _ = root.deliver(0, 2, b"anybody there?");
            let _ = root.set_connection_status(1, 0);
        }
        drop(other_root);
        other_guest.signal(0x2001);
        let _ = other_guest.post(4, b"anybody there?");
    }
    assert_eq!((state(), descriptors()), before);
}
