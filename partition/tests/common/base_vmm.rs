//! A stand-in for a VMM that speaks base frames: what QEMU's device does, without a virtual machine.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vmbus_partition::frame::{GuestFrame, Hello, MemoryRange, RootFrame, frame_len};
use vmbus_partition::{
    AllocError, FromRoot, GpaSpace, GuestEnd, GuestInfo, LinkError, Memfd, MessageBytes, PageAllocator,
    Region, SealedGift, SharedPages,
};

pub const GPA: u64 = 0x20_0000;

pub struct BaseVmm {
    socket: UnixStream,
    info: GuestInfo,
    memory: Arc<GpaSpace>,
    allocator: PageAllocator,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    flags: Vec<(u32, u16)>,
    gone: bool,
}

/// Sends bytes with descriptors on the first.
pub fn send_with(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let numbers: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if numbers.is_empty() { &rights[..0] } else { &rights[..] };
    let parts = [std::io::IoSlice::new(bytes)];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None).unwrap();
    assert_eq!(sent, bytes.len());
}

pub fn frame(frame: &GuestFrame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.emit(&mut bytes);
    bytes
}

impl BaseVmm {
    pub fn start(socket: UnixStream, size: u64) -> Self {
        let file = Memfd::new("ram", size).unwrap();
        let mapping = file.map_all().unwrap();
        let regions = vec![MemoryRange { gpa: GPA, size, fd_offset: 0 }];
        let hello = GuestFrame::Hello(Hello { num_vps: 2, tsc_hz: 1, ref_time: 2, regions });
        send_with(&socket, &frame(&hello), &[file.as_fd()]);
        send_with(&socket, &frame(&GuestFrame::Reset), &[]);
        socket.set_nonblocking(true).unwrap();
        let region = Region { gpa: GPA, domain: 0, mapping: mapping.clone() };
        Self {
            socket,
            info: GuestInfo { name: "tester".into(), id: 7, vps: 2, workers: 1, takes_gifts: false },
            memory: Arc::new(GpaSpace::new(vec![region], 0).unwrap()),
            allocator: PageAllocator::new(GPA, 0, mapping),
            state: Mutex::default(),
        }
    }

    /// A VMM's processors block while they write, so this may wait.
    pub fn send(&self, content: &GuestFrame<'_>) {
        self.socket.set_nonblocking(false).unwrap();
        let result = (&self.socket).write_all(&frame(content));
        self.socket.set_nonblocking(true).unwrap();
        result.unwrap();
    }
}

impl GuestEnd for BaseVmm {
    fn hang_up(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    fn info(&self) -> &GuestInfo {
        &self.info
    }

    fn memory(&self) -> Arc<GpaSpace> {
        Arc::clone(&self.memory)
    }

    fn allocate(&self, _domain: u32, len: usize) -> Result<SharedPages, AllocError> {
        self.allocator.allocate(len)
    }

    fn give(&self, _id: u32, _gift: SealedGift) -> Result<(), LinkError> {
        Err(LinkError::NoGifts)
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn peer_process(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn receive(&self) -> Result<Option<FromRoot>, LinkError> {
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(len) = frame_len(&state.buffer)?.filter(|len| *len <= state.buffer.len()) {
                let bytes: Vec<u8> = state.buffer.drain(..len).collect();
                match RootFrame::parse(&bytes)? {
                    RootFrame::DeliverMessage { vp, sint, message_type, data } => {
                        let payload = MessageBytes::new(data).unwrap();
                        return Ok(Some(FromRoot::Message { vp, sint, message_type, payload }));
                    }
                    RootFrame::SetEventFlag { vp, sint, flag } => {
                        assert_eq!(sint, 2);
                        state.flags.push((vp, flag));
                    }
                    RootFrame::SetConnStatus { connection_id, status } => {
                        return Ok(Some(FromRoot::ConnectionStatus { connection_id, status }));
                    }
                    RootFrame::Ping { vp, arg } => self.send(&GuestFrame::Pong { vp, arg }),
                    RootFrame::SystemReset => return Ok(Some(FromRoot::SystemReset)),
                    RootFrame::SystemQuit => return Ok(Some(FromRoot::SystemQuit)),
                    _ => {}
                }
                continue;
            }
            let mut bytes = [0; 4096];
            match (&self.socket).read(&mut bytes) {
                Ok(0) if state.gone => return Ok(None),
                Ok(0) => {
                    state.gone = true;
                    return Ok(Some(FromRoot::HungUp));
                }
                Ok(count) => state.buffer.extend_from_slice(&bytes[..count]),
                Err(_) => return Ok(None),
            }
        }
    }

    fn flush(&self) -> Result<bool, LinkError> {
        Ok(true)
    }

    fn wants_write(&self) -> bool {
        false
    }

    fn post(&self, connection_id: u32, payload: &[u8]) -> Result<(), LinkError> {
        self.send(&GuestFrame::PostMessage { vp: 0, connection_id, message_type: 1, data: payload });
        Ok(())
    }

    fn signal(&self, connection_id: u32) {
        self.send(&GuestFrame::SignalEvent { vp: 0, connection_id, flag: 0 });
    }

    fn vp_bell(&self, _vp: u32) -> Option<BorrowedFd<'_>> {
        None
    }

    fn clear_bell(&self, _vp: u32) {}

    fn take_flags(&self, vp: u32, each: &mut dyn FnMut(u16)) {
        let mut state = self.state.lock().unwrap();
        let (mine, others) = state.flags.drain(..).partition(|(target, _)| *target == vp);
        state.flags = others;
        let mine: Vec<(u32, u16)> = mine;
        mine.into_iter().for_each(|(_, flag)| each(flag));
    }

    fn arm(&self, _vp: u32) -> bool {
        !self.state.lock().unwrap().flags.is_empty()
    }

    fn disarm(&self, _vp: u32) {}
}
