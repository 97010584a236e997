//! A stream socket at a port of a switch, with the framing of QEMU's "stream" network: each frame has its length before
//! it. `passt` listens at such a socket and is a router with NAT that needs no privileges.

mod framing;

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use vmbus_vsp::network::switch::{
    Batch, Capabilities, Connection, Delivered, Frames, MAX_FRAME, Offload, Port, PortSettings, Switch,
};

use self::framing::{Deframer, Framer};
use super::PortError;
use super::wake::{Interest, Wake};

/// The longest frame that a stream may bring.
const LONGEST_FRAME: usize = MAX_FRAME;
/// How often a socket where nobody listens is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes that are read at a time.
const READ: usize = 256 << 10;

/// A switch's port whose other end is a stream socket. While nobody listens there the port's link is down, and it tries
/// again every second. Dropping it disconnects the port.
#[derive(Debug)]
pub struct StreamPort {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl StreamPort {
    /// Connects the socket at `path` to a switch.
    ///
    /// # Errors
    /// [`PortError::Connect`] if the switch does not want it, [`PortError::System`] for want of threads or descriptors.
    pub fn connect(
        switch: &Switch,
        path: impl Into<PathBuf>,
        settings: PortSettings,
    ) -> Result<Self, PortError> {
        let shared = Arc::new(Shared { wake: Wake::new()?, socket: Mutex::default() });
        let connection = switch.connect(Plug(Arc::clone(&shared)), settings)?;
        let thread = thread::Builder::new().name("stream port".into()).spawn({
            let (shared, path) = (Arc::clone(&shared), path.into());
            move || serve(&shared, &path, &connection)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Whether somebody is at the other end.
    pub fn is_up(&self) -> bool {
        self.shared.lock().stream.is_some()
    }
}

impl Drop for StreamPort {
    fn drop(&mut self) {
        self.shared.wake.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Shared {
    wake: Wake,
    socket: Mutex<Socket>,
}

/// What senders' threads write to.
#[derive(Debug, Default)]
struct Socket {
    /// `None` while there is nobody at the other end.
    stream: Option<Arc<UnixStream>>,
    framer: Framer,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Socket {
    fn plug(&mut self, stream: Option<Arc<UnixStream>>) {
        self.framer.clear();
        self.stream = stream;
    }

    /// Ends a stream that takes nothing any more, both ways: whoever reads from it finds the end, too.
    fn break_off(&mut self) {
        if let Some(stream) = &self.stream {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.plug(None);
    }

    /// Writes what the stream takes. Does not wait.
    fn flush(&mut self) -> Result<(), Errno> {
        let Some(stream) = &self.stream else { return Ok(()) };
        while !self.framer.rest().is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(stream.as_raw_fd(), self.framer.rest(), flags) {
                Ok(len) => self.framer.taken(len),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The switch's end.
struct Plug(Arc<Shared>);

impl Port for Plug {
    fn deliver(&self, frames: Frames<'_>) -> Delivered {
        let mut socket = self.0.lock();
        if socket.stream.is_none() {
            return Delivered::link_down(frames);
        }
        let waited = !socket.framer.rest().is_empty();
        let (mut delivered, mut failed, mut full) = (Delivered::default(), false, false);
        for frame in frames {
            let mut added = !failed && socket.framer.add(frame.bytes);
            if !added && !failed && !full {
                failed = socket.flush().is_err();
                added = !failed && socket.framer.add(frame.bytes);
                // It takes no more until this is over, by all likelihood.
                full = !added;
            }
            if added {
                delivered.frames += 1;
                delivered.bytes += frame.bytes.len();
            } else if failed {
                delivered.link_down += 1;
            }
        }
        failed = failed || socket.flush().is_err();
        let waits = !socket.framer.rest().is_empty();
        if failed {
            socket.break_off();
        }
        drop(socket);
        // Our thread finds the end of the stream by reading, and waits until there is room for what waits.
        if failed || waits && !waited {
            self.0.wake.call();
        }
        delivered
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::empty()
    }
}

fn serve(shared: &Shared, path: &Path, connection: &Connection) {
    let (mut deframer, mut batch) = (Deframer::new(READ), Batch::new());
    let mut told = false;
    while !shared.wake.is_stopped() {
        match dial(path) {
            Ok(stream) => {
                tracing::info!(path = %path.display(), "the stream is connected");
                told = false;
                let stream = Arc::new(stream);
                shared.lock().plug(Some(Arc::clone(&stream)));
                deframer.clear();
                let ended = carry(shared, &stream, connection, &mut deframer, &mut batch);
                shared.lock().plug(None);
                match ended {
                    Ok(()) => tracing::info!(path = %path.display(), "the stream has ended"),
                    Err(error) => tracing::warn!(path = %path.display(), %error, "the stream is broken"),
                }
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(path = %path.display(), %error, "no stream; trying again every second");
            }
            Err(_) => {}
        }
        if !shared.wake.is_stopped() && shared.wake.wait(None, Interest::Nothing, Some(RETRY)).is_err() {
            return;
        }
    }
}

fn dial(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// From the stream into the switch, and what waits for the stream into it, until either ends.
fn carry(
    shared: &Shared,
    stream: &UnixStream,
    connection: &Connection,
    deframer: &mut Deframer,
    batch: &mut Batch,
) -> io::Result<()> {
    while !shared.wake.is_stopped() {
        match (&*stream).read(deframer.space()) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                deframer.filled(len);
                while let Some(frame) = deframer.next().map_err(io::Error::other)? {
                    if batch.push(frame, Offload::NONE).is_err() {
                        connection.send(batch);
                        // No frame is longer than an empty batch takes.
                        let _ = batch.push(frame, Offload::NONE);
                    }
                }
                connection.send(batch);
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        let waits = !shared.lock().framer.rest().is_empty();
        let interest = if waits { Interest::Both } else { Interest::Readable };
        let ready = shared.wake.wait(Some(stream.as_fd()), interest, None)?;
        if ready.writable {
            shared.lock().flush()?;
        }
    }
    Ok(())
}
