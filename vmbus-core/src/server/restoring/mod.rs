//! A server from saved state. What was saved is not trusted: each value is checked when it is read (`parse`), and what
//! must hold between them once all are there (`relations`).

mod attaching;
mod parse;
mod relations;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};

pub(super) use attaching::Attaching;
pub use attaching::Presence;

use super::channel::{Serving, Shown};
use super::connection::State;
use super::gpadl::{Custody, List};
use super::question::Subject;
use super::{AskId, DeviceKey, Question, Quota, Server, ServerAction, ServerConfig};
use crate::saved::{RestoreError, SavedServer, server as saved};

impl Server {
    /// The server that was saved, within the bounds of `config`, which may be others than then. Whatever waited for
    /// an answer is asked again, under the same names: questions and connects at once, what devices owe with
    /// [`ServerInput::Restored`](super::ServerInput::Restored), which the caller must say for each of
    /// [`Self::unattached`] before anything else. Everything else goes on as if nothing had happened; the guest
    /// notices nothing. Errors are the fault of whoever kept the state.
    pub fn restore(config: ServerConfig, saved: SavedServer) -> Result<Self, RestoreError> {
        let SavedServer(saved) = saved;
        let mut server = Self::new(config);
        server.connection = parse::connection(&server.config, &saved)?;
        server.restore_channels(&saved)?;
        server.restore_lists(&saved)?;
        server.restore_connects(&saved)?;
        server.restore_questions(&saved)?;
        server.check_relations()?;
        server.attaching = Attaching::all_of(server.channels.by_device.keys().copied());
        server.ask_again();
        Ok(server)
    }

    fn restore_channels(&mut self, saved: &saved::Server) -> Result<(), RestoreError> {
        let channels = &mut self.channels;
        channels.relids.owners = parse::relid_table(saved.fresh_relid)?;
        channels.monitors.next = parse::next_monitor(saved.next_monitor)?;
        for saved in &saved.channels {
            let device = DeviceKey(saved.device);
            let wrong = |what| RestoreError::Device { device, what };
            let channel = parse::channel(saved).map_err(wrong)?;
            if let Some(relid) = channel.relid {
                let place =
                    usize::try_from(relid).ok().and_then(|relid| channels.relids.owners.get_mut(relid));
                match place {
                    Some(place @ None) => *place = Some(device),
                    Some(Some(_)) | None => return Err(wrong("a channel id that it cannot have")),
                }
                channels.relids.in_use += 1;
            }
            if let Some(monitor) = channel.monitor {
                let bit = 1 << monitor;
                if channel.relid.is_none() || channels.monitors.used & bit != 0 {
                    return Err(wrong("a monitor id that it cannot have"));
                }
                channels.monitors.used |= bit;
            }
            if let Some(primary) = channel.offer.primary {
                channels.subchannels.insert((primary, device));
            }
            if saved.waiting {
                channels.waiting.insert(device);
            }
            if channel.shown == Shown::Unloaded {
                channels.kept.insert(device);
            } else {
                channels.served += usize::from(channel.serving.is_with_device());
            }
            if channels.by_device.insert(device, Box::new(channel)).is_some() {
                return Err(wrong("two channels"));
            }
        }
        channels.relids.freed = parse::freed_relids(&saved.freed_relids, &channels.relids)?;
        self.within(Quota::Channels, self.channels.relids_in_use(), self.config.quotas.channels)
    }

    fn restore_lists(&mut self, saved: &saved::Server) -> Result<(), RestoreError> {
        let quotas = self.config.quotas;
        for saved in &saved.page_lists {
            let (relid, gpadl) = (saved.relid, saved.gpadl);
            let wrong = |what| RestoreError::PageList { relid, gpadl, what };
            let list = parse::list(saved, quotas.half_built_words).map_err(wrong)?;
            let device = self.channels.owner(relid).ok_or_else(|| wrong("no channel"))?;
            if gpadl == 0 || self.gpadls.lists.contains_key(&(relid, gpadl)) {
                return Err(wrong("a name that it cannot have"));
            }
            match &list {
                // GPADL_BODY names no channel.
                List::HalfBuilt(_) if self.gpadls.is_half_built(gpadl) => {
                    return Err(wrong("a name that another half-built list has"));
                }
                List::Built { custody: Custody::Device | Custody::Releasing, .. } => {
                    if let Some(channel) = self.channels.get_mut(device) {
                        channel.lists_with_device += 1;
                        self.gpadls.with_devices += usize::from(channel.shown != Shown::Unloaded);
                    }
                }
                List::HalfBuilt(_) | List::Asked { .. } | List::Built { custody: Custody::Nobody, .. } => {}
            }
            self.gpadls.insert(relid, gpadl, list);
            self.within(Quota::HalfBuiltGpadls, self.gpadls.half_built(), quotas.half_built_gpadls)?;
            self.within(Quota::HalfBuiltWords, self.gpadls.half_built_words(), quotas.half_built_words)?;
            self.within(Quota::Gpadls, self.gpadls.built(), quotas.gpadls)?;
            self.within(Quota::Pages, self.gpadls.pages(), quotas.pages)?;
        }
        Ok(())
    }

