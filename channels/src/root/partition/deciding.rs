//! Questions to policy, and refusals.

use tokio::sync::oneshot;
use vmbus_core::PAGE_SIZE;
use vmbus_core::server::{self, Answer, AskId, DeviceKey, ServerInput};
use vmbus_core::status::Status;
use vmbus_partition::RefusedWhat;

use super::super::claims::Claim;
use super::sharing::List;
use super::{Command, Partition};
use crate::channel::Admit;
use crate::error::Refusal;
use crate::event::Event;
use crate::policy::{AskedDevice, Begun, Limits, Question, Reason, Verdict};
use crate::transfer::TransferMode;

/// Faults, refusals and crashes of one partition that are reported one by one; beyond, ever more rarely: a guest can
/// repeat them for ever.
const FAULTS_REPORTED: u32 = 100;

/// What is done with a verdict.
pub(in crate::root) type Then = Box<dyn FnOnce(&mut Partition, Verdict) + Send>;

/// An answer that took its time.
pub(in crate::root) struct Answered {
    pub(super) question: Question,
    pub(super) then: Then,
    pub(super) verdict: Verdict,
    /// Whose answer it is.
    pub(super) generation: u64,
}

impl Answered {
    pub(super) fn is_about_subchannels(&self) -> bool {
        matches!(self.question, Question::Subchannels { .. })
    }
}

/// What policy said about an open that is about to happen.
pub(super) struct Admission {
    pub(super) limits: Limits,
    pub(super) claim: Claim,
    /// Others had the device open.
    pub(super) joined: bool,
}

impl Partition {
    /// Asks the policy agent, and does `then` with the limits under which it allows `question`, or with its refusal:
    /// at once, before this returns, if the agent answers at once. Refusals are the caller's to tell.
    ///
    /// At most as many questions wait as the quota says; more are refused.
    pub(super) fn ask(&mut self, question: Question, then: impl FnOnce(&mut Self, Verdict) + Send + 'static) {
        // Answers that came are counted off when they are taken from the inbox; their tasks are long over.
        while self.asking.try_join_next().is_some() {}
        if self.unanswered >= self.quotas.protocol.questions.saturating_add(self.offered.len()) {
            let refusal = Refusal {
                status: Status::QUOTA_EXCEEDED,
                reason: format!("{} questions wait for an answer already", self.unanswered),
            };
            self.root.policy.refuse(&self.who, question, &refusal, Reason::Crowd);
            return then(self, Err(refusal));
        }
        match self.root.policy.begin(&self.who, question.clone()) {
            Begun::Decided(verdict) => then(self, verdict),
            Begun::Waiting(answer) => {
                self.unanswered += 1;
                let commands = self.commands.clone();
                self.asking.spawn(async move {
                    let (verdict, generation) = answer.await;
                    let then = Box::new(then);
                    let answered = Answered { question, then, verdict, generation };
                    let _ = commands.send(Command::Answered(Box::new(answered)));
                });
            }
        }
    }

    pub(super) fn answered(&mut self, answered: Answered) {
        self.unanswered -= 1;
        let Answered { question, then, verdict, generation } = answered;
        if generation == self.root.policy.generation() {
            then(self, verdict);
        } else {
            // Another agent decides by now.
            self.ask(question, then);
        }
    }

    /// Puts a question of the protocol's state machine.
    pub(super) fn decide(&mut self, id: AskId, asked: &server::Question) {
        let what = match asked {
            server::Question::Version { .. } => RefusedWhat::Attach,
            server::Question::Offer { .. } => RefusedWhat::Open(0),
            server::Question::Share { gpadl, .. } => RefusedWhat::Share(*gpadl),
            server::Question::Open { relid, .. } => RefusedWhat::Open(*relid),
        };
        let Some(question) = self.spell_out(asked) else {
            return self.server.handle(ServerInput::Decided { id, answer: Answer::Deny(Status::FAILURE) });
        };
        let described = question.to_string();
        match *asked {
            server::Question::Version { .. } => self.ask(question, move |partition, verdict| {
                partition.decided(id, what, described, verdict.map(drop));
            }),
            server::Question::Offer { device } => self.ask(question, move |partition, verdict| {
                if let Some(offered) = partition.offered.get_mut(&device) {
                    offered.denied = verdict.is_err();
                }
                let denied = verdict.as_ref().err().cloned();
                partition.decided(id, what, described, verdict.map(drop));
                partition.connection_denied(device, denied);
            }),
            server::Question::Share { relid, device, pages, .. } => {
                self.shares.add(List::Asked(id), relid, bytes(pages));
                self.ask(question, move |partition, verdict| {
                    partition.shares.remove(List::Asked(id));
                    let denied = verdict.as_ref().err().cloned();
                    partition.decided(id, what, described, verdict.map(drop));
                    partition.connection_denied(device, denied);
                });
            }
            server::Question::Open { device, .. } => {
                self.ask_to_open(device, question, move |partition, verdict| {
                    let verdict = verdict.map(|admission| _ = partition.admitted.insert(device, admission));
                    let denied = verdict.as_ref().err().cloned();
                    partition.decided(id, what, described, verdict);
                    partition.connection_denied(device, denied);
                })
            }
        }
    }

