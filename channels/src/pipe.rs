//! Channels as pipes: a sequence of messages, or a stream of bytes (`docs/src/protocol/ring.md`, "Pipe framing").

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use vmbus_ringbuf::Outgoing;

use crate::channel::{Channel, Core, Replay, Request};
use crate::error::ChannelError;

/// The longest data of one packet, in bytes.
pub const MAX_MESSAGE: usize = 16384;

const HEADER: usize = 8;
const DATA: u32 = 1;

/// A channel that carries messages of up to [`MAX_MESSAGE`] bytes.
#[derive(Debug)]
pub struct MessagePipe {
    channel: Channel,
}

impl MessagePipe {
    /// The pipe on a channel whose offer says [`Framing::Messages`](crate::Framing::Messages).
    pub fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Sends one message, waiting for room as long as it takes.
    ///
    /// # Errors
    /// [`ChannelError::TooLarge`]: our own fault; [`ChannelError::Closed`].
    pub async fn send(&self, message: &[u8]) -> Result<(), ChannelError> {
        if message.len() > MAX_MESSAGE {
            return Err(ChannelError::TooLarge { len: message.len(), ring: MAX_MESSAGE });
        }
        self.channel.core().send(&Outgoing::in_band(&framed(message)), Replay::Never).await
    }

    /// The next message, or `None` once the pipe is closed.
    ///
    /// # Errors
    /// [`ChannelError::Protocol`]: the peer sent something that is no message.
    pub async fn recv(&self) -> Result<Option<Bytes>, ChannelError> {
        match self.channel.recv().await? {
            Some(packet) => data(&packet).map(Some),
            None => Ok(None),
        }
    }
}

/// `message` behind the pipe header.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER + message.len());
    packet.extend_from_slice(&DATA.to_le_bytes());
    packet.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes());
    packet.extend_from_slice(message);
    packet
}

/// The data of a packet, without header and padding.
fn data(packet: &Request) -> Result<Bytes, ChannelError> {
    let wrong = |what: &str| ChannelError::Protocol(format!("pipe packet {what}"));
    let Some((&[a, b, c, d, e, f, g, h], rest)) = packet.payload().split_first_chunk::<HEADER>() else {
        return Err(wrong("without header"));
    };
    if u32::from_le_bytes([a, b, c, d]) != DATA {
        return Err(wrong("of unknown type"));
    }
    let len = u32::from_le_bytes([e, f, g, h]) as usize;
    rest.get(..len).map(Bytes::copy_from_slice).ok_or_else(|| wrong("shorter than its data"))
}

type Received = Pin<Box<dyn Future<Output = Result<Option<Request>, ChannelError>> + Send>>;
type Sent = Pin<Box<dyn Future<Output = Result<(), ChannelError>> + Send>>;

/// A channel that carries bytes; the ends of packets mean nothing. Shutting down sends an end of stream.
pub struct BytePipe {
    channel: Channel,
    unread: Bytes,
    ended: bool,
    /// Our end of the stream is on its way.
    shut: bool,
    receiving: Option<Received>,
    sending: Option<Sent>,
}

impl BytePipe {
    /// The pipe on a channel whose offer says [`Framing::ByteStream`](crate::Framing::ByteStream).
    pub fn new(channel: Channel) -> Self {
        Self { channel, unread: Bytes::new(), ended: false, shut: false, receiving: None, sending: None }
    }

    fn core(&self) -> Arc<Core> {
        Arc::clone(self.channel.core())
    }

    /// Drives the last packet, which may wait for room.
    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(sending) = &mut self.sending {
            let sent = ready!(sending.as_mut().poll(context));
            self.sending = None;
            sent.map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, bytes: &[u8]) {
        let (core, packet) = (self.core(), framed(bytes));
        self.sending =
            Some(Box::pin(async move { core.send(&Outgoing::in_band(&packet), Replay::Never).await }));
    }
}

fn broken(error: ChannelError) -> io::Error {
    match error {
        ChannelError::Closed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::other(error),
    }
}

impl AsyncRead for BytePipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.ended {
            let core = self.core();
            let receiving = self.receiving.get_or_insert_with(|| Box::pin(async move { core.recv().await }));
            let received = ready!(receiving.as_mut().poll(context));
            self.receiving = None;
            match received {
                Ok(Some(packet)) => {
                    self.unread = data(&packet).map_err(broken)?;
                    self.ended = self.unread.is_empty();
                }
                Ok(None) | Err(ChannelError::Closed) => self.ended = true,
                Err(error) => return Poll::Ready(Err(broken(error))),
            }
        }
        let len = self.unread.len().min(into.remaining());
        into.put_slice(&self.unread[..len]);
        self.unread.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BytePipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(context))?;
        let len = from.len().min(MAX_MESSAGE);
        if len > 0 {
            self.send(&from[..len]);
            if let Poll::Ready(Err(error)) = self.poll_sent(context) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(self.poll_sent(context))?;
            self.shut = true;
            self.send(&[]);
        }
        match ready!(self.poll_sent(context)) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Poll::Ready(Ok(())),
            sent => Poll::Ready(sent),
        }
    }
}

impl fmt::Debug for BytePipe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BytePipe").field("channel", &self.channel).finish_non_exhaustive()
    }
}
