//! Partitions that lie, flood, stall and scribble: the root stays up, says whose fault it was, and never waits.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test that fails may panic"
)]

mod common;

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::base_vmm::{BaseVmm, frame, send_with};
use common::{RootSide, attach_all, wait_readable};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{ftruncate, pipe};
use vmbus_core::memory::SharedMemory;
use vmbus_partition::frame::{FrameError, GuestFrame, Hello, MemoryRange, RootFrame, frame_len};
use vmbus_partition::{
    AttachLimits, Attaching, FromGuest, FromRoot, GpaError, GuestEnd, GuestOptions, LinkError, Mapping,
    Memfd, MemoryError, RootEnd, attach,
};

const SIZE: u64 = 1 << 20;

fn range(gpa: u64, size: u64, fd_offset: u64) -> MemoryRange {
    MemoryRange { gpa, size, fd_offset }
}

fn hello(num_vps: u32, regions: Vec<MemoryRange>) -> Vec<u8> {
    frame(&GuestFrame::Hello(Hello { num_vps, tsc_hz: 0, ref_time: 0, regions }))
}

fn good_hello() -> Vec<u8> {
    hello(1, vec![range(0, SIZE, 0)])
}

/// What becomes of a partition that sends this, each piece with its descriptors, and then hangs up.
fn outcome(pieces: &[(&[u8], &[BorrowedFd<'_>])]) -> Result<Arc<dyn RootEnd>, LinkError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    for (bytes, descriptors) in pieces {
        send_with(&theirs, bytes, descriptors);
    }
    drop(theirs);
    attach_all(Attaching::new(ours, "liar", 1, AttachLimits::default()).unwrap())
}

fn refusal(pieces: &[(&[u8], &[BorrowedFd<'_>])]) -> LinkError {
    match outcome(pieces) {
        Ok(_) => panic!("attached"),
        Err(error) => error,
    }
}

#[test]
fn a_hello_that_lies_is_refused() {
    let file = Memfd::new("ram", SIZE).unwrap();
    let reset = frame(&GuestFrame::Reset);
    let with = |bytes: &[u8]| refusal(&[(bytes, &[file.as_fd()]), (&reset, &[])]);

    for regions in [
        vec![range(0, SIZE + 4096, 0)],
        vec![range(0, SIZE, 4096)],
        vec![range(0, SIZE, u64::MAX - 4095)],
        vec![range(0, 100, 0)],
        vec![range(0, 0, 0)],
    ] {
        assert!(matches!(with(&hello(1, regions)), LinkError::Memory(MemoryError::OutsideFile { .. })));
    }
    for regions in [
        vec![range(0, 8192, 0), range(4096, 8192, 8192)],
        vec![range(u64::MAX - 4095, 8192, 0)],
        vec![range(100, 4096, 0)],
    ] {
        assert!(matches!(with(&hello(1, regions)), LinkError::Gpa(GpaError::BadRegion { .. })));
    }
    for vps in [0, 257, u32::MAX] {
        assert!(matches!(with(&hello(vps, vec![range(0, SIZE, 0)])), LinkError::Protocol(_)));
    }
    let many = (0..65).map(|index| range(index << 20, 4096, 0)).collect();
    assert!(matches!(with(&hello(1, many)), LinkError::Frame(FrameError::Length { .. })));
    let sum = vec![range(0, u64::MAX, 0), range(0, u64::MAX, 0)];
    assert!(matches!(with(&hello(1, sum)), LinkError::Protocol(_)));

    let mut foreign = good_hello();
    foreign[16] ^= 1;
    assert!(matches!(with(&foreign), LinkError::Frame(FrameError::Foreign { .. })));
    let mut newer = good_hello();
    newer[20] = 2;
    assert!(matches!(with(&newer), LinkError::Frame(FrameError::Foreign { version: 2, .. })));
    let mut short = good_hello();
    short[28] = 2;
    assert!(matches!(with(&short), LinkError::Frame(FrameError::Length { .. })));
}

#[test]
fn memory_that_could_shrink_is_refused_before_it_is_mapped() {
    let file = memfd_create("ram", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&file, SIZE as i64).unwrap();
    let error = refusal(&[(&good_hello(), &[file.as_fd()])]);
    assert!(matches!(error, LinkError::Memory(MemoryError::Shrinkable)));
    let (reader, _writer) = pipe().unwrap();
    let error = refusal(&[(&good_hello(), &[reader.as_fd()])]);
    assert!(matches!(error, LinkError::Memory(MemoryError::NotSealable)));
}

#[test]
fn a_hello_without_memory_or_another_first_frame_is_refused() {
    assert!(matches!(refusal(&[(&good_hello(), &[])]), LinkError::Protocol(_)));
    assert!(matches!(refusal(&[(&frame(&GuestFrame::Reset), &[])]), LinkError::Protocol(_)));
    assert!(matches!(refusal(&[]), LinkError::Gone));
    let file = Memfd::new("ram", SIZE).unwrap();
    let twice = [(good_hello(), [file.as_fd()]), (good_hello(), [file.as_fd()])];
    let twice: Vec<_> = twice.iter().map(|(bytes, fds)| (bytes.as_slice(), fds.as_slice())).collect();
    assert!(matches!(refusal(&twice), LinkError::Protocol(_)));
}

#[test]
fn the_refused_see_why() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    send_with(&theirs, &good_hello(), &[]);
    let result = attach_all(Attaching::new(ours, "liar", 1, AttachLimits::default()).unwrap());
    assert!(matches!(result.err(), Some(LinkError::Protocol(_))));
    let mut bytes = Vec::new();
    theirs.read_to_end(&mut bytes).unwrap();
    assert_eq!(frame_len(&bytes).unwrap(), Some(bytes.len()));
    let RootFrame::Refused { reason, .. } = RootFrame::parse(&bytes).unwrap() else { panic!("{bytes:?}") };
    assert_eq!(reason, "the peer passed no memory");
}

#[test]
fn surplus_descriptors_are_closed() {
    let file = Memfd::new("ram", SIZE).unwrap();
    let (reader, writer) = pipe().unwrap();
    let root = outcome(&[
        (&good_hello(), &[file.as_fd(), reader.as_fd(), reader.as_fd()]),
        (&frame(&GuestFrame::Reset), &[reader.as_fd()]),
    ])
    .unwrap();
    drop(reader);
    while root.receive().unwrap().is_some() {}
    let error = nix::unistd::write(&writer, b"x").unwrap_err();
    assert_eq!(error, nix::Error::EPIPE, "somebody still holds the reading end");
}

#[test]
fn descriptors_without_end_are_cut_off() {
    let (reader, _writer) = pipe().unwrap();
    let many = vec![reader.as_fd(); 60];
    let bytes = good_hello();
    let pieces: Vec<(&[u8], &[BorrowedFd<'_>])> =
        bytes.chunks(1).map(|byte| (byte, many.as_slice())).collect();
    assert!(matches!(refusal(&pieces), LinkError::Protocol(_)));
}

#[test]
fn frames_that_are_too_long_or_unknown_end_the_connection_and_ignorable_ones_do_not() {
    let file = Memfd::new("ram", SIZE).unwrap();
    let frames = |kind: u32, len: u32| {
        let mut bytes = [kind, len, 0, 0].map(u32::to_le_bytes).concat();
        bytes.resize(16 + len.min(100) as usize, 0);
        bytes
    };
    let good = good_hello();
    let descriptors = [file.as_fd()];
    let reset = frame(&GuestFrame::Reset);
    let end = |bytes: &[u8]| {
        let root = outcome(&[(&good, &descriptors), (&reset, &[]), (bytes, &[])]).unwrap();
        assert_eq!(root.receive().unwrap(), Some(FromGuest::Reset));
        root.receive()
    };
    assert!(matches!(end(&frames(5, 65537)), Err(LinkError::Frame(FrameError::TooLong { len: 65537 }))));
    assert!(matches!(end(&frames(5, u32::MAX)), Err(LinkError::Frame(FrameError::TooLong { .. }))));
    assert!(matches!(end(&frames(0x99, 0)), Err(LinkError::Frame(FrameError::Unknown { kind: 0x99 }))));
    assert!(matches!(end(&frames(0x4000_0099, 7)), Ok(Some(FromGuest::HungUp))));
    assert!(matches!(end(&frames(2, 4)), Err(LinkError::Frame(FrameError::Length { .. }))));
    let mut post =
        frame(&GuestFrame::PostMessage { vp: 0, connection_id: 1, message_type: 1, data: &[1; 8] });
    post[20] = 9;
    assert!(matches!(end(&post), Err(LinkError::Frame(FrameError::Length { .. }))));
    // A partition that leaves in the middle of a frame has simply gone.
    assert!(matches!(end(&reset[..10]), Ok(Some(FromGuest::HungUp))));
}

/// A guest that speaks the extensions by hand.
struct HandMade {
    socket: UnixStream,
    area: Mapping,
    bells: Vec<EventFd>,
}

/// Where things are in a control area with this many areas (docs/src/protocol/attach.md, "Control area").
const TO_ROOT: usize = 4096;
const TO_GUEST: usize = TO_ROOT + 4096 + 64 * 256;
const AREAS: usize = TO_GUEST + 4096 + 64 * 256;
const AREA_SIZE: usize = 384;
const WORKERS: usize = 2;

impl HandMade {
    fn new(socket: UnixStream) -> Self {
        let file = Memfd::new("control", (AREAS + 4 * AREA_SIZE) as u64).unwrap();
        let area = file.map_all().unwrap();
        for (index, word) in [0x4143_4d56, 1, WORKERS as u32, 2, 64].into_iter().enumerate() {
            area.store_u32(index * 4, word, Ordering::Relaxed);
        }
        let flags = EfdFlags::EFD_NONBLOCK;
        let bells = (0..WORKERS).map(|_| EventFd::from_flags(flags).unwrap()).collect();
        Self { socket, area, bells }
    }

    fn offer(&self, descriptors: &[BorrowedFd<'_>]) {
        let file = Memfd::new("ram", SIZE).unwrap();
        send_with(&self.socket, &good_hello(), &[file.as_fd()]);
        send_with(
            &self.socket,
            &frame(&GuestFrame::ExtOffer { features: 7, version: 1, name: "hand" }),
            descriptors,
        );
    }

    fn offer_all(&self) {
        let mut descriptors = vec![self.area.file().as_fd()];
        descriptors.extend(self.bells.iter().map(AsFd::as_fd));
        self.offer(&descriptors);
    }

    fn attached() -> (Self, RootSide) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guest = Self::new(theirs);
        guest.offer_all();
        let root = attach_all(Attaching::new(ours, "none", 1, AttachLimits::default()).unwrap()).unwrap();
        (guest, RootSide::new(root))
    }

    /// Writes a message slot and says that it is there.
    fn post(&self, index: u32, size: u16, frames: u32) {
        let at = TO_ROOT + 4096 + (index % 64) as usize * 256;
        self.area.store_u32(at, 4, Ordering::Relaxed);
        self.area.store_u32(at + 4, 1, Ordering::Relaxed);
        self.area.store_u32(at + 8, size.into(), Ordering::Relaxed);
        self.area.store_u32(at + 12, frames, Ordering::Relaxed);
        self.area.store_u32(TO_ROOT, index + 1, Ordering::Release);
    }
}

#[test]
fn a_hand_made_guest_that_keeps_the_rules_is_served() {
    let (guest, mut root) = HandMade::attached();
    guest.post(0, 3, 0);
    root.look().unwrap();
    assert_eq!(root.messages.pop_front().unwrap(), (4, vec![0; 3]));
    assert_eq!(root.end.info().workers, 2);
    root.end.deliver(1, 2, b"answer").unwrap();
    assert_eq!(guest.area.load_u32(TO_GUEST, Ordering::Acquire), 1);
    assert_eq!(
        guest.area.load_u32(AREAS + 2 * AREA_SIZE + 4, Ordering::Acquire),
        1,
        "processor 0 is told to look"
    );
}

#[test]
fn offers_that_lie_are_refused() {
    let attempt = |lie: &dyn Fn(&HandMade)| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guest = HandMade::new(theirs);
        lie(&guest);
        attach_all(Attaching::new(ours, "none", 1, AttachLimits::default()).unwrap()).err().expect("attached")
    };
    let control = |error| assert!(matches!(error, LinkError::ControlArea(_)), "{error}");
    for (word, value) in [(0, 7), (1, 2), (2, 0), (2, 65), (2, 64), (3, 0), (3, u32::MAX)] {
        control(attempt(&|guest| {
            guest.area.store_u32(word * 4, value, Ordering::Relaxed);
            guest.offer_all();
        }));
    }
    control(attempt(&|guest| {
        let small = Memfd::new("small", 4096).unwrap();
        guest.offer(&[small.as_fd(), guest.bells[0].as_fd(), guest.bells[1].as_fd()]);
    }));
    let fewer = attempt(&|guest| guest.offer(&[guest.area.file().as_fd(), guest.bells[0].as_fd()]));
    assert!(matches!(fewer, LinkError::Protocol(_)));
    let nothing = attempt(&|guest| guest.offer(&[]));
    assert!(matches!(nothing, LinkError::Protocol(_)));
    // A file, or a pipe that never runs dry, is no bell.
    let (reader, _writer) = pipe().unwrap();
    let no_bell =
        attempt(&|guest| guest.offer(&[guest.area.file().as_fd(), guest.bells[0].as_fd(), reader.as_fd()]));
    assert!(matches!(no_bell, LinkError::System { .. }));
    for name in ["", "\u{7}", &"x".repeat(65)] {
        let bad_name = attempt(&|guest| {
            let file = Memfd::new("ram", SIZE).unwrap();
            send_with(&guest.socket, &good_hello(), &[file.as_fd()]);
            let mut descriptors = vec![guest.area.file().as_fd()];
            descriptors.extend(guest.bells.iter().map(AsFd::as_fd));
            let offer = frame(&GuestFrame::ExtOffer { features: 7, version: 1, name });
            send_with(&guest.socket, &offer, &descriptors);
        });
        assert!(
            matches!(bad_name, LinkError::Protocol(_) | LinkError::Frame(FrameError::Text)),
            "{bad_name}"
        );
    }
}

#[test]
fn garbage_in_the_control_area_costs_the_guest_its_place_and_nobody_else() {
    for index in [65, u32::MAX, 1 << 31] {
        let (guest, mut root) = HandMade::attached();
        guest.area.store_u32(TO_ROOT, index, Ordering::Release);
        assert!(matches!(root.look(), Err(LinkError::ControlArea(_))));
    }
    for index in [1, 100_000] {
        let (guest, root) = HandMade::attached();
        guest.area.store_u32(TO_GUEST + 128, index, Ordering::Release);
        assert!(matches!(root.end.deliver(0, 2, &[1]), Err(LinkError::ControlArea(_))));
    }
    let (guest, mut root) = HandMade::attached();
    guest.post(0, 241, 0);
    assert!(matches!(root.look(), Err(LinkError::ControlArea(_))));
    let (guest, mut root) = HandMade::attached();
    guest.post(0, 1, 5);
    assert!(matches!(root.look(), Err(LinkError::Protocol(_))), "it waits for frames that never come");
    let (guest, mut root) = HandMade::attached();
    guest.area.write(TO_ROOT, &[0xff; 4096 + 64 * 256]);
    assert!(root.look().is_err());
    // All flags at once, in summary and words, are each reported once, and then there is peace.
    let (guest, mut root) = HandMade::attached();
    for area in 0..WORKERS {
        guest.area.write(AREAS + area * AREA_SIZE, &[0xff; AREA_SIZE]);
    }
    root.look().unwrap();
    assert_eq!(root.signals.len(), 2 * 2047);
    root.look().unwrap();
    assert_eq!(root.signals.len(), 2 * 2047);
}

#[test]
fn a_guest_that_does_not_read_never_makes_the_root_wait() {
    let started = Instant::now();
    let (guest, root) = HandMade::attached();
    let mut sent = 0;
    let error = loop {
        match root.end.deliver(0, 2, &[7; 240]) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 100_000, "the queue has no bound");
    };
    assert!(matches!(error, LinkError::Backlog { .. }));
    // A sleeper that is rung and rung again without ever looking: the bell is full some day.
    let waiting = AREAS + WORKERS * AREA_SIZE;
    for _ in 0..200_000 {
        guest.area.store_u32(waiting, 1, Ordering::SeqCst);
        guest.area.swap_u64(waiting + 64, 0, Ordering::SeqCst);
        root.end.signal(0, 1);
    }
    // Frames nobody reads.
    let refused = (0..1_000_000).find(|_| root.end.set_connection_status(1, 0).is_err());
    assert!(refused.is_some(), "the queue of frames has no bound");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_vmm_that_does_not_read_never_makes_the_root_wait() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let vmm = BaseVmm::start(theirs, SIZE);
    let root = attach_all(Attaching::new(ours, "vmm", 1, AttachLimits::default()).unwrap()).unwrap();
    let message = (0..1_000_000).find(|_| root.deliver(0, 2, &[7; 240]).is_err());
    assert!(message.is_some(), "the queue of messages has no bound");
    // Signals coalesce while they wait, however many come.
    for number in 0..100_000u32 {
        root.signal(0, (number % 100) as u16);
    }
    // It reads again: everything queued comes through, and each waiting flag once.
    let mut flags = 0;
    let deadline = Instant::now() + common::PATIENCE;
    loop {
        let out = root.flush().unwrap();
        while vmm.receive().unwrap().is_some() {}
        vmm.take_flags(0, &mut |_| flags += 1);
        if out {
            break;
        }
        assert!(Instant::now() < deadline);
    }
    assert!(flags <= 100, "{flags} frames for 100 flags");
}

#[test]
fn a_flag_set_after_a_message_is_not_taken_for_one_sent_before_it() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let vmm = BaseVmm::start(theirs, SIZE);
    let root = attach_all(Attaching::new(ours, "vmm", 1, AttachLimits::default()).unwrap()).unwrap();
    // Fill the socket, so that everything after this waits.
    while !root.wants_write() {
        root.deliver(0, 2, &[0; 240]).unwrap();
    }
    root.signal(0, 9);
    root.signal(0, 9);
    root.deliver(0, 2, b"opened").unwrap();
    root.signal(0, 9);
    let mut seen = Vec::new();
    let deadline = Instant::now() + common::PATIENCE;
    while seen.len() < 3 {
        root.flush().unwrap();
        // The stand-in reports flags apart from messages: look at them in between.
        if let Some(FromRoot::Message { payload, .. }) = vmm.receive().unwrap() {
            vmm.take_flags(0, &mut |flag| seen.push(flag));
            if &*payload == b"opened" {
                seen.push(0);
            }
        }
        vmm.take_flags(0, &mut |flag| seen.push(flag));
        assert!(Instant::now() < deadline, "{seen:?}");
    }
    assert_eq!(seen, [9, 0, 9]);
}

#[test]
fn a_vmm_that_posts_past_its_quota_is_slowed_down_and_let_go_again() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let vmm = BaseVmm::start(theirs, SIZE);
    let limits = AttachLimits { posts: 20, ..AttachLimits::default() };
    let mut root = RootSide::new(attach_all(Attaching::new(ours, "vmm", 1, limits).unwrap()).unwrap());
    for number in 0..100u8 {
        vmm.post(4, &[number]).unwrap();
    }
    root.look().unwrap();
    assert_eq!(root.messages.len(), 100, "what was posted is heard");
    let status = |status| FromRoot::ConnectionStatus { connection_id: 4, status };
    assert_eq!(vmm.receive().unwrap(), Some(status(0x13)));
    assert_eq!(vmm.receive().unwrap(), Some(status(0)));
    for _ in 0..10 {
        vmm.post(4, &[1]).unwrap();
        root.look().unwrap();
    }
    assert_eq!(vmm.receive().unwrap(), None, "who keeps a decent pace is left alone");
}

#[test]
fn a_bell_that_its_maker_has_made_blocking_blocks_nobody() {
    let (guest, root) = HandMade::attached();
    fcntl(&guest.bells[0], FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let started = Instant::now();
    root.end.clear_bell(0);
    guest.bells[0].write(u64::MAX - 1).unwrap();
    assert!(common::is_readable(root.end.worker_bell(0).unwrap()));
    root.end.clear_bell(0);
    assert!(!common::is_readable(root.end.worker_bell(0).unwrap()));
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_root_that_knows_no_extensions_is_given_up_in_time() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut options = common::options();
    options.patience = 1;
    let error = attach::attach(theirs, &options).unwrap_err();
    assert!(matches!(error, LinkError::NoAnswer { seconds: 1 }));
    drop(ours);
}

#[test]
fn a_root_that_grants_less_than_it_must_is_left() {
    let answer = |root: &dyn Fn(&UnixStream)| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guest = std::thread::spawn(move || attach::attach(theirs, &common::options()));
        wait_readable(&[ours.as_fd()], common::PATIENCE);
        root(&ours);
        guest.join().unwrap().expect_err("attached")
    };
    const VPS: u16 = 3;
    assert_eq!(common::options().vps, VPS);
    let accept = |features, vps| {
        let mut bytes = Vec::new();
        RootFrame::ExtAccept { features, partition: 1, workers: 5, vps }.emit(&mut bytes);
        bytes
    };
    let (reader, _writer) = pipe().unwrap();
    let no_descriptors = answer(&|root| send_with(root, &accept(7, VPS), &[]));
    assert!(matches!(no_descriptors, LinkError::Protocol(_)));
    let no_features = answer(&|root| send_with(root, &accept(0, VPS), &[reader.as_fd(); VPS as usize]));
    assert!(matches!(no_features, LinkError::Protocol(_)));
    let file = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
    let no_bells = answer(&|root| send_with(root, &accept(7, VPS), &[file.as_fd(); VPS as usize]));
    assert!(matches!(no_bells, LinkError::System { .. }));
    let garbage = answer(&|mut root| root.write_all(&[0xff; 64]).unwrap());
    assert!(matches!(garbage, LinkError::Frame(_)));
    let gone = answer(&|root| root.shutdown(std::net::Shutdown::Both).unwrap());
    assert!(matches!(gone, LinkError::Gone | LinkError::System { .. }));
}

#[test]
fn frames_without_meaning_do_not_keep_the_root_busy_for_ever() {
    let (guest, mut root) = HandMade::attached();
    let noise = frame(&GuestFrame::Ignored).repeat(1000);
    for _ in 0..4 {
        send_with(&guest.socket, &noise, &[]);
        root.look().unwrap();
    }
    send_with(&guest.socket, &noise, &[]);
    assert!(matches!(root.look(), Err(LinkError::Protocol(_))));
}

#[test]
fn regions_without_end_are_refused() {
    let (guest, mut root) = HandMade::attached();
    let file = Memfd::new("more", 4096).unwrap();
    for index in 0..64u64 {
        let range = range(1 << 40 | index << 20, 4096, 0);
        send_with(&guest.socket, &frame(&GuestFrame::MemoryAdd { range, domain: 1 }), &[file.as_fd()]);
    }
    assert!(matches!(root.look(), Err(LinkError::Protocol(_))));
    assert_eq!(root.end.memory().regions().len(), 64);
}

#[test]
fn a_guest_with_more_event_areas_than_it_may_have_is_refused_before_they_cost_descriptors() {
    let limits = AttachLimits { areas: 4, ..AttachLimits::default() };
    let with = |vps| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let options = GuestOptions { vps, ..common::options() };
        let guest = std::thread::spawn(move || attach::attach(theirs, &options));
        let root = attach_all(Attaching::new(ours, "none", 1, limits).unwrap());
        (root, guest.join().unwrap())
    };
    let (root, guest) = with(4);
    assert!(root.is_ok() && guest.is_ok());
    let (root, guest) = with(5);
    assert!(matches!(root.err(), Some(LinkError::Protocol(_))));
    assert!(matches!(guest, Err(LinkError::Refused { reason }) if reason.contains("event areas")));
}
