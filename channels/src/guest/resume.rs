//! Whether a guest outlives its root, and how it finds the next one.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmbus_partition::{ControlGuest, GuestEnd, GuestOptions, LinkError, attach};

use super::lock;
use crate::channel::Channel;

/// Whether a guest outlives its root, and for how long it waits for another.
///
/// A guest that does keeps its memory, its channels and its requests when the root's process dies, attaches to the
/// next root at the same path, and goes on where it was; see the chapter "Surviving a restart" of the book. Channels
/// go on that were opened with [`OpenOptions::on_resume`](super::OpenOptions::on_resume); others end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    pub(super) within: Option<Duration>,
}

impl Resume {
    /// The guest ends with its root. The default.
    pub const fn never() -> Self {
        Self { within: None }
    }

    /// The guest waits so long for another root. The same time is what a device has to be offered again.
    pub const fn within(time: Duration) -> Self {
        Self { within: Some(time) }
    }
}

/// Attaches to another root, which may take as long as the time given.
pub(super) type Rejoin = Box<dyn FnMut(Duration) -> Rejoined + Send>;
type Rejoined = Pin<Box<dyn Future<Output = Result<Arc<dyn GuestEnd>, LinkError>> + Send>>;

/// Attaches to whoever listens at `path` after the root of `first` has gone.
pub(super) fn at_path(path: PathBuf, options: GuestOptions, first: Arc<ControlGuest>) -> Rejoin {
    let latest = Arc::new(Mutex::new(first));
    Box::new(move |patience| {
        let (path, latest) = (path.clone(), Arc::clone(&latest));
        let options = GuestOptions { patience: patience.as_secs().max(1), ..options.clone() };
        Box::pin(async move {
            let attached = tokio::task::spawn_blocking(move || {
                let before = Arc::clone(&lock(&latest));
                let next = Arc::new(attach::reconnect(path, &options, &before)?);
                *lock(&latest) = Arc::clone(&next);
                Ok(next as Arc<dyn GuestEnd>)
            });
            attached.await.unwrap_or(Err(LinkError::Gone))
        })
    })
}

/// What a device's client does first on a channel that has another root.
#[derive(Clone)]
pub(super) struct Greeting(Arc<dyn Fn(Channel) -> Greeted + Send + Sync>);
type Greeted = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

impl Greeting {
    pub(super) fn new<F, E>(greet: impl Fn(Channel) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        Self(Arc::new(move |channel| {
            let greeted = greet(channel);
            Box::pin(async move { greeted.await.map_err(|error| error.to_string()) })
        }))
    }

    pub(super) fn run(&self, channel: Channel) -> Greeted {
        (self.0)(channel)
    }
}

impl fmt::Debug for Greeting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Greeting")
    }
}
