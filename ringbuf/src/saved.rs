//! Where the two ends of a ring stand, as plain numbers: what outlives them, while the ring lives on in its memory.
//!
//! What was committed and not read stays in the ring. Who takes up an end checks the numbers, which may have been kept
//! by anybody, against the control page, which the peer may have written.

use thiserror::Error;

use crate::fault::RingFault;

/// Where a [`Producer`](crate::Producer) stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedProducer {
    /// Where the next packet starts.
    pub write: u32,
    /// Whether it had asked to be told of room ([`request_space`](crate::Producer::request_space)); the request itself
    /// stands in the control page.
    pub space_requested: bool,
}

/// Where a [`Consumer`](crate::Consumer) stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedConsumer {
    /// Where the next packet starts that was not taken.
    pub read: u32,
    /// Where the first packet starts whose room was not given back. Packets from here to `read` were taken: whoever
    /// did so answers for them.
    pub published: u32,
}

/// Why an end of a ring cannot be taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TakeUpError {
    /// The ring is none: the fault of whoever set it up or of the peer.
    #[error(transparent)]
    Ring(#[from] RingFault),
    /// The saved index cannot be one of this ring: the fault of whoever kept it.
    #[error("a saved ring index is {0:#x}, which cannot be")]
    Index(u32),
    /// The control page says something else: the state is not that of this ring at this moment, or the peer wrote
    /// where only this end does.
    #[error("the control page has ring index {found:#x} where {saved:#x} was saved")]
    Moved {
        /// What was saved.
        saved: u32,
        /// What the control page says.
        found: u32,
    },
}

/// A saved index that this end had stored in the control page.
pub(crate) fn check_index(saved: u32, found: u32, size: u32) -> Result<(), TakeUpError> {
    if !crate::signal::is_index(saved, size) {
        return Err(TakeUpError::Index(saved));
    }
    if saved != found {
        return Err(TakeUpError::Moved { saved, found });
    }
    Ok(())
}