    /// Hands an answer to the protocol's state machine, and a refusal's reason to the guest.
    fn decided(&mut self, id: AskId, what: RefusedWhat, described: String, verdict: Result<(), Refusal>) {
        let answer = match verdict {
            Ok(()) => Answer::Allow,
            Err(refusal) => {
                // A guest that may try a lower version is not turned away.
                if what != RefusedWhat::Attach || refusal.status != Status::REVISION_MISMATCH {
                    self.refuse(what, described, &refusal);
                }
                Answer::Deny(refusal.status)
            }
        };
        self.server.handle(ServerInput::Decided { id, answer });
    }

    /// Asks about an open, and then about sharing the device with those who have it open already.
    fn ask_to_open(
        &mut self,
        key: DeviceKey,
        question: Question,
        then: impl FnOnce(&mut Self, Result<Admission, Refusal>) + Send + 'static,
    ) {
        let (Some(offered), Some(device)) = (self.offered.get(&key), self.asked_device(key)) else {
            return then(self, Err(Refusal::new("the device is gone")));
        };
        let claim = self.root.claims.claim(offered.id, self.client.id, &self.client.name);
        self.ask(question, move |partition, verdict| {
            let with = claim.others();
            match verdict {
                Ok(limits) if with.is_empty() => {
                    then(partition, Ok(Admission { limits, claim, joined: false }));
                }
                Ok(limits) => partition.ask(Question::Join { device, with }, move |partition, verdict| {
                    let admission =
                        verdict.map(|more| Admission { limits: limits.stricter(more), claim, joined: true });
                    then(partition, admission);
                }),
                Err(refusal) => then(partition, Err(refusal)),
            }
        });
    }

    /// The question as policy is asked it; `None` if its device is gone.
    fn spell_out(&self, question: &server::Question) -> Option<Question> {
        Some(match *question {
            server::Question::Version { version, features, client_id } => {
                Question::Version { version, features: features.bits(), client_id }
            }
            server::Question::Offer { device } => Question::Offer { device: self.asked_device(device)? },
            server::Question::Open { device, ring_pages, .. } => {
                Question::Open { device: self.asked_device(device)?, ring_bytes: bytes(ring_pages) }
            }
            server::Question::Share { relid, device, pages, .. } => Question::Share {
                device: Some(self.asked_device(device)?),
                bytes: bytes(pages),
                held: self.shares.held(relid),
                mode: TransferMode::Share,
                before_open: !self.open.contains_key(&relid),
            },
        })
    }

    /// Offers sub-channels that a session wants, if policy allows so many.
    pub(super) fn ask_for_subchannels(
        &mut self,
        relid: u32,
        open: u64,
        count: u16,
        admit: Admit,
        reply: oneshot::Sender<Result<(), Refusal>>,
    ) {
        let device = self.open.get(&relid).and_then(|channel| self.asked_device(channel.device));
        let Some(device) = device else {
            let _ = reply.send(Err(Refusal::new("the channel is closed")));
            return;
        };
        let question = Question::Subchannels { device, count: count.into() };
        self.ask(question, move |partition, verdict| {
            let offered = verdict.and_then(|_| partition.offer_subchannels(relid, open, count, &admit));
            let _ = reply.send(offered);
        });
    }

    /// How policy is told of a device.
    pub(super) fn asked_device(&self, key: DeviceKey) -> Option<AskedDevice> {
        let offered = self.offered.get(&key)?;
        let device = &offered.device;
        Some(AskedDevice {
            name: device.offer.name.as_str().into(),
            class: device.offer.class,
            instance: device.instance,
            subchannel: offered.subchannel.as_ref().map_or(0, |subchannel| subchannel.index),
        })
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

/// Bytes of so many pages.
pub(super) fn bytes(pages: usize) -> u64 {
    u64::try_from(pages.saturating_mul(PAGE_SIZE)).unwrap_or(u64::MAX)
}
