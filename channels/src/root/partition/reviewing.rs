//! Asking again about everything that is in force, because another policy agent decides or something was revoked.
//! What is denied now ends, other limits hold from now on, and nothing else notices.

use std::collections::VecDeque;

use vmbus_core::server::{DeviceKey, ServerInput};
use vmbus_partition::{LinkError, RefusedWhat};

use super::deciding::Answered;
use super::{Command, Partition};
use crate::error::Refusal;
use crate::policy::{Begun, Limits, Question, Revoke, Verdict};
use crate::transfer::TransferMode;

/// What is asked about again. One question at a time is open: many at once would be refused for their number.
#[derive(Default)]
pub(super) struct Review {
    left: VecDeque<InForce>,
    /// An answer is awaited; whoever gets it goes on.
    asking: bool,
}

/// Something that policy allowed once, or denied.
#[derive(Clone, Copy)]
enum InForce {
    Attached,
    Version,
    Offer(DeviceKey),
    Shares { relid: u32, open: u64 },
    Open { relid: u32, open: u64 },
    Joined { relid: u32, open: u64 },
}

impl Partition {
    /// Asks again about everything, or about what is covered by `only`.
    pub(super) fn review(&mut self, only: Option<&Revoke>) {
        let mut all: VecDeque<InForce> = [InForce::Attached, InForce::Version].into();
        all.extend(self.offered.keys().copied().map(InForce::Offer));
        for (&relid, channel) in &self.open {
            let open = channel.open;
            all.push_back(InForce::Open { relid, open });
            all.push_back(InForce::Shares { relid, open });
            if channel.joined {
                all.push_back(InForce::Joined { relid, open });
            }
        }
        if let Some(only) = only {
            all.retain(|item| {
                self.question_of(*item).is_some_and(|question| only.covers(&self.who, &question))
            });
            all.append(&mut self.review.left);
        }
        self.review.left = all;
        if !self.review.asking {
            self.go_on_reviewing();
        }
    }

    fn go_on_reviewing(&mut self) {
        while let Some(item) = self.review.left.pop_front() {
            let Some(question) = self.question_of(item) else { continue };
            match self.root.policy.begin(&self.who, question.clone()) {
                Begun::Decided(verdict) => self.reviewed(item, &question, verdict),
                Begun::Waiting(answer) => {
                    self.review.asking = true;
                    self.unanswered += 1;
                    let commands = self.commands.clone();
                    self.asking.spawn(async move {
                        let (verdict, generation) = answer.await;
                        let then = Box::new({
                            let question = question.clone();
                            move |partition: &mut Self, verdict| {
                                partition.reviewed(item, &question, verdict);
                                partition.review.asking = false;
                                partition.go_on_reviewing();
                            }
                        });
                        let answered = Answered { question, then, verdict, generation };
                        let _ = commands.send(Command::Answered(Box::new(answered)));
                    });
                    return;
                }
            }
        }
    }

    /// What is to be asked; `None` if it is not in force any more.
    fn question_of(&self, item: InForce) -> Option<Question> {
        Some(match item {
            InForce::Attached => Question::Attach { memory: self.end.memory().size() },
            InForce::Version => {
                let connection = self.server.connection()?;
                Question::Version {
                    version: connection.version,
                    features: connection.features.bits(),
                    client_id: connection.client_id,
                }
            }
            InForce::Offer(device) => {
                let offered = self.offered.get(&device)?;
                if offered.withdrawn || offered.rescinded {
                    return None;
                }
                Question::Offer { device: self.asked_device(device)? }
            }
            InForce::Open { relid, open } => {
                let (device, ring_bytes) = self.in_use(relid, open)?;
                Question::Open { device: self.asked_device(device)?, ring_bytes }
            }
            InForce::Shares { relid, open } => Question::Share {
                device: self.asked_device(self.in_use(relid, open)?.0),
                bytes: self.shares.held(relid),
                held: 0,
                mode: TransferMode::Share,
                before_open: true,
            },
            InForce::Joined { relid, open } => {
                let (device, _) = self.in_use(relid, open)?;
                let with = self.open.get(&relid)?.claim.as_ref()?.others();
                if with.is_empty() {
                    return None;
                }
                Question::Join { device: self.asked_device(device)?, with }
            }
        })
    }

