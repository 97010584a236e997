//! What process partitions can do beyond messages and signals: names, memory domains, reasons, real processes.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test that fails may panic"
)]

mod common;

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{GuestSide, RootSide, attach_all, wait_readable};
use vmbus_core::memory::SharedMemory;
use vmbus_partition::doorbell::BellKind;
use vmbus_partition::{
    AttachLimits, Attaching, FromGuest, FromRoot, GuestEnd, GuestOptions, ListenError, Listener, Refusal,
    RefusedWhat, attach,
};

#[test]
fn memory_of_another_domain_is_a_file_of_its_own_and_known_before_a_message_speaks_of_it() {
    for (root, guest) in [common::over_socket(), common::in_process()] {
        let private = guest.allocate(0, 4096).unwrap();
        let shared = guest.allocate(5, 8192).unwrap();
        assert_eq!((private.domain(), shared.domain()), (0, 5));
        assert_ne!(private.mapping().file().size(), 0);
        shared.mapping().write(100, b"of domain five");
        guest.post(4, b"look there").unwrap();

        let mut seen = Vec::new();
        while seen.len() < 2 {
            if let Some(event) = root.receive().unwrap() {
                seen.push(event);
            }
        }
        assert_eq!(seen[0], FromGuest::MemoryChanged);
        assert!(matches!(seen[1], FromGuest::Message { .. }));
        let memory = root.memory();
        let region = memory.regions().iter().find(|region| region.domain == 5).unwrap();
        assert_eq!(region.gpa, shared.gpa());
        let mut bytes = [0; 14];
        memory.span(shared.gpa(), 8192).unwrap().read(100, &mut bytes).unwrap();
        assert_eq!(&bytes, b"of domain five");
    }
}

#[test]
fn a_domain_is_given_up_when_nobody_uses_it() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guest = std::thread::spawn(move || attach::attach(theirs, &common::options()).unwrap());
    let root = attach_all(Attaching::new(ours, "none", 1, AttachLimits::default()).unwrap()).unwrap();
    let (guest, mut root) = (guest.join().unwrap(), RootSide::new(root));
    let pages = guest.allocate(3, 4096).unwrap();
    assert!(guest.release_domain(3).is_err());
    root.look().unwrap();
    let held = root.end.memory().span(pages.gpa(), 4096).unwrap();
    drop(pages);
    guest.release_domain(3).unwrap();
    assert!(guest.release_domain(3).is_err() && guest.release_domain(0).is_err());
    root.look().unwrap();
    assert_eq!(root.events, [FromGuest::MemoryChanged, FromGuest::MemoryChanged]);
    assert_eq!(root.end.memory().regions().len(), 1);
    held.write(0, b"still there for who uses it").unwrap();
    assert_eq!(guest.allocate(3, 4096).unwrap().domain(), 3, "it can come back");
}

#[test]
fn a_reason_comes_before_the_message_that_refuses() {
    for (root, guest) in [common::over_socket(), common::in_process()] {
        let mut guest = GuestSide::new(guest);
        let refusal =
            Refusal { what: RefusedWhat::Open(7), code: 0xc000_0022, reason: "not on Sundays".into() };
        root.refuse(&refusal).unwrap();
        root.deliver(0, 2, b"open result").unwrap();
        let first = loop {
            if let Some(event) = guest.end.receive().unwrap() {
                break event;
            }
        };
        assert_eq!(first, FromRoot::Refused(refusal));
        guest.wait(|side| side.messages.len() == 1).unwrap();
    }
}

#[test]
fn names_ids_and_credentials_are_known() {
    let (root, guest) = common::over_socket();
    let credentials = root.info().credentials.unwrap();
    assert_eq!(credentials.pid, std::process::id() as i32);
    assert_eq!((root.info().extended, guest.info().id), (true, 7));
    assert!(root.peer_process().is_some());
}

#[test]
fn fewer_workers_may_be_granted_than_wanted() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guest = std::thread::spawn(move || attach::attach(theirs, &common::options()).unwrap());
    let limits = AttachLimits { workers: 2, ..AttachLimits::default() };
    let mut root = RootSide::new(attach_all(Attaching::new(ours, "none", 1, limits).unwrap()).unwrap());
    let guest = guest.join().unwrap();
    assert_eq!((root.end.info().workers, guest.info().workers), (2, 2));
    guest.signal(0x2000 | 9 | 1 << 16);
    // A worker that was not granted is reached by a frame, and so is what is no channel.
    guest.signal(0x2000 | 10 | 4 << 16);
    guest.signal(0x0002);
    root.wait(|side| side.signals.len() == 3).unwrap();
    assert_eq!(root.signals, [9, 10, 2]);
}

#[test]
fn a_trusted_guest_may_have_eventfds_for_bells() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guest = std::thread::spawn(move || attach::attach(theirs, &common::options()).unwrap());
    let limits = AttachLimits { bells: BellKind::Event, ..AttachLimits::default() };
    let root = attach_all(Attaching::new(ours, "none", 1, limits).unwrap()).unwrap();
    let guest = guest.join().unwrap();
    assert!(!guest.arm(2));
    root.signal(2, 77);
    assert!(common::is_readable(guest.vp_bell(2).unwrap()));
    guest.clear_bell(2);
    assert!(!common::is_readable(guest.vp_bell(2).unwrap()));
}

