//! Questions to the guest's own policy agent.

use std::sync::Arc;

use tokio::task::JoinSet;
use vmbus_core::PAGE_SIZE;
use vmbus_core::client::{self, Answer, AskId};
use vmbus_core::status::Status;

use super::{Command, Task};
use crate::error::{Error, Refusal};
use crate::policy::{AskedDevice, Begun, Limits, Question, Verdict};
use crate::quotas::count;
use crate::transfer::TransferMode;

/// Questions that may wait for an answer; there are no more channels than this has room for offers and opens of.
const QUESTIONS: usize = 8192;

/// What became of a question that took its time.
pub(in crate::guest) struct Answered {
    /// Which root it was asked about: each begins to count its questions anew.
    root: u64,
    id: AskId,
    about: About,
    verdict: Verdict,
}

/// What a question is about, for telling why it was denied.
#[derive(Clone, Copy)]
enum About {
    Version,
    Offer,
    Share(u32),
    Open(u32),
}

impl Task {
    /// Whether we may join at all.
    pub(super) async fn may_attach(&mut self) -> Result<(), Error> {
        let Some(policy) = &self.policy else { return Ok(()) };
        let question = Question::Attach { memory: self.end.memory().size() };
        policy.asker.ask(&policy.who, question).await.map(drop).map_err(Error::Refused)
    }

    pub(super) fn decide(&mut self, id: AskId, question: &client::Question) {
        let Some(policy) = &self.policy else { return };
        let (about, question) = match *question {
            client::Question::Version { version, features } => (
                About::Version,
                Some(Question::Version { version, features: features.bits(), client_id: None }),
            ),
            client::Question::Offer(offer) => {
                let device = AskedDevice {
                    name: "".into(),
                    class: offer.class,
                    instance: offer.instance,
                    subchannel: offer.subchannel_index,
                };
                (About::Offer, Some(Question::Offer { device }))
            }
            client::Question::Share { relid, pages, .. } => {
                let bytes = count(pages).saturating_mul(count(PAGE_SIZE));
                let device = self.asked_device(relid);
                let question = device.map(|device| Question::Share {
                    device: Some(device),
                    bytes,
                    held: 0,
                    mode: TransferMode::Share,
                    before_open: true,
                });
                (About::Share(relid), question)
            }
            client::Question::Open { relid, .. } => {
                let pages = self.channels.get(&relid).map_or(0, |channel| 2 * channel.downstream);
                let ring_bytes = count(pages).saturating_mul(count(PAGE_SIZE));
                let device = self.asked_device(relid);
                (About::Open(relid), device.map(|device| Question::Open { device, ring_bytes }))
            }
        };
        let Some(question) = question.filter(|_| self.asking.len() < QUESTIONS) else {
            return self.decided(id, about, Err(Refusal::new("too many questions, or the device is gone")));
        };
        match policy.asker.begin(&policy.who, question) {
            Begun::Decided(verdict) => self.decided(id, about, verdict),
            Begun::Waiting(answer) => {
                let (commands, root) = (self.commands.clone(), self.roots);
                self.asking.spawn(async move {
                    let (verdict, _generation) = answer.await;
                    let _ = commands.send(Command::Answered(Box::new(Answered { root, id, about, verdict })));
                });
            }
        }
    }

    pub(super) fn answered(&mut self, answered: Answered) {
        while self.asking.try_join_next().is_some() {}
        let Answered { root, id, about, verdict } = answered;
        if root == self.roots {
            self.decided(id, about, verdict);
        }
    }

    fn decided(&mut self, id: AskId, about: About, verdict: Verdict) {
        let answer = match verdict {
            Ok(limits) => {
                if let About::Open(relid) = about
                    && let Some(channel) = self.channels.get_mut(&relid)
                {
                    channel.limits = limits;
                }
                Answer::Allow
            }
            Err(refusal) => {
                let status = refusal.status;
                match about {
                    About::Version => self.denied_version = Some(refusal),
                    About::Share(relid) | About::Open(relid) => self.reason(relid, refusal.reason),
                    About::Offer => {}
                }
                Answer::Deny(status)
            }
        };
        self.client.decided(id, answer);
    }

    fn asked_device(&self, relid: u32) -> Option<AskedDevice> {
        let offers = self.offers.borrow();
        let device = offers.by_relid(relid)?;
        Some(AskedDevice {
            name: "".into(),
            class: device.class,
            instance: device.instance,
            subchannel: device.subchannel_index,
        })
    }

    /// Lets our own limits hold for a channel that has just opened.
    pub(super) fn limit(&self, core: &Arc<crate::channel::Core>, limits: &Limits) {
        if let Some(policy) = &self.policy
            && *limits != Limits::default()
        {
            let spin = crate::channel::spin_for(limits.priority, self.spin);
            core.set_spin(spin);
            core.limit_outgoing(limits, policy.asker.now());
        }
    }

    /// Why no version was agreed on, if it was our own doing.
    pub(super) fn no_version(&mut self, otherwise: Error) -> Error {
        self.denied_version.take().map_or(otherwise, Error::Refused)
    }
}

/// Tasks that wait for our agent. They end with the guest.
pub(super) type Asking = JoinSet<()>;

/// What the host's answer would have been, for an open that we denied ourselves.
pub(super) fn denied(status: Status, reason: Option<String>) -> Error {
    let reason = reason.unwrap_or_else(|| status.to_string());
    Error::Refused(Refusal { status, reason })
}
