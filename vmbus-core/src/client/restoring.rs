//! A client from saved state. What was saved is not trusted: each value is checked, and what must hold between them.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use super::channel::{CONNECTION_ID_BITS, Channel, LAST_MONITOR, LAST_RELID, State as ChannelState};
use super::connection::{Offers, State};
use super::gpadl::State as ListState;
use super::pause::{Held, Pausing};
use super::policy::Subject;
use super::{AnswerSlot, AskId, Client, ClientAction, ClientConfig, Connection, OfferInfo, Policy, Question};
use crate::message::{Direction, Message, OfferFlags, OpenChannel};
use crate::saved::parts::{self, guid, narrow, payload, structure, user_defined};
use crate::saved::{RestoreError, SavedClient, client as saved};
use crate::{FeatureFlags, Version};

const UNKNOWN_STATE: &str = "a state that is not known here";

impl Client {
    /// The client that was saved. Questions that waited for an answer are asked again, under the same names; what
    /// the host owes is still to come. [`Self::channels`] says where each channel stands. Errors are the fault of
    /// whoever kept the state.
    pub fn restore(config: ClientConfig, saved: SavedClient) -> Result<Self, RestoreError> {
        let SavedClient(saved) = saved;
        let mut client = Self::new(config);
        client.connection = client.restored_connection(&saved)?;
        client.channels.last_open_id = saved.last_open_id;
        client.gpadls.last_name = saved.last_gpadl;
        client.gpadls.wrapped = saved.gpadls_wrapped;
        client.questions.last = saved.last_question;
        let left_behind = saved.left_behind.as_ref().map(|saved| client.restored_agreed(saved)).transpose();
        client.channels.left_behind = left_behind.map_err(RestoreError::Connection)?;
        if let State::Asking { asked: Some(asked), .. } = client.connection {
            client.restore_question(asked, Subject::Version)?;
        }
        client.restore_channels(&saved)?;
        client.restore_lists(&saved)?;
        client.check_connection()?;
        client.check_rings()?;
        client.ask_again();
        Ok(client)
    }

    fn restored_connection(&self, saved: &saved::Client) -> Result<State, RestoreError> {
        let wrong = RestoreError::Connection;
        let state = match saved.connection.as_ref().ok_or(wrong(UNKNOWN_STATE))? {
            saved::Connection::Disconnected(_) => State::Disconnected,
            saved::Connection::Asking(saved) => {
                let (version, lowest) = versions(saved).map_err(wrong)?;
                State::Asking { asked: Some(AskId(saved.question)), version, lowest }
            }
            saved::Connection::Contacting(saved) => {
                let (version, lowest) = versions(saved).map_err(wrong)?;
                State::Contacting { version, lowest }
            }
            saved::Connection::Connected(connected) => {
                self.restored_connected(connected, &saved.held).map_err(wrong)?
            }
            saved::Connection::Unloading(saved) => {
                State::Unloading { connection: self.restored_agreed(saved).map_err(wrong)? }
            }
        };
        let holds = matches!(state, State::Connected { pause: Pausing::Asked | Pausing::Paused, .. });
        if holds || saved.held.is_empty() {
            Ok(state)
        } else {
            Err(RestoreError::Message("no pause that holds it back"))
        }
    }