    /// The device and the size of the rings of a channel that is open.
    fn in_use(&self, relid: u32, open: u64) -> Option<(DeviceKey, u64)> {
        let channel = self.open.get(&relid)?;
        let is_open = channel.open == open && !channel.closing && !channel.ended;
        let rescinded = self.offered.get(&channel.device).is_none_or(|offered| offered.rescinded);
        (is_open && !rescinded).then_some((channel.device, channel.ring_bytes))
    }

    fn reviewed(&mut self, item: InForce, question: &Question, verdict: Verdict) {
        match (item, verdict) {
            (InForce::Attached, Ok(limits)) => self.limit_quotas(&limits),
            (InForce::Attached | InForce::Version, Err(refusal)) => self.evict(question, &refusal),
            (InForce::Offer(device), Ok(_)) => self.show_again(device),
            (InForce::Offer(device), Err(refusal)) => self.take_back(device, question, &refusal),
            (InForce::Open { relid, open }, Ok(limits)) => self.limit_channel(relid, open, limits),
            (
                InForce::Open { relid, open }
                | InForce::Shares { relid, open }
                | InForce::Joined { relid, open },
                Err(refusal),
            ) => {
                if self.in_use(relid, open).is_some() {
                    self.end_channel(relid, question.to_string(), &refusal);
                }
            }
            (InForce::Version | InForce::Shares { .. } | InForce::Joined { .. }, Ok(_)) => {}
        }
    }

    /// Ends the whole partition, telling it why.
    fn evict(&mut self, question: &Question, refusal: &Refusal) {
        self.refuse(RefusedWhat::Attach, question.to_string(), refusal);
        let _ = self.end.flush();
        self.undelivered.get_or_insert(LinkError::Refused { reason: refusal.reason.clone() });
    }

    /// A device that was denied may be seen now: it is proposed anew.
    fn show_again(&mut self, device: DeviceKey) {
        if self.offered.get(&device).is_some_and(|offered| offered.denied && offered.subchannel.is_none()) {
            self.rescind(device);
        }
    }

    /// A device that was allowed may not be seen any more. When the guest has released it, it is proposed anew, and
    /// denied.
    fn take_back(&mut self, device: DeviceKey, question: &Question, refusal: &Refusal) {
        let Some(offered) = self.offered.get(&device) else { return };
        if offered.denied {
            return;
        }
        let open = self.open.iter().find(|(_, channel)| channel.device == device).map(|(&relid, _)| relid);
        self.refuse(RefusedWhat::Open(open.unwrap_or(0)), question.to_string(), refusal);
        self.rescind(device);
    }

    /// Closes an open channel, telling the guest why, by taking its device back for a moment.
    pub(super) fn end_channel(&mut self, relid: u32, described: String, refusal: &Refusal) {
        let Some(channel) = self.open.get(&relid) else { return };
        let device = channel.device;
        self.refuse(RefusedWhat::Open(relid), described, refusal);
        self.rescind(device);
    }

    /// Other limits hold for an open channel from now on.
    fn limit_channel(&mut self, relid: u32, open: u64, limits: Limits) {
        let Some(channel) = self.open.get_mut(&relid).filter(|channel| channel.open == open) else { return };
        if channel.limits != limits {
            channel.core.limit_incoming(&limits, self.root.policy.now(), self.root.spin);
            channel.limits = limits;
        }
    }

    /// Rescinds a device, once. It comes back when the guest has let go of it, unless it was withdrawn.
    pub(super) fn rescind(&mut self, device: DeviceKey) {
        let Some(offered) = self.offered.get_mut(&device).filter(|offered| !offered.rescinded) else {
            return;
        };
        offered.rescinded = true;
        // A sub-channel comes back if the session of the primary asks for it again.
        offered.withdrawn |= offered.subchannel.is_some();
        self.server.handle(ServerInput::Rescind { device });
    }
}
