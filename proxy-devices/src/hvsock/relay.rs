//! Two streams as one.

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::UnixStream;
use vmbus_channels::HvStream;

/// Bytes under way in each direction, beside what the streams hold themselves.
const BUFFER: usize = 32 << 10;

/// A stream that can be closed in a way that the other end does not take for its orderly end.
pub trait Cut: AsyncRead + AsyncWrite + Unpin {
    /// Closes it.
    fn cut(self);
}

impl Cut for HvStream {
    fn cut(self) {
        self.reset();
    }
}

impl Cut for UnixStream {
    /// A Unix socket has no such thing, except that what was not read is lost.
    fn cut(self) {}
}

/// Carries bytes both ways until both directions have ended, or one has failed: then both are cut.
pub async fn relay(mut one: impl Cut, mut other: impl Cut) {
    if let Err(error) = copy_bidirectional_with_sizes(&mut one, &mut other, BUFFER, BUFFER).await {
        tracing::debug!(%error, "a connection ended out of order");
        one.cut();
        other.cut();
    }
}
