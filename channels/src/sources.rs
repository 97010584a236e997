//! Descriptors to wait on that may not be there.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;
use vmbus_partition::LinkError;

/// Returns when `source` has become readable; never without one.
pub(crate) async fn readable(source: &Option<AsyncFd<OwnedFd>>) -> Result<(), LinkError> {
    match source {
        Some(source) => source.readable().await.map_err(failed)?.clear_ready(),
        None => std::future::pending().await,
    }
    Ok(())
}

/// Returns when `source` has become writable; never without one.
pub(crate) async fn writable(source: &Option<AsyncFd<OwnedFd>>) -> Result<(), LinkError> {
    match source {
        Some(source) => source.writable().await.map_err(failed)?.clear_ready(),
        None => std::future::pending().await,
    }
    Ok(())
}

fn failed(source: io::Error) -> LinkError {
    LinkError::System { what: "waiting for a partition", source }
}
