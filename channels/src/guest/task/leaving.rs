//! Leaving the bus in order: the root has let go of everything before the guest does.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Task;
use crate::error::Error;

/// How long a root may take to let go: its devices may have to write what they hold.
const PATIENCE: Duration = Duration::from_secs(30);

/// A leave under way.
pub(super) struct Leaving {
    reply: oneshot::Sender<Result<(), Error>>,
    pub(super) until: Instant,
    unloaded: bool,
}

impl Task {
    /// Sends UNLOAD. `false`: there is nothing to wait for.
    pub(super) fn begin_leave(&mut self, reply: oneshot::Sender<Result<(), Error>>) -> bool {
        for channel in self.channels.values() {
            if let Some(core) = &channel.core {
                core.close();
                core.quiesce();
            }
        }
        match self.client.unload() {
            Ok(()) => {
                self.leaving = Some(Leaving { reply, until: Instant::now() + PATIENCE, unloaded: false });
                true
            }
            Err(error) => {
                let _ = reply.send(Err(Error::not_now(error)));
                false
            }
        }
    }

    /// The root has let go.
    pub(super) fn unloaded(&mut self) {
        if let Some(leaving) = &mut self.leaving {
            leaving.unloaded = true;
        }
    }

    /// Whether the guest has left, or has waited long enough.
    pub(super) fn has_left(&mut self) -> bool {
        let over = |leaving: &mut Leaving| leaving.unloaded || leaving.until <= Instant::now();
        let Some(leaving) = self.leaving.take_if(over) else { return false };
        let no_answer = Error::NoAnswer { seconds: PATIENCE.as_secs() };
        let _ = leaving.reply.send(if leaving.unloaded { Ok(()) } else { Err(no_answer) });
        true
    }
}
