//! A guest's own policy agent, as its builder takes it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use vmbus_partition::GuestEnd;

use super::GuestBuilder;
use crate::policy::{Asker, AskerSettings, Decided, End, PartitionKind, PolicyAgent, WallTime, Who};

/// Is shown each decision.
type Observer = Arc<dyn Fn(&Decided) + Send + Sync>;

/// Nobody is asked without an agent.
#[derive(Clone, Default)]
pub(super) struct GuestPolicy {
    settings: AskerSettings,
    asks: bool,
    observer: Option<Observer>,
}

impl GuestBuilder {
    /// Who decides what this guest does on the bus: with which versions it attaches, which devices it takes notice of,
    /// what it opens and shares, how fast it sends. Without this it does what it is told to. The root has an agent of
    /// its own, and the stricter of both wins.
    pub fn policy(mut self, agent: impl PolicyAgent) -> Self {
        self.policy.settings.agent = Arc::new(agent);
        self.policy.asks = true;
        self
    }

    /// How long the policy agent may take for an answer; 5 s without this. Saying nothing is denying.
    pub fn policy_deadline(mut self, deadline: Duration) -> Self {
        self.policy.settings.deadline = deadline;
        self
    }

    /// Where questions to the policy agent have their time from; the system's clock without this.
    pub fn policy_clock(mut self, clock: impl Fn() -> WallTime + Send + Sync + 'static) -> Self {
        self.policy.settings.clock = Arc::new(clock);
        self
    }

    /// Is shown each decision of the policy agent. Must not block.
    pub fn on_decision(mut self, observer: impl Fn(&Decided) + Send + Sync + 'static) -> Self {
        self.policy.observer = Some(Arc::new(observer));
        self
    }
}

/// The agent and whom it is told of.
pub(super) struct OwnPolicy {
    pub(super) asker: Arc<Asker>,
    pub(super) who: Who,
}

impl GuestPolicy {
    /// `None`: nobody is asked.
    pub(super) fn start(self, end: &dyn GuestEnd) -> Option<OwnPolicy> {
        let Self { settings, asks: true, observer } = self else { return None };
        let info = end.info();
        let who = Who {
            id: info.id,
            name: info.name.as_str().into(),
            kind: if end.socket().is_some() { PartitionKind::Process } else { PartitionKind::Local },
            process: None,
        };
        let asker = Asker::new(settings, End::Guest, move |decided| {
            tracing::debug!(seq = decided.seq, "{decided}");
            if let Some(observer) = &observer {
                observer(&decided);
            }
        });
        Some(OwnPolicy { asker: Arc::new(asker), who })
    }
}

impl fmt::Debug for GuestPolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GuestPolicy").field("asks", &self.asks).finish_non_exhaustive()
    }
}
