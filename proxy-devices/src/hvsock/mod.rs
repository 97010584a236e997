//! Stream sockets of the bus as Unix sockets of the host, and from guest to guest.
//!
//! [`serve_by_unix`] hands what comes to a service to whoever listens at a path, [`UnixDoor`] makes connections at a
//! path connections to a service, and [`serve_by_guest`] hands what comes to the root on to another guest. All of them
//! carry each direction's end on its own, and hold back the one end as the other falls behind.

mod door;
mod relay;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::task::JoinSet;
use vmbus_channels::{HvListener, HvStream, Root, hvsock};

pub use self::door::{DoorError, UnixDoor};
pub use self::relay::{Cut, relay};

/// Hands connections to the service of `listener` to whoever listens at the Unix socket `path`, until the bus ends. If
/// nobody does, the connection is reset.
pub async fn serve_by_unix(mut listener: HvListener, path: PathBuf) {
    let path: Arc<PathBuf> = path.into();
    let mut relays = JoinSet::new();
    while let Ok((stream, peer)) = accept(&mut listener, &mut relays).await {
        let path = Arc::clone(&path);
        relays.spawn(async move {
            match UnixStream::connect(&*path).await {
                Ok(unix) => relay(stream, unix).await,
                Err(error) => {
                    let service = hvsock::show(peer.service);
                    tracing::warn!(service, path = %path.display(), %error, "nobody serves a connection");
                    stream.reset();
                }
            }
        });
    }
}

/// Hands connections to the service of `listener` to the same service of guest `name`, until the bus ends. If it does
/// not accept, the connection is reset. See [`Root::hvsock_route`].
pub async fn serve_by_guest(root: Root, mut listener: HvListener, name: String) {
    let name: Arc<str> = name.into();
    let mut relays = JoinSet::new();
    while let Ok((stream, peer)) = accept(&mut listener, &mut relays).await {
        let (root, name) = (root.clone(), Arc::clone(&name));
        relays.spawn(async move {
            match root.hvsock_connect_to(&name, peer.service).await {
                Ok(onward) => relay(stream, onward).await,
                Err(error) => {
                    let service = hvsock::show(peer.service);
                    tracing::warn!(service, to = &*name, %error, "a connection goes nowhere");
                    stream.reset();
                }
            }
        });
    }
}

/// The next connection; those that have ended are forgotten meanwhile.
async fn accept(
    listener: &mut HvListener,
    relays: &mut JoinSet<()>,
) -> Result<(HvStream, vmbus_channels::HvPeer), vmbus_channels::Error> {
    loop {
        tokio::select! {
            incoming = listener.accept() => return incoming,
            Some(_) = relays.join_next() => {}
        }
    }
}