#[test]
fn a_sleeper_is_rung_once_and_a_waking_one_never() {
    for (root, guest) in [common::over_socket(), common::in_process()] {
        guest.signal(0x2001);
        guest.signal(0x2002);
        assert!(!common::is_readable(root.worker_bell(0).unwrap()), "rung although nobody sleeps");
        assert!(root.arm(0), "flags are set already");
        root.disarm(0);
        root.take_flags(0, &mut |_| ());
        assert!(!root.arm(0));
        for flag in 1..100 {
            guest.signal(0x2000 | flag);
        }
        assert!(common::is_readable(root.worker_bell(0).unwrap()));
        root.disarm(0);
        root.clear_bell(0);
        assert!(!common::is_readable(root.worker_bell(0).unwrap()));
        let mut taken = 0;
        root.take_flags(0, &mut |_| taken += 1);
        assert_eq!(taken, 99);
    }
}

#[test]
fn pages_are_zeroed_contiguous_and_come_back() {
    let (_root, guest) = common::in_process();
    let all = guest.allocate(0, 1 << 20).unwrap();
    assert!(guest.allocate(0, 1).is_err());
    all.mapping().write(0, &[1; 4096]);
    drop(all);
    let mut parts: Vec<_> = (0..256).map(|_| guest.allocate(0, 4096).unwrap()).collect();
    let mut byte = [1];
    parts[0].mapping().read(5, &mut byte);
    assert_eq!(byte, [0], "the last owner's bytes are still there");
    // Every other page back: no two together, until the rest comes.
    let mut index = 0;
    let kept: Vec<_> = parts
        .extract_if(.., |_| {
            index += 1;
            index % 2 == 0
        })
        .collect();
    drop(parts);
    assert!(guest.allocate(0, 8192).is_err());
    drop(kept);
    let ranges = guest.allocate(0, 1 << 20).unwrap().ranges().unwrap();
    assert_eq!(ranges.page_count(), 256);
}

/// The guest of the next test, in a process of its own: attaches, allocates, and never ends by itself.
#[test]
fn helper_guest_process() {
    let Some(path) = std::env::var_os("VMBUS_TEST_SOCKET") else { return };
    let guest =
        attach::connect(path, &GuestOptions { memory: 1 << 20, ..GuestOptions::named("child") }).unwrap();
    guest.post(4, b"alive").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn the_death_of_a_process_is_noticed_at_once_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.sock");
    let listener = Listener::bind(&path).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_guest_process"])
        .env("VMBUS_TEST_SOCKET", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let stream = loop {
        use std::os::fd::AsFd;
        wait_readable(&[listener.as_fd()], common::PATIENCE);
        if let Some(stream) = listener.accept().unwrap() {
            break stream;
        }
    };
    let mut root = RootSide::new(
        attach_all(Attaching::new(stream, "none", 3, AttachLimits::default()).unwrap()).unwrap(),
    );
    assert_eq!(root.end.info().credentials.unwrap().pid, child.id() as i32);
    root.wait(|side| !side.messages.is_empty()).unwrap();
    assert!(!common::is_readable(root.end.peer_process().unwrap()));
    child.kill().unwrap();
    assert!(wait_readable(&[root.end.peer_process().unwrap()], common::PATIENCE)[0]);
    root.wait(|side| side.events.back() == Some(&FromGuest::HungUp)).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_dead_roots_path_is_taken_over_and_a_living_ones_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.sock");
    // A root that was killed leaves its path behind, as this one does.
    drop(UnixListener::bind(&path).unwrap());
    let living = Listener::bind(&path).unwrap();
    let refused = Listener::bind(&path);
    assert!(matches!(refused, Err(ListenError::InUse(_))), "{refused:?}");
    // The question who lives there was a connection, which is no partition.
    let probe = living.accept().unwrap().expect("the probe");
    let mut attaching = Attaching::new(probe, "none", 1, AttachLimits::default()).unwrap();
    assert!(attaching.advance().is_err());
    drop(living);
    assert!(!path.exists(), "a root that ends in order takes its path along");

    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::bind(&path), Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(matches!(
        Listener::bind(directory.path().join("no/such/root.sock")),
        Err(ListenError::System { .. })
    ));
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        1,
        "a lock file or the like is left behind"
    );
}

#[test]
fn of_many_roots_that_start_at_once_one_wins() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.sock");
    for _ in 0..20 {
        drop(UnixListener::bind(&path).unwrap());
        let winners: Vec<Listener> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..4).map(|_| scope.spawn(|| Listener::bind(&path).ok())).collect();
            starting.into_iter().filter_map(|root| root.join().unwrap()).collect()
        });
        assert_eq!(winners.len(), 1);
        assert!(UnixStream::connect(&path).is_ok());
    }
}

#[test]
fn a_root_that_ends_late_does_not_take_its_successors_path_along() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.sock");
    let late = Listener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let successor = Listener::bind(&path).unwrap();
    drop(late);
    assert!(UnixStream::connect(&path).is_ok());
    drop(successor);
}

#[test]
fn nobody_listening_is_an_error_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let error = attach::connect(directory.path().join("none.sock"), &common::options()).unwrap_err();
    assert!(error.to_string().starts_with("connecting to the root"), "{error}");
}
