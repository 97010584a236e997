//! A partition that sends any bytes over the attach socket.

use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vmbus_partition::frame::{GuestFrame, Hello, MemoryRange, RootFrame, frame_len};
use vmbus_partition::{AttachLimits, Attaching, Memfd};

const GUEST_BYTES: u64 = 64 << 10;
/// More than the bytes of one input can make the root say.
const MAX_EVENTS: usize = 100_000;

/// Reads the bytes as frames of both ends, then sends them to a root: as they are, or after a good HELLO.
pub fn run(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(len)) = frame_len(rest) {
        let Some((frame, more)) = rest.split_at_checked(len) else { break };
        parse(frame);
        rest = more;
    }
    if let Some((how, bytes)) = bytes.split_first() {
        attach(how % 2 == 0, bytes);
    }
}

/// What is read can be sent and is read the same again.
fn parse(bytes: &[u8]) {
    if let Ok(frame) = GuestFrame::parse(bytes)
        && frame != GuestFrame::Ignored
    {
        let mut sent = Vec::new();
        frame.emit(&mut sent);
        assert_eq!(frame_len(&sent), Ok(Some(sent.len())));
        assert_eq!(GuestFrame::parse(&sent), Ok(frame));
    }
    if let Ok(frame) = RootFrame::parse(bytes)
        && frame != RootFrame::Ignored
    {
        let mut sent = Vec::new();
        frame.emit(&mut sent);
        assert_eq!(frame_len(&sent), Ok(Some(sent.len())));
        assert_eq!(RootFrame::parse(&sent), Ok(frame));
    }
}

fn attach(with_hello: bool, bytes: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.set_nonblocking(true).expect("a socket that does not wait");
    if with_hello {
        hello(&theirs);
    }
    // What does not fit is not sent; the fuzzer's inputs do.
    let _ = theirs.write(bytes);
    let attaching = Attaching::new(ours, "stranger", 1, AttachLimits::default());
    let mut attaching = attaching.expect("a socket can be attached to");
    drop(theirs);
    for _ in 0..MAX_EVENTS {
        match attaching.advance() {
            Ok(None) => {}
            Ok(Some(root)) => {
                let mut events = 0;
                while let Ok(Some(event)) = root.receive() {
                    let _ = format!("{event:?}");
                    events += 1;
                    assert!(events < MAX_EVENTS, "a few bytes make the root busy for ever");
                    if matches!(event, vmbus_partition::FromGuest::HungUp) {
                        return;
                    }
                }
                return;
            }
            Err(error) => {
                let _ = error.to_string();
                return;
            }
        }
    }
    panic!("a partition that has hung up is neither attached nor refused");
}

fn hello(socket: &UnixStream) {
    let memory = Memfd::new("guest", GUEST_BYTES).expect("memory for the guest");
    let regions = vec![MemoryRange { gpa: 0, size: GUEST_BYTES, fd_offset: 0 }];
    let mut frame = Vec::new();
    GuestFrame::Hello(Hello { num_vps: 2, tsc_hz: 0, ref_time: 0, regions }).emit(&mut frame);
    let descriptors = [memory.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&frame)], &rights, MsgFlags::empty(), None);
    assert_eq!(sent, Ok(frame.len()));
}
