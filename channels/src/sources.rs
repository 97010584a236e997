//! Descriptors to wait on that may not be there.

use std::io;

use vmbus_partition::LinkError;
use vmbus_partition::reactor::Watching;

/// Returns when `source` has become readable; never without one.
pub(crate) async fn readable(source: &Option<Watching>) -> Result<(), LinkError> {
    match source {
        Some(source) => source.readable().await.map_err(failed)?.clear_ready(),
        None => std::future::pending().await,
    }
    Ok(())
}

/// Returns when `source` has become writable; never without one.
pub(crate) async fn writable(source: &Option<Watching>) -> Result<(), LinkError> {
    match source {
        Some(source) => source.writable().await.map_err(failed)?.clear_ready(),
        None => std::future::pending().await,
    }
    Ok(())
}

fn failed(source: io::Error) -> LinkError {
    LinkError::System { what: "waiting for a partition", source }
}
