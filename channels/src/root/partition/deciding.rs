//! Questions to policy, and refusals.

use vmbus_core::server::{Answer, AskId, Question, ServerInput};
use vmbus_partition::RefusedWhat;

use super::Partition;
use crate::error::Refusal;
use crate::event::Event;

/// Faults, refusals and crashes of one partition that are reported one by one; beyond, ever more rarely: a guest can
/// repeat them for ever.
const FAULTS_REPORTED: u32 = 100;

impl Partition {
    pub(super) fn decide(&mut self, id: AskId, question: &Question) {
        let answer = match self.root.policy.decide(&self.client, question) {
            Ok(()) => Answer::Allow,
            Err(refusal) => {
                let what = match question {
                    Question::Version { .. } => RefusedWhat::Attach,
                    Question::Offer { .. } => RefusedWhat::Open(0),
                    Question::Share { gpadl, .. } => RefusedWhat::Share(*gpadl),
                    Question::Open { relid, .. } => RefusedWhat::Open(*relid),
                };
                self.refuse(what, format!("{question:?}"), &refusal);
                Answer::Deny(refusal.status)
            }
        };
        self.server.handle(ServerInput::Decided { id, answer });
    }

    /// Counts something that went wrong; whether it is to be reported.
    pub(super) fn is_worth_telling(&mut self) -> bool {
        self.faults = self.faults.saturating_add(1);
        self.faults <= FAULTS_REPORTED || self.faults.is_power_of_two()
    }

    pub(super) fn refuse(&mut self, what: RefusedWhat, described: String, refusal: &Refusal) {
        let told = vmbus_partition::Refusal { what, code: refusal.status.0, reason: refusal.reason.clone() };
        let _ = self.end.refuse(&told);
        if !self.is_worth_telling() {
            return;
        }
        let (client, reason) = (self.client.clone(), refusal.reason.clone());
        self.root.tell(Event::Refused { client, what: described, reason });
    }
}
