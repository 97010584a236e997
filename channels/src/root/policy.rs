//! Who decides what guests may do.

pub use vmbus_core::server::Question;

use crate::error::Refusal;
use crate::provider::Client;

/// Asked by the protocol's state machine before a version is accepted, a device is shown, pages are shared and a
/// channel is opened. Must answer at once.
pub trait Policy: Send + Sync + 'static {
    /// Allows what `client` asks, or refuses it with a reason.
    ///
    /// # Errors
    /// The refusal; process guests are told its reason.
    fn decide(&self, client: &Client, question: &Question) -> Result<(), Refusal>;
}

/// Allows everything within the quotas.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl Policy for AllowAll {
    fn decide(&self, _client: &Client, _question: &Question) -> Result<(), Refusal> {
        Ok(())
    }
}
