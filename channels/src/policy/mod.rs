//! Who decides what partitions may do (`policy.md`).
//!
//! A [`PolicyAgent`] is asked before anything that concerns somebody else happens on the bus: the root's agent before
//! a guest attaches, sees, opens or shares something, a guest's own agent before that guest does. Both ask, so the
//! stricter of both wins. What an agent is told is an [`Asked`], what it says a [`Decision`], and both together with
//! the time it took are a [`Decided`], one for each decision.
//!
//! Here are the questions, the answers and the asking. What is done with an answer is where the thing asked about is.

mod agents;
mod asking;
mod decision;
mod log;
mod question;
mod revoking;
mod rules;
mod text;

use async_trait::async_trait;

pub use self::agents::{AllowAll, DenyAll};
pub(crate) use self::asking::{Asker, AskerSettings, Begun, Verdict};
pub use self::asking::{Decided, Reason};
pub use self::decision::{Decision, Deliver, Limits, Priority, QuotaLimits, Rate};
pub use self::log::{Difference, Logged, Replay, replay};
pub use self::question::{
    Asked, AskedDevice, Direction, End, PartitionKind, PeerProcess, Question, WallTime, Who,
};
pub use self::revoking::Revoke;
pub(crate) use self::revoking::Revoked;
pub use self::rules::{Rules, RulesError};

/// Decides. Shared by all partitions of a root, asked from any thread, several questions at a time.
///
/// Only what is asked about waits for the answer. An agent that says nothing for a while
/// ([`RootBuilder::policy_deadline`](crate::RootBuilder::policy_deadline)), or panics, has denied. One that answers
/// without waiting for anything costs no task; one that blocks its thread blocks others.
///
/// An agent whose decision depends on nothing but what it is asked decides the same when its log is replayed: time,
/// too, is in the question ([`Asked::at`]).
#[async_trait]
pub trait PolicyAgent: Send + Sync + 'static {
    /// Decides one question.
    async fn decide(&self, asked: &Asked) -> Decision;

    /// When it may decide otherwise than at `after` about the same, if it knows: everything in force is asked about
    /// again then.
    fn next_change(&self, after: WallTime) -> Option<WallTime> {
        let _ = after;
        None
    }

    /// A name for logs.
    fn name(&self) -> &str {
        "agent"
    }
}

#[async_trait]
impl<A: PolicyAgent + ?Sized> PolicyAgent for std::sync::Arc<A> {
    async fn decide(&self, asked: &Asked) -> Decision {
        (**self).decide(asked).await
    }

    fn next_change(&self, after: WallTime) -> Option<WallTime> {
        (**self).next_change(after)
    }

    fn name(&self) -> &str {
        (**self).name()
    }
}