    fn restore_connects(&mut self, saved: &saved::Server) -> Result<(), RestoreError> {
        for saved in &saved.connects {
            let request = parse::connect(saved).map_err(RestoreError::Connect)?;
            if !self.connects.waiting.insert(request) {
                return Err(RestoreError::Connect("a twin"));
            }
            self.within(Quota::Connects, self.connects.len(), self.config.quotas.connects)?;
        }
        Ok(())
    }

    /// Finds the questions again in what waits for them.
    fn restore_questions(&mut self, saved: &saved::Server) -> Result<(), RestoreError> {
        let mut waiting = BTreeMap::new();
        let mut note = |asked: AskId, subject: Subject| {
            let possible = (1..=saved.last_question).contains(&asked.0);
            let twice = waiting.insert(asked, subject).is_some();
            if possible && !twice { Ok(()) } else { Err(RestoreError::Question(asked)) }
        };
        if let State::Connecting { asked, .. } = self.connection {
            note(asked, Subject::Version)?;
        }
        for saved in &saved.channels {
            let device = DeviceKey(saved.device);
            let Some(channel) = self.channels.get(device) else { continue };
            if let Shown::Proposed(asked) = channel.shown {
                note(asked, Subject::Offer { device, initial: saved.initial })?;
                self.questions.offers += 1;
                self.questions.initial_offers += usize::from(saved.initial);
            }
            if let Serving::Asked { asked, .. } = channel.serving {
                note(asked, Subject::Open { device })?;
            }
        }
        for ((relid, gpadl), list) in &self.gpadls.lists {
            if let List::Asked { asked, .. } = list {
                note(*asked, Subject::Share { relid: *relid, gpadl: *gpadl })?;
            }
        }
        self.questions.last = saved.last_question;
        self.questions.waiting = waiting;
        self.within(Quota::Questions, self.questions.caused_by_guest(), self.config.quotas.questions)
    }

    fn within(&self, quota: Quota, held: usize, limit: usize) -> Result<(), RestoreError> {
        if held > limit { Err(RestoreError::OverQuota { quota, limit }) } else { Ok(()) }
    }

    /// What waits for somebody other than a device is asked again.
    fn ask_again(&mut self) {
        let questions = self.questions.waiting.iter();
        let questions = questions.filter_map(|(id, subject)| {
            Some(ServerAction::Ask { id: *id, question: self.question(subject)? })
        });
        let connects = self.connects.waiting.iter().map(|request| ServerAction::Connect(*request));
        self.actions = questions.chain(connects).collect::<VecDeque<_>>();
    }

    /// A question as it was asked. `None` if there is nothing to ask about, which the checks exclude.
    fn question(&self, subject: &Subject) -> Option<Question> {
        match *subject {
            Subject::Version => {
                let State::Connecting { connection, .. } = &self.connection else { return None };
                Some(Question::Version {
                    version: connection.version,
                    features: connection.features,
                    client_id: connection.client_id,
                })
            }
            Subject::Offer { device, .. } => Some(Question::Offer { device }),
            Subject::Share { relid, gpadl } => {
                let List::Asked { pages, .. } = self.gpadls.lists.get(&(relid, gpadl))? else { return None };
                let device = self.channels.owner(relid)?;
                Some(Question::Share { relid, device, gpadl, pages: pages.page_count() })
            }
            Subject::Open { device } => {
                let Serving::Asked { request, .. } = &self.channels.get(device)?.serving else { return None };
                let message = &request.message;
                let (relid, open_id) = (message.relid.get(), message.open_id.get());
                let ring = self.gpadls.lent(relid, message.ring_gpadl.get())?;
                Some(Question::Open { relid, device, open_id, ring_pages: ring.page_count() })
            }
        }
    }
}
