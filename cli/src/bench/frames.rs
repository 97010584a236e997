//! The other ends of `vmbus bench net`: a root with a switch, a guest that counts what comes, and what stands for both
//! over sockets.
//!
//! Who counts answers two kinds of frames: a question for the counts, and a ping.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, send, sendmmsg};
use vmbus_channels::{Device, Guest, Root, Spin};
use vmbus_core::network::CLASS;
use vmbus_vsc::{Nic, NicOptions, NicQueue, TransmitInfo};
use vmbus_vsp::network::NetworkAdapter;
use vmbus_vsp::network::switch::{MacAddress, Switch};

/// Frames at a time.
pub(super) const BATCH: usize = 32;
/// The longest frame.
pub(super) const LONGEST: usize = 64 << 10;

/// The two guests, by name and address.
pub(super) const GUESTS: [(&str, [u8; 6]); 2] =
    [("source", [2, 0, 0, 0, 0, 1]), ("sink", [2, 0, 0, 0, 0, 2])];

/// What a frame is for: its protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum What {
    Load = 0x88b5,
    Question = 0x88b6,
    Ping = 0x88b7,
}

/// Counts so far; an answer holds them from byte 14 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

impl Counts {
    pub(super) fn minus(self, before: Self) -> Self {
        Self { frames: self.frames - before.frames, bytes: self.bytes - before.bytes }
    }

    pub(super) fn of_answer(frame: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(*frame.get(at..)?.first_chunk()?));
        Some(Self { frames: word(14)?, bytes: word(22)? })
    }

    fn answer(self, question: &[u8]) -> Vec<u8> {
        let mut answer = vec![0; 60];
        answer[..6].copy_from_slice(&question[6..12]);
        answer[6..12].copy_from_slice(&question[..6]);
        answer[12..14].copy_from_slice(&question[12..14]);
        answer[14..22].copy_from_slice(&self.frames.to_le_bytes());
        answer[22..30].copy_from_slice(&self.bytes.to_le_bytes());
        answer
    }

    /// Counts a frame, or gives the answer to a question.
    fn take(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let questions = [What::Question, What::Ping].map(|what| (what as u16).to_be_bytes());
        let what = frame.get(12..14)?;
        if questions.iter().any(|question| question == what) {
            return Some(self.answer(frame));
        }
        self.frames += 1;
        self.bytes += frame.len() as u64;
        None
    }
}

/// A frame from the first guest to the second.
pub(super) fn frame(what: What, len: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; len.max(14)];
    frame[..6].copy_from_slice(&GUESTS[1].1);
    frame[6..12].copy_from_slice(&GUESTS[0].1);
    frame[12..14].copy_from_slice(&(what as u16).to_be_bytes());
    frame
}

/// A root with a switch, and a NIC for each of the two guests.
pub(super) fn switch(socket: &Path) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let root = Root::builder().build();
        let switch = Switch::new("bench");
        for (name, address) in GUESTS {
            root.offer(NetworkAdapter::new(name, &switch, MacAddress(address)).only_for(name))?;
        }
        root.listen_at(socket)?;
        std::future::pending().await
    })
}

/// Joins as one of the two.
pub(super) async fn join(socket: &Path, name: &str) -> Result<NicQueue> {
    let guest = Guest::builder().name(name).memory(32 << 20).connect(socket).await?;
    let device = Device::class(CLASS);
    guest.wait_for(device).await?;
    let nic = Nic::open_device(&guest, device, NicOptions::new().send_bytes(2 << 20)).await?;
    nic.into_queue().context("the NIC is in use")
}

/// A guest that counts. Says when it does, on its standard output.
pub(super) fn count(socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut queue = runtime.block_on(join(socket, GUESTS[1].0))?;
    queue.set_spin(Spin::adaptive());
    // Its address is known at the switch from now on.
    queue.send(&frame_back(), &TransmitInfo::default())?;
    println!("counting");
    let mut counts = Counts::default();
    let mut bytes = vec![0; LONGEST];
    let mut answers = Vec::new();
    loop {
        queue.wait(None)?;
        queue.receive(|frame| {
            let Some(bytes) = bytes.get_mut(..frame.len()) else { return };
            if frame.read(0, bytes).is_ok() {
                answers.extend(counts.take(bytes));
            }
        })?;
        for answer in answers.drain(..) {
            queue.send(&answer, &TransmitInfo::default())?;
        }
    }
}

fn frame_back() -> Vec<u8> {
    let mut frame = frame(What::Load, 60);
    let (to, rest) = frame.split_at_mut(6);
    to.swap_with_slice(&mut rest[..6]);
    frame
}

/// What a switch is without one: passes on what comes on its standard input to its standard output.
pub(super) fn relay() -> Result<()> {
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let (input, output) = (input.as_fd().as_raw_fd(), output.as_fd().as_raw_fd());
    let mut frames = Frames::new();
    while frames.receive(input)? > 0 {
        frames.send(output)?;
    }
    Ok(())
}

/// Counts what comes on its standard input, and answers on its standard output.
pub(super) fn sink() -> Result<()> {
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let (input, output) = (input.as_fd().as_raw_fd(), output.as_fd().as_raw_fd());
    let (mut frames, mut counts) = (Frames::new(), Counts::default());
    while frames.receive(input)? > 0 {
        for frame in frames.iter() {
            if let Some(answer) = counts.take(frame) {
                send(output, &answer, MsgFlags::empty())?;
            }
        }
    }
    Ok(())
}

/// A batch of frames for sockets.
pub(super) struct Frames {
    buffers: Vec<Vec<u8>>,
    lens: Vec<usize>,
    headers: MultiHeaders<()>,
}

impl Frames {
    pub(super) fn new() -> Self {
        let buffers = (0..BATCH).map(|_| vec![0; LONGEST]).collect();
        Self { buffers, lens: Vec::new(), headers: MultiHeaders::preallocate(BATCH, None) }
    }

    /// So many of the same.
    pub(super) fn of(frame: &[u8], count: usize) -> Self {
        let mut frames = Self::new();
        for buffer in &mut frames.buffers {
            buffer[..frame.len()].copy_from_slice(frame);
        }
        frames.lens = vec![frame.len(); count.min(BATCH)];
        frames
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers.iter().zip(&self.lens).map(|(buffer, &len)| &buffer[..len])
    }

    /// Takes what is there, after at least one has come; 0 at the end.
    pub(super) fn receive(&mut self, socket: RawFd) -> Result<usize> {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let came = recvmmsg(socket, &mut self.headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None)?;
        let lens: Vec<usize> = came.map(|message| message.bytes).take_while(|&len| len > 0).collect();
        self.lens = lens;
        Ok(self.lens.len())
    }

    /// Sends all of them, waiting for room.
    pub(super) fn send(&mut self, socket: RawFd) -> Result<()> {
        let mut sent = 0;
        while sent < self.lens.len() {
            let slices: Vec<[IoSlice<'_>; 1]> = self.buffers[sent..]
                .iter()
                .zip(&self.lens[sent..])
                .map(|(buffer, &len)| [IoSlice::new(&buffer[..len])])
                .collect();
            let addresses = vec![None; slices.len()];
            sent +=
                sendmmsg(socket, &mut self.headers, slices.iter(), addresses, [], MsgFlags::empty())?.count();
        }
        Ok(())
    }
}
