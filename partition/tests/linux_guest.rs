//! A stock Linux kernel attaches by base frames and introduces itself.
#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmbus_core::message::{Direction, Message, VersionResponse};
use vmbus_core::{FeatureFlags, Version};
use vmbus_partition::{AttachLimits, Attaching, FromGuest, Listener, RootEnd};

/// Software emulation on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn stock_linux_asks_for_its_versions_in_turn_and_gives_up_when_told_to_quit() {
    vmbus_tests::require!(LinuxGuest);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.sock");
    let listener = Listener::bind(&path).unwrap();
    let command = Command::new(vmbus_tests::linux_guest_folder().join("boot.sh"))
        .arg(&path)
        .arg("hvt_off")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    let _emulator = Emulator(command.unwrap());
    let deadline = Instant::now() + PATIENCE;

    let stream = loop {
        if let Some(stream) = listener.accept().unwrap() {
            break stream;
        }
        wait(listener.as_fd(), deadline);
    };
    let mut attaching = Attaching::new(stream, "linux", 1, AttachLimits::default()).unwrap();
    let root = loop {
        if let Some(root) = attaching.advance().unwrap() {
            break root;
        }
        wait(attaching.socket(), deadline);
    };
    assert!(!root.info().extended);
    assert_eq!(root.info().name, "linux");
    let memory: u64 = root.memory().regions().iter().map(|region| region.mapping.file().size()).sum();
    assert_eq!(memory, 512 << 20);

    // Each version is refused, so the kernel goes down the ladder: deliveries arrive, and so do its answers.
    let mut asked = Vec::new();
    let mut pinged = None;
    while asked.last() != Some(&Version::Win10Rs3_1.word()) {
        match next(&root, deadline) {
            FromGuest::Message { connection_id, message_type, payload, .. } => {
                assert_eq!((connection_id, message_type), (4, 1));
                let message = Message::parse(&payload, Direction::ToHost, None).unwrap();
                let Message::InitiateContact(contact) = message else {
                    panic!("{message:?} before a version")
                };
                asked.push(contact.version.get());
                let refusal = Message::VersionResponse(VersionResponse::default());
                let refusal = refusal.encode(Version::Iron, FeatureFlags::empty());
                root.deliver(contact.target_vp.get(), contact.target_sint(), &refusal).unwrap();
                pinged = root.memory_written(&[(0x1000, 4096)]);
            }
            FromGuest::HungUp => panic!("the guest left after it had asked for {asked:x?}"),
            _ => {}
        }
    }
    assert_eq!(asked, [0x5_0003, 0x5_0002, 0x5_0001, 0x5_0000]);

    let pong = FromGuest::Pong { arg: pinged.unwrap() };
    while next(&root, deadline) != pong {}

    root.system_quit().unwrap();
    while next(&root, deadline) != FromGuest::HungUp {}
}

fn next(root: &Arc<dyn RootEnd>, deadline: Instant) -> FromGuest {
    loop {
        if let Some(event) = root.receive().unwrap() {
            return event;
        }
        wait(root.socket().unwrap(), deadline);
    }
}

fn wait(descriptor: std::os::fd::BorrowedFd<'_>, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    assert!(!left.is_zero(), "the guest takes too long");
    poll(&mut [PollFd::new(descriptor, PollFlags::POLLIN)], PollTimeout::try_from(left).unwrap()).unwrap();
}
