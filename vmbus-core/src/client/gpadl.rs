//! The guest's page lists at the host.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use zerocopy::little_endian::U32;

use super::channel::ChannelState;
use super::policy::Subject;
use super::watch::For;
use super::{Answer, AskId, Client, ClientAction, ClientError, Failure, Fault, Question};
use crate::Status;
use crate::message::{GpadlCreated, GpadlTeardown};
use crate::pages::PageRanges;

#[derive(Debug)]
pub(super) enum State {
    /// Our policy decides whether the pages may be shared.
    Asked { asked: AskId, pages: PageRanges },
    /// The messages were posted. `cancelled`: to be torn down as soon as it is created.
    Creating { cancelled: bool },
    /// The host may use the pages.
    Created,
    /// GPADL_TEARDOWN was posted.
    TearingDown,
}

/// All page lists of a connection. Names are never used twice before all were used once.
#[derive(Debug, Default)]
pub(super) struct Gpadls {
    pub(super) by_name: BTreeMap<u32, (u32, State)>,
    /// Channel id and name of each.
    by_channel: BTreeSet<(u32, u32)>,
    pub(super) last_name: u32,
    /// All names were used once.
    pub(super) wrapped: bool,
}

impl Gpadls {
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(super) fn is_created(&self, relid: u32, gpadl: u32) -> bool {
        matches!(self.by_name.get(&gpadl), Some((owner, State::Created)) if *owner == relid)
    }

    /// A list of a channel that the host has not accepted or refused yet.
    pub(super) fn unfinished(&self, relid: u32) -> Option<u32> {
        let mut lists = self.by_channel.range((relid, 0)..=(relid, u32::MAX));
        let unfinished = lists.find(|(_, gpadl)| {
            let state = self.by_name.get(gpadl).map(|(_, state)| state);
            matches!(state, Some(State::Asked { .. } | State::Creating { .. }))
        });
        unfinished.map(|(_, gpadl)| *gpadl)
    }

    pub(super) fn are_left(&self, relid: u32) -> bool {
        self.by_channel.range((relid, 0)..=(relid, u32::MAX)).next().is_some()
    }

    fn of_channel(&self, relid: u32) -> Vec<u32> {
        self.by_channel.range((relid, 0)..=(relid, u32::MAX)).map(|(_, gpadl)| *gpadl).collect()
    }

    fn state_mut(&mut self, gpadl: u32) -> Option<&mut State> {
        self.by_name.get_mut(&gpadl).map(|(_, state)| state)
    }

    pub(super) fn insert(&mut self, relid: u32, gpadl: u32, state: State) {
        self.by_channel.insert((relid, gpadl));
        self.by_name.insert(gpadl, (relid, state));
    }

    fn remove(&mut self, gpadl: u32) -> Option<(u32, State)> {
        let (relid, state) = self.by_name.remove(&gpadl)?;
        self.by_channel.remove(&(relid, gpadl));
        Some((relid, state))
    }

    /// States by name, with the channel of each.
    #[cfg(feature = "test-utils")]
    pub(super) fn states(&self) -> BTreeMap<u32, (u32, &'static str)> {
        let state = |state: &State| match state {
            State::Asked { .. } => "Asked",
            State::Creating { cancelled: false } => "Creating",
            State::Creating { cancelled: true } => "GivenUp",
            State::Created => "Created",
            State::TearingDown => "TearingDown",
        };
        self.by_name.iter().map(|(gpadl, (relid, now))| (*gpadl, (*relid, state(now)))).collect()
    }

    /// A free name, not 0.
    fn next_name(&mut self) -> Option<u32> {
        // More lists than this would need more memory than a page list of one page each leaves.
        const TRIES: u32 = 1 << 16;
        for _ in 0..TRIES {
            self.last_name = self.last_name.checked_add(1).unwrap_or_else(|| {
                self.wrapped = true;
                1
            });
            if !self.by_name.contains_key(&self.last_name) {
                return Some(self.last_name);
            }
        }
        None
    }

    /// Whether a list of this name may have been on its way to the host once.
    pub(super) fn ever_was(&self, gpadl: u32) -> bool {
        gpadl != 0 && (self.wrapped || gpadl <= self.last_name)
    }
}

impl Client {
    /// Shares pages with the device of a channel. Ends in [`ClientAction::GpadlCreated`]; the pages belong to the host
    /// too until [`ClientAction::GpadlTorndown`], [`ClientAction::Rescinded`] or the end of the connection.
    pub fn create_gpadl(&mut self, relid: u32, pages: &PageRanges) -> Result<u32, ClientError> {
        self.watch("create_gpadl()", For::NewGpadl);
        self.talking()?;
        let channel = self.channels.get(relid)?;
        match channel.state() {
            state if channel.is_reserved() => return Err(ClientError::ChannelState { relid, state }),
            ChannelState::Closed | ChannelState::Opening | ChannelState::Open => {}
            state @ (ChannelState::Proposed
            | ChannelState::OpenReserved
            | ChannelState::ClosingReserved
            | ChannelState::Rescinded) => {
                return Err(ClientError::ChannelState { relid, state });
            }
        }
        let gpadl = self.gpadls.next_name().ok_or(ClientError::TooManyGpadls)?;
        let question = Question::Share { relid, gpadl, pages: pages.page_count() };
        let asked = self.ask(Subject::Share { gpadl }, question);
        self.gpadls.insert(relid, gpadl, State::Asked { asked, pages: pages.clone() });
        self.allow_if_nobody_decides(asked);
        Ok(gpadl)
    }

