//! A Unix socket whose connections go to a service on the bus.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use vmbus_channels::{Error, HvStream};
use vmbus_partition::reactor::{self, Watching};
use vmbus_partition::{ListenError, Listener};

use super::relay;

/// Connections at one door; more wait to be accepted.
const CONNECTIONS: usize = 256;
/// Pause after the system refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Somebody answers at this path.
    #[error("somebody is listening at {0} already: stop it, or choose another path")]
    InUse(PathBuf),
    /// The path cannot be used.
    #[error(transparent)]
    Listen(ListenError),
    /// The system refused to wait for connections.
    #[error("waiting at {path}: {source}")]
    Wait {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A Unix socket at a path; what connects there is connected to a service. A path that a dead process left is taken
/// over; dropping the door, or ending its [`serve`](Self::serve), removes the path.
#[derive(Debug)]
pub struct UnixDoor {
    listener: Listener,
    readiness: Watching,
}

impl UnixDoor {
    /// Listens at `path`. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`DoorError`], each saying what to do.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, DoorError> {
        let path = path.as_ref();
        let listener = Listener::bind(path).map_err(|error| match error {
            ListenError::InUse(path) => DoorError::InUse(path),
            error => DoorError::Listen(error),
        })?;
        let readiness = reactor::readable(listener.as_fd())
            .map_err(|source| DoorError::Wait { path: path.to_owned(), source })?;
        Ok(Self { listener, readiness })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.listener.path()
    }

    /// Connects whoever comes by `connect`; one that cannot be connected is hung up on. Never returns.
    pub async fn serve<C>(self, connect: impl Fn() -> C)
    where
        C: Future<Output = Result<HvStream, Error>> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut relays = JoinSet::new();
        loop {
            while relays.try_join_next().is_some() {}
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let unix = self.accept().await;
            relays.spawn(pass_on(unix, connect(), self.path().to_owned(), place));
        }
    }

    async fn accept(&self) -> UnixStream {
        loop {
            let accepted = match self.listener.accept() {
                Ok(Some(stream)) => {
                    stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)).map(Some)
                }
                Ok(None) => self.readiness.readable().await.map(|mut guard| {
                    guard.clear_ready();
                    None
                }),
                Err(error) => Err(error),
            };
            match accepted {
                Ok(Some(stream)) => return stream,
                Ok(None) => {}
                // Descriptors run out, say: it may be better later.
                Err(error) => {
                    tracing::warn!(path = %self.path().display(), %error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn pass_on(
    unix: UnixStream,
    connect: impl Future<Output = Result<HvStream, Error>>,
    path: PathBuf,
    _place: OwnedSemaphorePermit,
) {
    match connect.await {
        Ok(stream) => relay(stream, unix).await,
        Err(error) => tracing::warn!(path = %path.display(), %error, "a connection goes nowhere"),
    }
}
