//! Questions to the guest's own policy.

use alloc::collections::BTreeMap;

use super::{Answer, AskId, Client, ClientAction, OfferInfo};
use crate::{FeatureFlags, Version};

/// Who decides what the guest does on the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Nobody: everything that the guest is asked or told to do is done.
    #[default]
    AllowAll,
    /// An agent: the client asks ([`ClientAction::Ask`]) and waits for each answer.
    Ask,
}

/// What the guest's policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// May we connect with this version? Refused, lower ones are tried.
    Version {
        /// The version.
        version: Version,
        /// Features that we would ask for.
        features: FeatureFlags,
    },
    /// May this channel be used? Refused, it is given back to the host at once.
    Offer(OfferInfo),
    /// May these pages be shared with the host?
    Share {
        /// The channel.
        relid: u32,
        /// The page list.
        gpadl: u32,
        /// Number of pages.
        pages: usize,
    },
    /// May this channel be opened?
    Open {
        /// The channel.
        relid: u32,
        /// As `open` returned it.
        open_id: u32,
    },
}

/// What a question is about, in the client's own terms.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject {
    Version,
    /// `initial`: came before ALLOFFERS_DELIVERED, which is not reported before all of these are decided.
    Offer {
        relid: u32,
        initial: bool,
    },
    Share {
        gpadl: u32,
    },
    Open {
        relid: u32,
    },
}

/// Questions that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Questions {
    pub(super) last: u64,
    pub(super) waiting: BTreeMap<AskId, Subject>,
    pub(super) initial_offers: usize,
}

impl Questions {
    fn remove(&mut self, id: AskId) -> Option<Subject> {
        let subject = self.waiting.remove(&id)?;
        if let Subject::Offer { initial: true, .. } = subject {
            self.initial_offers -= 1;
        }
        Some(subject)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn initial_offers(&self) -> usize {
        self.initial_offers
    }

    /// What a question is about.
    #[cfg(feature = "test-utils")]
    pub(super) fn subject(&self, id: AskId) -> Option<Subject> {
        self.waiting.get(&id).copied()
    }

    pub(super) fn clear(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }
}

impl Client {
    /// Takes our policy's answer. One that comes for a thing that is gone meanwhile is ignored.
    pub fn decided(&mut self, id: AskId, answer: Answer) {
        self.watch_answer(id, answer);
        let Some(subject) = self.questions.remove(id) else { return };
        match subject {
            Subject::Version => self.version_decided(answer),
            Subject::Offer { relid, .. } => {
                self.offer_decided(relid, answer);
                self.report_offers_delivered();
            }
            Subject::Share { gpadl } => self.share_decided(gpadl, answer),
            Subject::Open { relid } => self.open_decided(relid, answer),
        }
    }

    /// Begins a question. The caller notes its name with the thing asked about, then calls
    /// [`Self::allow_if_nobody_decides`].
    pub(super) fn ask(&mut self, subject: Subject, question: Question) -> AskId {
        self.questions.last += 1;
        let id = AskId(self.questions.last);
        if let Subject::Offer { initial: true, .. } = subject {
            self.questions.initial_offers += 1;
        }
        self.questions.waiting.insert(id, subject);
        if self.config.policy == Policy::Ask {
            self.act(ClientAction::Ask { id, question });
        }
        id
    }

    /// Answers a question that nobody is to be asked.
    pub(super) fn allow_if_nobody_decides(&mut self, id: AskId) {
        if self.config.policy == Policy::AllowAll {
            self.decided(id, Answer::Allow);
        }
    }

    pub(super) fn withdraw_question(&mut self, id: AskId) {
        self.questions.remove(id);
        self.report_offers_delivered();
    }
}