    pub(super) fn share_decided(&mut self, gpadl: u32, answer: Answer) {
        let Some((relid, State::Asked { pages, .. })) = self.gpadls.remove(gpadl) else { return };
        match answer {
            Answer::Allow => {
                self.gpadls.insert(relid, gpadl, State::Creating { cancelled: false });
                for message in pages.messages(relid, gpadl) {
                    self.post(message);
                }
            }
            Answer::Deny(status) => {
                self.act(ClientAction::GpadlCreated { relid, gpadl, result: Err(Failure::Denied(status)) });
            }
        }
    }

    pub(super) fn gpadl_created(&mut self, message: &GpadlCreated) {
        let (relid, gpadl) = (message.relid.get(), message.gpadl.get());
        let status = Status(message.status.get());
        let cancelled = match self.gpadls.by_name.get(&gpadl) {
            Some((owner, State::Creating { cancelled })) if *owner == relid => *cancelled,
            Some(_) | None => return self.unexpected_gpadl("GPADL_CREATED", gpadl),
        };
        let result = match (status.is_success(), cancelled) {
            (true, false) => {
                if let Some(state) = self.gpadls.state_mut(gpadl) {
                    *state = State::Created;
                }
                Ok(())
            }
            (true, true) => {
                self.act(ClientAction::GpadlCreated { relid, gpadl, result: Err(Failure::Cancelled) });
                return self.post_teardown(relid, gpadl);
            }
            (false, _) => {
                self.gpadls.remove(gpadl);
                Err(Failure::Refused(status))
            }
        };
        self.act(ClientAction::GpadlCreated { relid, gpadl, result });
        if cancelled {
            self.act(ClientAction::GpadlTorndown { gpadl });
        }
    }

    /// Asks the host for pages back, also before it has accepted them. Ends in [`ClientAction::GpadlTorndown`].
    pub fn teardown_gpadl(&mut self, relid: u32, gpadl: u32) -> Result<(), ClientError> {
        self.watch("teardown_gpadl()", For::Gpadl(gpadl));
        self.talking()?;
        if self.channels.get(relid).is_ok_and(|channel| channel.ring_gpadl() == Some(gpadl)) {
            return Err(ClientError::GpadlInUse(gpadl));
        }
        if let Some(channel) = self.channels.get(relid).ok().filter(|channel| channel.is_reserved()) {
            return Err(ClientError::ChannelState { relid, state: channel.state() });
        }
        match self.gpadls.by_name.get_mut(&gpadl) {
            Some((owner, state)) if *owner == relid => match state {
                State::Asked { asked, .. } => {
                    let asked = *asked;
                    self.withdraw_question(asked);
                    self.gpadls.remove(gpadl);
                    let result = Err(Failure::Cancelled);
                    self.act(ClientAction::GpadlCreated { relid, gpadl, result });
                    self.act(ClientAction::GpadlTorndown { gpadl });
                }
                State::Creating { cancelled } => *cancelled = true,
                State::Created => self.post_teardown(relid, gpadl),
                State::TearingDown => return Err(ClientError::NoGpadl(gpadl)),
            },
            Some(_) | None => return Err(ClientError::NoGpadl(gpadl)),
        }
        Ok(())
    }

    fn post_teardown(&mut self, relid: u32, gpadl: u32) {
        if let Some(state) = self.gpadls.state_mut(gpadl) {
            *state = State::TearingDown;
        }
        self.post(GpadlTeardown { relid: U32::new(relid), gpadl: U32::new(gpadl) });
    }

    pub(super) fn gpadl_torndown(&mut self, gpadl: u32) {
        match self.gpadls.by_name.get(&gpadl) {
            Some((_, State::TearingDown)) => {
                self.gpadls.remove(gpadl);
                self.act(ClientAction::GpadlTorndown { gpadl });
            }
            Some(_) | None => self.unexpected_gpadl("GPADL_TORNDOWN", gpadl),
        }
    }

    /// An answer for a list that a rescind or release ended before it came is in order.
    fn unexpected_gpadl(&mut self, message: &'static str, gpadl: u32) {
        let ended = !self.gpadls.by_name.contains_key(&gpadl) && self.gpadls.ever_was(gpadl);
        if !ended {
            self.fault(Fault::UnexpectedForGpadl { message, gpadl });
        }
    }

    /// Ends all lists of a channel that was rescinded.
    pub(super) fn fail_gpadls(&mut self, relid: u32, failure: Failure) {
        for gpadl in self.gpadls.of_channel(relid) {
            self.fail_gpadl(gpadl, failure);
        }
    }

    fn fail_gpadl(&mut self, gpadl: u32, failure: Failure) {
        let Some((relid, state)) = self.gpadls.remove(gpadl) else { return };
        match state {
            State::Asked { asked, .. } => {
                self.withdraw_question(asked);
                self.act(ClientAction::GpadlCreated { relid, gpadl, result: Err(failure) });
            }
            State::Creating { cancelled } => {
                self.act(ClientAction::GpadlCreated { relid, gpadl, result: Err(failure) });
                if cancelled {
                    self.act(ClientAction::GpadlTorndown { gpadl });
                }
            }
            State::Created => {}
            State::TearingDown => self.act(ClientAction::GpadlTorndown { gpadl }),
        }
    }

    /// Ends all lists, but those that the host keeps of channels that stay open; the connection is gone.
    pub(super) fn end_gpadls(&mut self, staying: &[u32]) {
        let stays = |relid: &u32, state: &State| staying.contains(relid) && matches!(state, State::Created);
        let all = self.gpadls.by_name.iter();
        let ending: Vec<u32> =
            all.filter(|(_, (relid, state))| !stays(relid, state)).map(|(gpadl, _)| *gpadl).collect();
        for gpadl in ending {
            self.fail_gpadl(gpadl, Failure::Disconnected);
        }
    }
}