    fn restored_connected(
        &self,
        saved: &saved::Connected,
        held: &[saved::Held],
    ) -> Result<State, &'static str> {
        let connection = self.restored_agreed(saved.agreed.as_ref().ok_or("no version")?)?;
        let features = connection.features;
        let offers = match saved::Offers::try_from(saved.offers).map_err(|_| UNKNOWN_STATE)? {
            saved::Offers::NotRequested => Offers::NotRequested,
            saved::Offers::Requested => Offers::Requested,
            saved::Offers::Deciding => Offers::Deciding,
            saved::Offers::Delivered => Offers::Delivered,
        };
        let modifying = saved.modifying.as_ref().map(|saved| saved.pages.as_ref().map(Into::into));
        if modifying.is_some() && !features.contains(FeatureFlags::MODIFY_CONNECTION) {
            return Err("a modification that was not negotiated");
        }
        let pause = match saved::Pausing::try_from(saved.pause).map_err(|_| UNKNOWN_STATE)? {
            saved::Pausing::No => Pausing::No,
            saved::Pausing::Asked => Pausing::Asked,
            saved::Pausing::Paused => Pausing::Paused,
        };
        if pause != Pausing::No && !features.contains(FeatureFlags::PAUSE_RESUME) {
            return Err("a pause that was not negotiated");
        }
        let held = restored_held(&connection, held)?;
        Ok(State::Connected { connection, offers, modifying, pause, held })
    }

    fn restored_agreed(&self, saved: &saved::Agreed) -> Result<Connection, &'static str> {
        let version = Version::from_word(saved.version).ok_or("a version that nobody knows")?;
        let features = FeatureFlags::from_bits_retain(saved.features);
        if !self.features_for(version).contains(features) {
            return Err("features that we do not ask for");
        }
        if !(1..=CONNECTION_ID_BITS).contains(&saved.message_connection_id) {
            return Err("a connection id that cannot be");
        }
        Ok(Connection {
            version,
            features,
            message_connection_id: saved.message_connection_id,
            interrupt_page: saved.interrupt_page,
            monitor_pages: saved.monitor_pages.as_ref().map(Into::into),
        })
    }

    fn restore_channels(&mut self, saved: &saved::Client) -> Result<(), RestoreError> {
        for saved in &saved.channels {
            let offer = saved.offer.as_ref().ok_or(RestoreError::Channel { relid: 0, what: "no offer" })?;
            let relid = offer.relid;
            let wrong = |what| RestoreError::Channel { relid, what };
            let offer = restored_offer(offer).map_err(wrong)?;
            let state = restored_state(relid, saved.state.as_ref()).map_err(wrong)?;
            match (&state, saved.state.as_ref()) {
                (ChannelState::Proposed(asked), Some(saved::State::Proposed(saved))) => {
                    let initial = saved.initial;
                    self.restore_question(*asked, Subject::Offer { relid, initial })?;
                    self.questions.initial_offers += usize::from(initial);
                }
                (ChannelState::Asked { asked, .. }, _) => {
                    self.restore_question(*asked, Subject::Open { relid })?;
                }
                (
                    ChannelState::Proposed(_)
                    | ChannelState::Closed
                    | ChannelState::Opening { .. }
                    | ChannelState::Open { .. }
                    | ChannelState::OpenReserved { .. }
                    | ChannelState::ClosingReserved { .. }
                    | ChannelState::Rescinded,
                    _,
                ) => {}
            }
            let may_modify = !matches!(state, ChannelState::Proposed(_) | ChannelState::Rescinded);
            if saved.modifying && !may_modify {
                return Err(wrong("a modification that it cannot have"));
            }
            if self.holds_release_of(relid) {
                return Err(wrong("an id that was given back"));
            }
            let channel = Channel { offer, state, modifying: saved.modifying };
            if self.channels.by_relid.insert(relid, Box::new(channel)).is_some() {
                return Err(wrong("a twin"));
            }
        }
        Ok(())
    }

    fn restore_lists(&mut self, saved: &saved::Client) -> Result<(), RestoreError> {
        for saved in &saved.page_lists {
            let (relid, gpadl) = (saved.relid, saved.gpadl);
            let wrong = |what| RestoreError::PageList { relid, gpadl, what };
            let state = match saved.list.as_ref().ok_or(wrong(UNKNOWN_STATE))? {
                saved::List::Asked(saved) => {
                    let pages = saved.pages.as_ref().ok_or(wrong("no pages"))?.restore().map_err(wrong)?;
                    let asked = AskId(saved.question);
                    self.restore_question(asked, Subject::Share { gpadl })?;
                    ListState::Asked { asked, pages }
                }
                saved::List::Creating(saved) => ListState::Creating { cancelled: saved.cancelled },
                saved::List::Created(_) => ListState::Created,
                saved::List::TearingDown(_) => ListState::TearingDown,
            };
            match self.channels.by_relid.get(&relid).map(|channel| &channel.state) {
                Some(
                    ChannelState::Closed
                    | ChannelState::Asked { .. }
                    | ChannelState::Opening { .. }
                    | ChannelState::Open { .. }
                    | ChannelState::OpenReserved { .. }
                    | ChannelState::ClosingReserved { .. },
                ) => {}
                Some(ChannelState::Proposed(_) | ChannelState::Rescinded) | None => {
                    return Err(wrong("a channel that can have none"));
                }
            }
            if !self.gpadls.ever_was(gpadl) || self.gpadls.by_name.contains_key(&gpadl) {
                return Err(wrong("a name that it cannot have"));
            }
            self.gpadls.insert(relid, gpadl, state);
        }
        Ok(())
    }

    fn restore_question(&mut self, asked: AskId, subject: Subject) -> Result<(), RestoreError> {
        let possible = (1..=self.questions.last).contains(&asked.0);
        let twice = self.questions.waiting.insert(asked, subject).is_some();
        if possible && !twice { Ok(()) } else { Err(RestoreError::Question(asked)) }
    }

    fn check_connection(&self) -> Result<(), RestoreError> {
        let wrong = |what| Err(RestoreError::Connection(what));
        match &self.connection {
            State::Disconnected | State::Asking { .. } | State::Contacting { .. } => {
                let stays = matches!(self.connection, State::Disconnected);
                let left = self.channels.reserved().count();
                if left != self.channels.by_relid.len() || (left > 0 && !stays) {
                    return wrong("channels where none can be");
                }
                if (left > 0) != self.channels.left_behind.is_some() {
                    return wrong("channels left behind by nobody");
                }
            }
            State::Connected { .. } | State::Unloading { .. } if self.channels.left_behind.is_some() => {
                return wrong("channels left behind by another");
            }
            State::Connected { offers: Offers::NotRequested, .. } if !self.channels.by_relid.is_empty() => {
                return wrong("channels that were not asked for");
            }
            State::Connected { offers: Offers::Deciding, .. } if self.questions.initial_offers == 0 => {
                return wrong("offers that nobody decides about");
            }
            State::Connected { offers: Offers::Delivered, .. } if self.questions.initial_offers > 0 => {
                return wrong("offers that came and did not");
            }
            State::Connected { .. } | State::Unloading { .. } => {}
        }
        Ok(())
    }

    /// The rings of an open are a page list of its channel that the host has accepted.
    fn check_rings(&self) -> Result<(), RestoreError> {
        for (relid, channel) in &self.channels.by_relid {
            if channel.ring_gpadl().is_some_and(|gpadl| !self.gpadls.is_created(*relid, gpadl)) {
                let what = "rings that are not shared";
                return Err(RestoreError::Channel { relid: *relid, what });
            }
        }
        Ok(())
    }

    fn ask_again(&mut self) {
        let asked: VecDeque<(AskId, Question)> = self
            .questions
            .waiting
            .iter()
            .filter_map(|(id, subject)| Some((*id, self.question(subject)?)))
            .collect();
        for (id, question) in asked {
            match self.config.policy {
                Policy::Ask => self.act(ClientAction::Ask { id, question }),
                Policy::AllowAll => self.allow_if_nobody_decides(id),
            }
        }
    }

    /// A question as it was asked.
    fn question(&self, subject: &Subject) -> Option<Question> {
        match *subject {
            Subject::Version => {
                let State::Asking { version, .. } = self.connection else { return None };
                Some(Question::Version { version, features: self.features_for(version) })
            }
            Subject::Offer { relid, .. } => Some(Question::Offer(self.channels.get(relid).ok()?.offer)),
            Subject::Share { gpadl } => match self.gpadls.by_name.get(&gpadl)? {
                (relid, ListState::Asked { pages, .. }) => {
                    Some(Question::Share { relid: *relid, gpadl, pages: pages.page_count() })
                }
                (_, ListState::Creating { .. } | ListState::Created | ListState::TearingDown) => None,
            },
            Subject::Open { relid } => {
                let ChannelState::Asked { message, .. } = &self.channels.get(relid).ok()?.state else {
                    return None;
                };
                Some(Question::Open { relid, open_id: message.open_id.get() })
            }
        }
    }
}

