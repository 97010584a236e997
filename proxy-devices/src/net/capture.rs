//! A port that writes what it is given to a pcapng file. A mirror port, that is: it sends nothing.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use vmbus_vsp::network::switch::{
    Capabilities, Checksum, Connection, Delivered, Frame, Frames, MAX_FRAME, Port, PortSettings, Switch,
};

use super::PortError;
use super::mailbox::{Mail, Mailbox, Waited};
use super::pcapng::{Direction, Writer};

/// How long what was captured may wait to be written out, and how often an idle capture asks whether it is wanted.
const PATIENCE: Duration = Duration::from_millis(250);

/// What is captured.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// The interface's name in the file.
    pub name: String,
    /// Bytes of each frame that are kept.
    pub longest: usize,
}

impl CaptureOptions {
    /// All of each frame.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), longest: MAX_FRAME }
    }
}

/// A file of what goes to a port. A slow disk loses frames, whose number is in the file's end, and slows nobody down.
/// Dropping it disconnects the port and ends the file.
#[derive(Debug)]
pub struct CapturePort {
    mailbox: Arc<Mailbox<Mark>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// When a frame came, and how long it was.
#[derive(Clone, Copy, Debug)]
struct Mark {
    time: SystemTime,
    len: usize,
}

impl CapturePort {
    /// Connects a capture to a switch. `is_wanted` is asked now and then; the file ends when it is not.
    ///
    /// # Errors
    /// [`PortError::Connect`] if the switch does not want it, [`PortError::System`] if the file's beginning cannot be
    /// written, or for want of threads.
    pub fn connect<W: Write + Send + 'static>(
        switch: &Switch,
        out: W,
        mut is_wanted: impl FnMut(&W) -> bool + Send + 'static,
        options: &CaptureOptions,
        settings: PortSettings,
    ) -> Result<Self, PortError> {
        let mailbox = Arc::new(Mailbox::default());
        let longest = options.longest;
        let connection = switch.connect(Mirrored { mailbox: Arc::clone(&mailbox), longest }, settings)?;
        let mut writer = Writer::new(out)?;
        let interface = writer.interface(&options.name, 0)?;
        let thread = thread::Builder::new().name("capture".into()).spawn({
            let mailbox = Arc::clone(&mailbox);
            move || {
                let _connection: Connection = connection;
                let (mut mail, mut whole) = (Mail::default(), Vec::new());
                let mut open = Waited::Open;
                while open == Waited::Open && is_wanted(writer.inner()) {
                    open = mailbox.take(&mut mail, Some(PATIENCE));
                    for (frame, mark) in mail.batch.frames().iter().zip(&mail.marks) {
                        let completed = completed(&frame, mark.len, &mut whole);
                        writer.frame(interface, mark.time, completed, mark.len, Direction::Unknown)?;
                    }
                    writer.flush()?;
                }
                writer.dropped(interface, SystemTime::now(), mailbox.dropped())?;
                writer.flush()
            }
        })?;
        Ok(Self { mailbox, thread: Some(thread) })
    }

    /// Whether it has ended, as nobody wants it or nothing can be written any more.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The writer's, once what failed.
    pub fn finish(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.mailbox.close();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the capture's thread has panicked")))
    }
}

impl Drop for CapturePort {
    fn drop(&mut self) {
        match self.end() {
            Ok(()) => {}
            // Who read it has left.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => tracing::warn!(%error, "a capture is not complete"),
        }
    }
}

/// A frame with the checksum that its segments will have instead of the pseudo header's sum, unless it was cut.
fn completed<'a>(frame: &Frame<'a>, len: usize, whole: &'a mut Vec<u8>) -> &'a [u8] {
    let Checksum::Missing { start, field } = frame.offload.checksum else { return frame.bytes };
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(field));
    if frame.bytes.len() < len || at + 2 > len {
        return frame.bytes;
    }
    let sum = !ones_complement_sum(&frame.bytes[start..]);
    whole.clear();
    whole.extend_from_slice(frame.bytes);
    whole[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    whole
}

fn ones_complement_sum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u64 = words.sum();
    loop {
        match u16::try_from(sum) {
            Ok(sum) => return sum,
            Err(_) => sum = (sum & 0xffff) + (sum >> 16),
        }
    }
}

/// The switch's end.
struct Mirrored {
    mailbox: Arc<Mailbox<Mark>>,
    longest: usize,
}

impl Port for Mirrored {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        let time = SystemTime::now();
        self.mailbox.put(frames, self.longest, |frame| Mark { time, len: frame.bytes.len() })
    }

    fn capabilities(&self) -> Capabilities {
        // As in captures of any machine, what is cut into segments later is seen whole.
        Capabilities::SEGMENTATION_V4 | Capabilities::SEGMENTATION_V6
    }
}
