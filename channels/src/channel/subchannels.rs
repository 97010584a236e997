//! Sub-channels: further rings of the same device, so that several processors have one each
//! (`docs/src/protocol/control.md`, "Sub-channels").
//!
//! They are offered when the session of the primary channel asks for them, and live within its open: when the primary
//! closes, is rescinded or loses its guest, they are rescinded before it.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Channel;
use crate::error::Refusal;
use crate::provider::{OpenRequest, Session, Start, start};

/// Admits opens of sub-channels.
pub(crate) type Admit = Arc<dyn Fn(&OpenRequest) -> Result<Start, Refusal> + Send + Sync>;
/// Asks the root to offer sub-channels 1 to this number.
pub(crate) type Ask = Box<dyn Fn(u16, Admit) -> oneshot::Receiver<Result<(), Refusal>> + Send + Sync>;

impl Channel {
    pub(crate) fn with_subchannels(mut self, ask: Ask) -> Self {
        self.subchannels = Some(ask);
        self
    }

    /// Offers the guest sub-channels 1 to `count` of this device's open; those that are offered already stay. Returns
    /// when they are on their way to the guest, which opens as many of them as it likes.
    ///
    /// `admit` admits each open, as [`Provider::open`](crate::Provider::open) does for primary channels, and gives what
    /// serves it. What the sessions of one guest share is what it captures. It must not block.
    ///
    /// # Errors
    /// A [`Refusal`] if this is not the root's end of an open primary channel, the guest's version knows no
    /// sub-channels, or the guest has as many as it may; then nothing new is offered.
    pub async fn offer_subchannels<S: Session>(
        &self,
        count: u16,
        admit: impl Fn(&OpenRequest) -> Result<S, Refusal> + Send + Sync + 'static,
    ) -> Result<(), Refusal> {
        let Some(ask) = &self.subchannels else {
            return Err(Refusal::new("only the root's end of a primary channel has sub-channels"));
        };
        let answer = ask(count, Arc::new(move |open| admit(open).map(start)));
        answer.await.unwrap_or_else(|_| Err(Refusal::new("the guest is gone")))
    }
}