fn versions(saved: &saved::Trying) -> Result<(Version, Version), &'static str> {
    match (Version::from_word(saved.version), Version::from_word(saved.lowest)) {
        (Some(version), Some(lowest)) if version >= lowest => Ok((version, lowest)),
        (Some(_) | None, _) => Err("versions that nobody tries"),
    }
}

fn slot(saved: &parts::Address) -> Result<AnswerSlot, &'static str> {
    match u8::try_from(saved.sint) {
        Ok(sint @ 0..16) => Ok(AnswerSlot { vp: saved.vp, sint }),
        Ok(_) | Err(_) => Err("an interrupt source that does not exist"),
    }
}

fn restored_held(connection: &Connection, saved: &[saved::Held]) -> Result<Held, &'static str> {
    let mut held = Held::default();
    for saved in saved {
        let payload = payload(&saved.payload)?;
        let negotiated = Some((connection.version, connection.features));
        let message = Message::parse(&payload, Direction::ToHost, negotiated);
        if saved.connection_id != connection.message_connection_id {
            return Err("a message held back for another connection");
        }
        if let Message::RelidReleased(released) =
            message.map_err(|_| "bytes held back that are no message")?
        {
            held.released.insert(released.relid.get());
        }
        held.posts.push_back(ClientAction::Post { connection_id: saved.connection_id, payload });
    }
    Ok(held)
}

