//! A connection: bytes both ways, each way with an end of its own.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop::consume_budget;

use super::HvPeer;
use crate::channel::{Channel, Read, Written};
use crate::error::ChannelError;
use crate::spin::Spin;

/// A stream socket over the bus.
///
/// Shutting it down says that nothing more is written; the other way stays open. Dropping it shuts it down and closes
/// it. What the peer wrote before it closed or died stays readable; then reading gives the end of the stream if the
/// peer said so, and [`ConnectionReset`](io::ErrorKind::ConnectionReset) if it did not. Writing to a peer that is gone
/// gives [`BrokenPipe`](io::ErrorKind::BrokenPipe); a peer that broke the framing, [`InvalidData`](io::ErrorKind::InvalidData).
#[derive(Debug)]
pub struct HvStream {
    read: HvReadHalf,
    write: HvWriteHalf,
}

/// The reading half of a [`HvStream`].
pub struct HvReadHalf {
    shared: Arc<Shared>,
    asleep: Option<Sleep>,
}

/// The writing half of a [`HvStream`]. Dropping it says that nothing more is written.
pub struct HvWriteHalf {
    shared: Arc<Shared>,
    asleep: Option<Sleep>,
    ended: bool,
}

/// What both halves share. The connection closes with it.
struct Shared {
    channel: Channel,
    peer: HvPeer,
    _counted: Option<OwnedSemaphorePermit>,
}

type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

impl HvStream {
    /// The stream on `channel`, on which nothing has happened yet; it counts as `counted` until it is dropped.
    pub(crate) fn new(channel: Channel, peer: HvPeer, counted: Option<OwnedSemaphorePermit>) -> Self {
        channel.core().carry_stream();
        let shared = Arc::new(Shared { channel, peer, _counted: counted });
        Self {
            read: HvReadHalf { shared: Arc::clone(&shared), asleep: None },
            write: HvWriteHalf { shared, asleep: None, ended: false },
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &HvPeer {
        &self.read.shared.peer
    }

    /// How long reads look for data before they sleep.
    pub fn set_spin(&self, spin: Spin) {
        self.read.shared.channel.set_spin(spin);
    }

    /// Closes the connection so that the other end does not take what it has read for all there was.
    pub fn reset(mut self) {
        self.write.ended = true;
    }

    /// Two halves for two tasks.
    pub fn into_split(self) -> (HvReadHalf, HvWriteHalf) {
        (self.read, self.write)
    }

    /// Returns when the other end has closed the connection or is gone; there may be something to read still.
    pub async fn closed(&self) {
        self.read.shared.channel.closed().await;
    }
}

impl HvReadHalf {
    /// The whole again, or both halves if they are not of one stream.
    ///
    /// # Errors
    /// The halves, as they were given.
    pub fn reunite(self, write: HvWriteHalf) -> Result<HvStream, (Self, HvWriteHalf)> {
        if Arc::ptr_eq(&self.shared, &write.shared) {
            Ok(HvStream { read: self, write })
        } else {
            Err((self, write))
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &HvPeer {
        &self.shared.peer
    }
}

impl HvWriteHalf {
    /// Who is at the other end.
    pub fn peer(&self) -> &HvPeer {
        &self.shared.peer
    }

    fn end(&mut self) -> Result<(), ChannelError> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        self.shared.channel.core().end_stream()
    }
}

impl AsyncRead for HvReadHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(poll_budget(context));
        loop {
            // Before anything else: to look at the ring is to tell the peer that no bell is needed.
            ready!(poll_sleep(&mut self.asleep, context));
            let core = self.shared.channel.core();
            let seen = core.nudges();
            match core.read_stream(into.initialize_unfilled()) {
                Ok(Read::Bytes(bytes)) => {
                    into.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Ok(Read::End) => return Poll::Ready(Ok(())),
                Ok(Read::Nothing(held)) => {
                    let sleep = Arc::clone(core).sleep_for_data(seen, held);
                    self.asleep = Some(Box::pin(sleep));
                }
                Err(error) => return Poll::Ready(Err(failed(error, io::ErrorKind::ConnectionReset))),
            }
        }
    }
}

impl AsyncWrite for HvWriteHalf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(poll_budget(context));
        loop {
            ready!(poll_sleep(&mut self.asleep, context));
            let core = self.shared.channel.core();
            let seen = core.nudges();
            match core.write_stream(from) {
                Ok(Written::Bytes(written)) => return Poll::Ready(Ok(written)),
                Ok(Written::NoRoom) => {
                    let sleep = Arc::clone(core).sleep_for_room(seen, from.len());
                    self.asleep = Some(Box::pin(sleep));
                }
                Ok(Written::Held(hold)) => {
                    let sleep = Arc::clone(core).sleep_until_due(seen, hold);
                    self.asleep = Some(Box::pin(sleep));
                }
                Err(error) => return Poll::Ready(Err(failed(error, io::ErrorKind::BrokenPipe))),
            }
        }
    }

    /// Written bytes are the peer's at once.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.asleep = None;
        Poll::Ready(match self.end() {
            // Nobody is left to be told.
            Ok(()) | Err(ChannelError::Closed) => Ok(()),
            Err(error) => Err(failed(error, io::ErrorKind::BrokenPipe)),
        })
    }
}

impl AsyncRead for HvStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(context, into)
    }
}

impl AsyncWrite for HvStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(context)
    }
}

/// Lets others have their turn when this task has had its own.
fn poll_budget(context: &mut Context<'_>) -> Poll<()> {
    pin!(consume_budget()).poll(context)
}

fn poll_sleep(asleep: &mut Option<Sleep>, context: &mut Context<'_>) -> Poll<()> {
    if let Some(sleep) = asleep {
        ready!(sleep.as_mut().poll(context));
        *asleep = None;
    }
    Poll::Ready(())
}

fn failed(error: ChannelError, closed: io::ErrorKind) -> io::Error {
    match error {
        ChannelError::Closed => closed.into(),
        ChannelError::Ring(_) | ChannelError::Protocol(_) | ChannelError::Memory(_) => {
            io::Error::new(io::ErrorKind::InvalidData, error)
        }
        ChannelError::Io(error) => error,
        error => io::Error::other(error),
    }
}

impl Drop for HvReadHalf {
    fn drop(&mut self) {
        self.asleep = None;
        self.shared.channel.core().stop_reading();
    }
}

impl Drop for HvWriteHalf {
    fn drop(&mut self) {
        self.asleep = None;
        // There is room for the end at any time; a peer that is gone does not need it.
        let _ = self.end();
    }
}

impl fmt::Debug for HvReadHalf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HvReadHalf").field("peer", &self.shared.peer).finish_non_exhaustive()
    }
}

impl fmt::Debug for HvWriteHalf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HvWriteHalf").field("ended", &self.ended).finish_non_exhaustive()
    }
}
