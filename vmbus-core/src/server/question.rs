//! Questions to policy, and the way from an answer back to what it was about.

use alloc::collections::BTreeMap;

use super::{DeviceKey, Quota, Server, ServerAction};
use crate::{FeatureFlags, Guid, Status, Version};

/// Name of a question; never used twice by one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// What policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// May the guest connect with this version? Refused for lack of resources
    /// ([`Status::INSUFFICIENT_RESOURCES`]) it is told so; refused otherwise it may try a lower version.
    Version {
        /// The version.
        version: Version,
        /// Features that would be granted.
        features: FeatureFlags,
        /// Who the guest says it is (6.0 with the client-id feature).
        client_id: Option<Guid>,
    },
    /// May the guest see this device? Refused, it is never shown during this connection.
    Offer {
        /// The device.
        device: DeviceKey,
    },
    /// May the guest share these pages with the device?
    Share {
        /// The channel.
        relid: u32,
        /// Its device.
        device: DeviceKey,
        /// The page list.
        gpadl: u32,
        /// Number of pages.
        pages: usize,
    },
    /// May the guest open this channel?
    Open {
        /// The channel.
        relid: u32,
        /// Its device.
        device: DeviceKey,
        /// The guest's name for this open.
        open_id: u32,
        /// Pages of both rings.
        ring_pages: usize,
    },
}

/// What policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may.
    Allow,
    /// It may not, and is told this status.
    Deny(Status),
}

/// What a question is about, in the server's own terms.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject {
    Version,
    /// `initial`: asked for REQUESTOFFERS, so ALLOFFERS_DELIVERED waits for it.
    Offer {
        device: DeviceKey,
        initial: bool,
    },
    Share {
        relid: u32,
        gpadl: u32,
    },
    Open {
        device: DeviceKey,
    },
}

/// Questions that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Questions {
    pub(super) last: u64,
    pub(super) waiting: BTreeMap<AskId, Subject>,
    /// Those about offers; the others are the guest's doing and bounded by a quota.
    pub(super) offers: usize,
    /// Those about offers that ALLOFFERS_DELIVERED waits for.
    pub(super) initial_offers: usize,
}

impl Questions {
    fn insert(&mut self, subject: Subject) -> AskId {
        self.last += 1;
        let id = AskId(self.last);
        if let Subject::Offer { initial, .. } = subject {
            self.offers += 1;
            self.initial_offers += usize::from(initial);
        }
        self.waiting.insert(id, subject);
        id
    }

    fn remove(&mut self, id: AskId) -> Option<Subject> {
        let subject = self.waiting.remove(&id)?;
        if let Subject::Offer { initial, .. } = subject {
            self.offers -= 1;
            self.initial_offers -= usize::from(initial);
        }
        Some(subject)
    }

    /// What a question is about.
    #[cfg(feature = "test-utils")]
    pub(super) fn subject(&self, id: AskId) -> Option<Subject> {
        self.waiting.get(&id).copied()
    }

    pub(super) fn clear(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }

    pub(super) fn caused_by_guest(&self) -> usize {
        self.waiting.len() - self.offers
    }

    pub(super) fn initial_offers(&self) -> usize {
        self.initial_offers
    }
}

impl Server {
    /// Asks for what the guest caused. `None`: too many questions wait already; the fault is reported and the caller
    /// refuses.
    pub(super) fn ask(&mut self, subject: Subject, question: Question) -> Option<AskId> {
        let limit = self.config.quotas.questions;
        if self.questions.caused_by_guest() >= limit {
            self.over_quota(Quota::Questions, limit);
            return None;
        }
        let id = self.questions.insert(subject);
        self.act(ServerAction::Ask { id, question });
        Some(id)
    }

    /// Asks whether a device may be shown. The number of these is bounded by the number of devices.
    pub(super) fn ask_offer(&mut self, device: DeviceKey, initial: bool) -> AskId {
        let id = self.questions.insert(Subject::Offer { device, initial });
        self.act(ServerAction::Ask { id, question: Question::Offer { device } });
        id
    }

    /// Takes a question back: what it was about is gone.
    pub(super) fn withdraw_question(&mut self, id: AskId) {
        if let Some(Subject::Offer { initial: true, .. }) = self.questions.remove(id) {
            self.offers_delivered();
        }
    }

    pub(super) fn decided(&mut self, id: AskId, answer: Answer) {
        let Some(subject) = self.questions.remove(id) else { return };
        match subject {
            Subject::Version => self.version_decided(answer),
            Subject::Offer { device, initial } => {
                self.offer_decided(device, answer);
                if initial {
                    self.offers_delivered();
                }
            }
            Subject::Share { relid, gpadl } => self.share_decided(relid, gpadl, answer),
            Subject::Open { device } => self.open_decided(device, answer),
        }
    }
}