fn restored_offer(saved: &saved::Offer) -> Result<OfferInfo, &'static str> {
    if !(1..=LAST_RELID).contains(&saved.relid) {
        return Err("an id that cannot be");
    }
    let monitor = saved.monitor.map(narrow).transpose()?;
    if monitor.is_some_and(|monitor| monitor > LAST_MONITOR) {
        return Err("a monitor that cannot be");
    }
    if saved.connection_id.is_some_and(|id| id > CONNECTION_ID_BITS) {
        return Err("a connection id of more than 24 bits");
    }
    Ok(OfferInfo {
        relid: saved.relid,
        class: guid(&saved.class)?,
        instance: guid(&saved.instance)?,
        flags: OfferFlags::from_bits_retain(narrow(saved.flags)?),
        mmio_megabytes: narrow(saved.mmio_megabytes)?,
        mmio_megabytes_optional: narrow(saved.mmio_megabytes_optional)?,
        user_defined: user_defined(&saved.user_defined)?,
        subchannel_index: narrow(saved.subchannel_index)?,
        monitor,
        is_dedicated: saved.is_dedicated,
        connection_id: saved.connection_id,
    })
}

fn restored_state(relid: u32, saved: Option<&saved::State>) -> Result<ChannelState, &'static str> {
    Ok(match saved.ok_or(UNKNOWN_STATE)? {
        saved::State::Proposed(saved) => ChannelState::Proposed(AskId(saved.question)),
        saved::State::Closed(_) => ChannelState::Closed,
        saved::State::Asked(saved) => {
            let message: OpenChannel = structure(&saved.message);
            if message.relid.get() != relid {
                return Err("an open of another channel");
            }
            let reserved = saved.reserved.as_ref().map(slot).transpose()?;
            ChannelState::Asked { asked: AskId(saved.question), message: Box::new(message), reserved }
        }
        saved::State::Opening(saved) => ChannelState::Opening {
            open_id: saved.open_id,
            ring_gpadl: saved.ring_gpadl,
            cancelled: saved.cancelled,
            reserved: saved.reserved.as_ref().map(slot).transpose()?,
        },
        saved::State::OpenReserved(saved) => ChannelState::OpenReserved {
            ring_gpadl: saved.ring_gpadl,
            answers: slot(saved.answers.as_ref().ok_or("no place for answers")?)?,
        },
        saved::State::ClosingReserved(ring_gpadl) => {
            ChannelState::ClosingReserved { ring_gpadl: *ring_gpadl }
        }
        saved::State::Open(ring_gpadl) => ChannelState::Open { ring_gpadl: *ring_gpadl },
        saved::State::Rescinded(_) => ChannelState::Rescinded,
    })
}
