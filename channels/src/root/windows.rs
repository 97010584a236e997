//! Asking again when the policy agent changes its mind with time: a window of its rules opens or closes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::{Command, Inner, lock};

/// The clock on the wall may be set; whoever waits for a moment looks at least this often whether it has come.
const LOOK: Duration = Duration::from_secs(60);

/// The task that waits for the next change. Ends with the root.
#[derive(Debug, Default)]
pub(super) struct Watch(Option<AbortHandle>);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

impl Inner {
    /// Waits for changes of the present agent's mind, if it knows of any, instead of another's. Without a runtime
    /// there are no partitions yet, and the first that attaches does this.
    pub(super) fn watch_windows(self: &Arc<Self>) {
        let changes = self.policy.next_change().is_some();
        let task = changes.then(Handle::try_current).and_then(Result::ok).map(|runtime| {
            runtime.spawn(wait_and_review(Arc::downgrade(self), self.policy.generation())).abort_handle()
        });
        *lock(&self.windows) = Watch(task);
    }

    /// The same if nobody does so yet.
    pub(super) fn begin_to_watch_windows(self: &Arc<Self>) {
        if lock(&self.windows).0.is_none() {
            self.watch_windows();
        }
    }
}

async fn wait_and_review(root: Weak<Inner>, generation: u64) {
    let next = |root: &Weak<Inner>| root.upgrade().and_then(|root| root.policy.next_change());
    while let Some(moment) = next(&root) {
        loop {
            let Some(now) = root.upgrade().map(|root| root.policy.now()) else { return };
            if now >= moment {
                break;
            }
            tokio::time::sleep(Duration::from_micros(moment.micros - now.micros).min(LOOK)).await;
        }
        let Some(root) = root.upgrade() else { return };
        tracing::info!(generation, "a time window of the policy opens or closes");
        root.command_all(|| Command::Review(None));
    }
}
